// One random effect: every number of an evaluation is a sum over the eigenvalues (one_component.py).
//
// A block scores blockDim.x genes, each by blockDim.y threads that share its sums over the eigenvalues. All threads
// of a gene then make the same step, so that no thread waits for another's state. The order of the sums is fixed.

enum { SUM_T, SUM_B, SUM_E, SUM_BETWEEN, SUM_LOGDET, SUMS };

struct Design {
    const double *lam, *lam_trace, *inverse_lam;  // (q,)
    long long q;
    double largest, largest_trace;
};

__device__ double largest_of(const double* x, long long q) {
    double largest = x[0];
    for (long long j = 1; j < q; j++) largest = larger(largest, x[j]);
    return largest;
}

// Sums of one thread at the ratio g; c points to the gene's first number, b apart.
__device__ void add_up(const Design& at, const double* c, long long b, double g, double g_trace, double* sums) {
    double factors = 1.0;
    int multiplied = 0;
    for (int i = 0; i < SUMS; i++) sums[i] = 0.0;
    for (long long j = threadIdx.y; j < at.q; j += blockDim.y) {
        const double w = 1.0 / (1.0 + at.lam[j] * g), c2w = c[j * b] * c[j * b] * w, lam = at.lam_trace[j];
        const double w_trace = at.lam == at.lam_trace ? w : 1.0 / (1.0 + lam * g_trace);
        sums[SUM_T] += lam * w_trace;
        sums[SUM_B] += lam * lam * (w_trace * w_trace);
        sums[SUM_E] += c2w * w;
        sums[SUM_BETWEEN] += at.inverse_lam[j] * c2w;
        factors *= w_trace;
        if (++multiplied == FACTORS) {  // a logarithm takes as long as a dozen products
            sums[SUM_LOGDET] -= log(factors);
            factors = 1.0;
            multiplied = 0;
        }
    }
    sums[SUM_LOGDET] -= log(factors);
}

extern "C" __global__ void one_component(
    const double* lam, const double* lam_trace, const double* inverse_lam, const double* c, const double* yry,
    const double* rss, const double* start, const long long* niter0, const long long* refused0, long long q,
    long long b, double N, double residual_df, double epsilon, long long max_iter, long long most_refused,
    bool nonnegative, bool relaxed, double* theta, double* yPy, long long* niter, long long* refused,
    long long* status) {
    __shared__ double partial[SUMS][LANES][GENES];
    __shared__ int running[2];
    const long long gene = (long long)blockIdx.x * GENES + threadIdx.x, safe = gene < b ? gene : b - 1;
    const bool first = threadIdx.x == 0 && threadIdx.y == 0;
    const Rules rules = {epsilon, max_iter, most_refused, nonnegative, relaxed};
    const Gene of = {N, yry[safe] / residual_df, rss[safe]};
    const Design design = {lam, lam_trace, inverse_lam, q, largest_of(lam, q), largest_of(lam_trace, q)};
    State state;
    begin(state, start, niter0, refused0, safe, b);
    state.done = gene >= b;
    if (first) running[0] = running[1] = 0;
    for (int turn = 0;; turn = 1 - turn) {
        double trial[ROWS], g, sums[SUMS];
        next_trial(rules, state, trial);
        ratios(trial, &g);
        const bool ok = 1.0 + design.largest * g > 0, ok_trace = 1.0 + design.largest_trace * g > 0;
        if (!state.done) {
            add_up(design, c + safe, b, ok ? g : 0.0, ok_trace ? g : 0.0, sums);
            for (int i = 0; i < SUMS; i++) partial[i][threadIdx.y][threadIdx.x] = sums[i];
        }
        __syncthreads();
        if (!state.done) {
            for (int i = 0; i < SUMS; i++) {
                sums[i] = partial[i][0][threadIdx.x];
                for (int lane = 1; lane < blockDim.y; lane++) sums[i] += partial[i][lane][threadIdx.x];
            }
            Traces traces = {{sums[SUM_T]}, {{sums[SUM_B]}}, {sums[SUM_E]}};
            traces.between_ss = traces.between_error = sums[SUM_BETWEEN];
            traces.logdet = sums[SUM_LOGDET];
            traces.ok = ok && ok_trace;
            traces.outside_table = false;
            Evaluation found;
            compose(of, trial[K], &g, traces, found);
            advance(rules, trial, found, state);
            if (!state.done) running[turn] = 1;
        }
        __syncthreads();
        if (!running[turn]) break;
        if (first) running[1 - turn] = 0;  // nobody reads or sets it before the next barrier
    }
    if (gene < b && threadIdx.y == 0) store(state, {theta, yPy, niter, refused, status}, gene, b);
}
