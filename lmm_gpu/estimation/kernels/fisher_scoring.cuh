// Fisher scoring of one gene: the loop of fisher_scoring.py and scoring_steps.py and the likelihood composed as in
// likelihood.py, operation for operation. Those modules define what is computed, and explain it.
//
// K is the number of variance components; constants and statuses are defined by the host.

#define ROWS (K + 1)

struct Rules {
    double epsilon;
    long long max_iter;
    long long most_refused;  // negative: any number
    bool nonnegative, relaxed;
};

struct Gene {
    double N;     // n - p (REML) or n (ML)
    double unit;  // residual variance without random effects
    double rss;
};

struct Traces {
    double T[K], B[K][K], E[K];
    double between_ss, between_error, logdet;
    bool ok, outside_table;
};

struct Evaluation {
    double value, score[ROWS], information[ROWS][ROWS], yPy, rounding;
    bool ok, outside_table;
};

struct State {
    double theta[ROWS], step[ROWS];
    double length, value, slack, yPy, decrement;
    long long niter, refused;
    int status;
    bool done;
};

// of the array libraries: NaN if either is
__device__ double larger(double a, double b) { return a != a || a > b ? a : b; }
__device__ double smaller(double a, double b) { return a != a || a < b ? a : b; }

__device__ void ratios(const double* theta, double* g) {
    const double s_0 = theta[K] > 0 ? theta[K] : 1.0;
    for (int i = 0; i < K; i++) g[i] = theta[i] / s_0;
}

__device__ void compose(const Gene& gene, double s_0, const double* g, const Traces& at, Evaluation& found) {
    const bool positive = s_0 > 0;
    if (!positive) s_0 = 1.0;
    double gE = 0.0, gT = 0.0, gBg = 0.0, Bg[K];
    for (int i = 0; i < K; i++) {
        gE += g[i] * at.E[i];
        gT += g[i] * at.T[i];
        Bg[i] = 0.0;
        for (int j = 0; j < K; j++) Bg[i] += at.B[i][j] * g[j];
        gBg += g[i] * Bg[i];
    }
    const double yPy = gene.rss + at.between_ss, yR2y = yPy - gE;
    const double relative = gene.N * log(s_0 / (gene.unit > 0 ? gene.unit : 1.0));
    const double size = 0.5 * (fabs(relative) + fabs(at.logdet) + fabs(yPy / s_0));
    found.value = -0.5 * (gene.N * log(TWO_PI * s_0) + at.logdet + yPy / s_0);
    const double scale = 0.5 / (s_0 * s_0);
    for (int i = 0; i < K; i++) {
        found.score[i] = 0.5 * (at.E[i] / s_0 - at.T[i]) / s_0;
        for (int j = 0; j < K; j++) found.information[i][j] = scale * at.B[i][j];
        found.information[i][K] = found.information[K][i] = scale * (at.T[i] - Bg[i]);
    }
    found.score[K] = 0.5 * (yR2y / s_0 - (gene.N - gT)) / s_0;
    found.information[K][K] = scale * (gene.N - 2 * gT + gBg);
    found.yPy = yPy;
    found.rounding = ROUNDING * (1.0 + size) + ROUNDING_BETWEEN * at.between_error / s_0;
    found.ok = at.ok && positive && isfinite(found.value);
    found.outside_table = at.outside_table;
}

// --- steps: scoring_steps.py ------------------------------------------------------------------------

// Solve with the information; pivots at rounding leave their unknown at 0. Components that are held stay at 0.
__device__ void solve(const double information[ROWS][ROWS], const double* score, const bool* held, double* step) {
    double L[ROWS][ROWS];
    for (int j = 0; j < ROWS; j++) {
        const double diagonal = held[j] ? 1.0 : information[j][j];
        double pivot = diagonal;
        for (int c = 0; c < j; c++) pivot -= L[j][c] * L[j][c];
        const bool good = pivot > LOST_PIVOT * diagonal;
        L[j][j] = good ? 1.0 / sqrt(pivot) : 0.0;
        for (int i = j + 1; i < ROWS; i++) {
            double entry = held[i] || held[j] ? 0.0 : information[i][j];
            for (int c = 0; c < j; c++) entry -= L[i][c] * L[j][c];
            L[i][j] = entry * L[j][j];
        }
    }
    for (int i = 0; i < ROWS; i++) {
        double value = held[i] ? 0.0 : score[i];
        for (int c = 0; c < i; c++) value -= L[i][c] * step[c];
        step[i] = value * L[i][i];
    }
    for (int i = ROWS - 1; i >= 0; i--) {
        double value = step[i];
        for (int c = i + 1; c < ROWS; c++) value -= L[c][i] * step[c];
        step[i] = value * L[i][i];
    }
}

// Components held at zero: those at zero that the score, or the joint step, would make negative.
__device__ void hold(const double* theta, const Evaluation& found, bool* held) {
    for (int i = 0; i < K; i++) held[i] = theta[i] <= 0 && found.score[i] <= 0;
    for (int repeat = 0; repeat < K; repeat++) {
        double step[ROWS];
        solve(found.information, found.score, held, step);
        for (int i = 0; i < K; i++) held[i] = held[i] || (theta[i] <= 0 && step[i] < 0);
    }
}

__device__ double longest_valid(const double* theta, const double* step) {
    double longest = 0.0;
    for (int i = 0; i < K; i++) {
        const double reach = step[i] < 0 ? -theta[i] / step[i] : LONGEST_STEP;
        longest = i ? smaller(longest, reach) : reach;
    }
    return longest;
}

__device__ double relaxed_length(double length, const double* last, const double* step, const Evaluation& found) {
    double before = 0.0, product = 0.0;
    for (int i = 0; i < ROWS; i++) {
        double metric = 0.0;
        for (int j = 0; j < ROWS; j++) metric += found.information[i][j] * last[j];
        before += last[i] * metric;
        product += step[i] * metric;
    }
    const double share = 1.0 - product / (before > 0 ? before : 1.0);
    double relaxed = length / (share < 1.0 / LONGEST_STEP ? 1.0 / LONGEST_STEP : share);
    if (relaxed < 0.5) relaxed = 0.5;
    return relaxed > LONGEST_STEP ? LONGEST_STEP : relaxed;
}

// --- the loop: fisher_scoring.py --------------------------------------------------------------------

// Start at theta (ROWS, b); with counts of an interrupted maximisation, if there are any.
__device__ void begin(State& state, const double* start, const long long* niter, const long long* refused,
                      long long gene, long long b) {
    for (int i = 0; i < ROWS; i++) {
        state.theta[i] = start[i * b + gene];
        state.step[i] = 0.0;
    }
    state.length = 1.0;
    state.value = log(0.0);  // -infinity
    state.slack = 0.0;
    state.yPy = state.decrement = -log(0.0);
    state.niter = niter && niter[gene] > 0 ? niter[gene] - 1 : 0;
    state.refused = refused ? refused[gene] : 0;
    state.status = RUNNING;
    state.done = false;
}

__device__ void next_trial(const Rules& rules, const State& state, double* trial) {
    for (int i = 0; i < ROWS; i++) {
        trial[i] = state.theta[i] + state.length * state.step[i];
        const bool falls = rules.nonnegative && i < K && state.step[i] < 0;
        if (falls && trial[i] <= AT_ZERO * fabs(state.theta[i])) trial[i] = 0.0;
    }
}

__device__ int verdict(const Rules& rules, const State& before, const State& after, bool plan, double score_size) {
    if (before.status != RUNNING) return before.status;
    const bool at_rounding = 0.5 * after.decrement <= after.slack;
    const bool out_of_steps = plan && after.niter >= rules.max_iter;
    const bool small = score_size <= rules.epsilon && after.decrement <= SMALL_DECREMENT;
    if (plan && (small || after.decrement <= TINY_DECREMENT)) return CONVERGED;
    if (plan && at_rounding && after.decrement >= before.decrement) return CONVERGED_AT_ROUNDING;
    if (at_rounding && (!plan || out_of_steps)) return CONVERGED_AT_ROUNDING;
    if (out_of_steps) return MAX_ITER;
    const bool refused = rules.most_refused >= 0 && after.refused >= rules.most_refused;
    return refused || (!plan && !(after.length >= SHORTEST_STEP)) ? FAILED : RUNNING;
}

// Accept the trial and plan the next step, or halve the step; then judge.
__device__ void advance(const Rules& rules, const double* trial, const Evaluation& found, State& state) {
    const State before = state;
    const bool last = before.status != RUNNING;
    const bool accept = found.ok && found.value >= before.value - before.slack && !before.done;
    const bool plan = accept && !last;
    bool held[ROWS] = {};
    if (rules.nonnegative) hold(trial, found, held);
    double step[ROWS], score_size = 0.0, decrement = 0.0;
    solve(found.information, found.score, held, step);
    for (int i = 0; i < ROWS; i++) {
        const double score = held[i] ? 0.0 : found.score[i];
        score_size = i ? larger(score_size, fabs(score)) : fabs(score);
        decrement += step[i] * score;
    }
    double length = 0.0 * before.length + 1.0;
    if (rules.relaxed) length = relaxed_length(before.length, before.step, step, found);
    if (rules.nonnegative) length = smaller(length, longest_valid(trial, step));

    for (int i = 0; i < ROWS; i++) {
        if (accept) state.theta[i] = trial[i];
        if (plan) state.step[i] = step[i];
    }
    state.length = plan ? length : 0.5 * before.length;
    if (accept) {
        state.value = found.value;
        state.slack = found.rounding;
        state.yPy = found.yPy;
    }
    if (plan) {
        state.decrement = decrement;
        state.niter++;
    }
    if (!accept && !last) state.refused++;
    state.status = verdict(rules, before, state, plan, score_size);
    state.done = last;
    if (found.outside_table && !before.done) {  // a last step out of the tables has to be made without them, too
        state.status = OUTSIDE_TABLE;
        state.done = true;
    }
}

struct Outcome {
    double *theta, *yPy;  // (ROWS, b), (b,)
    long long *niter, *refused, *status;
};

__device__ void store(const State& state, const Outcome& to, long long gene, long long b) {
    for (int i = 0; i < ROWS; i++) to.theta[i * b + gene] = state.theta[i];
    to.yPy[gene] = state.yPy;
    to.niter[gene] = state.niter;
    to.refused[gene] = state.refused;
    to.status[gene] = state.status;
}
