// Two random effects with tables over their ratios (many_components.py, chebyshev.py, block_elimination.py).
//
// A block of threads scores one gene. Its threads share the sums, the matrix I + g F of the effect that is not
// eliminated and its Cholesky factor, in shared memory; all of them then make the same step. The order of the sums is
// fixed; a product with K_R is added up in PARTS. e is the eliminated effect, f the other one; the factor is U with
// I + g_f F = U'U, by rows a <= b.

#define FUNCTIONS (K + K * K + 2)  // of the table of traces: T, B, log det and validity
enum { SUM_MU_V_V = FUNCTIONS, SUM_V_V, SUM_V_H, SUM_E_E, SUMS };

struct Axis {
    double lam, middle, half, lowest, highest;
    long long size;
};

struct Design {
    Axis axes[K];
    const double *traces, *F;             // (size_0, size_1, FUNCTIONS), (size_e, pairs)
    const double *F_rest, *unit;          // (pairs,), upper triangles
    const double *mu, *K_R, *transposed;  // (r,), (q_R, r), (r, q_R)
    long long r, q_R, pairs;
    int e;
};

// Shared memory of a gene.
struct Work {
    double *U, *u, *inverse, *parts, *h, *scaled, *delta, *basis[K], *sums;
};

__device__ Work divided(double* memory, const Design& at) {
    Work work;
    work.U = memory;
    work.u = work.U + at.pairs;
    work.inverse = work.u + at.q_R;
    work.parts = work.inverse + at.q_R;
    work.h = work.parts + PARTS * at.q_R;
    work.scaled = work.h + at.r;
    work.delta = work.scaled + at.r;
    work.basis[0] = work.delta + at.r;
    work.basis[1] = work.basis[0] + at.axes[0].size;
    work.sums = work.basis[1] + at.axes[1].size;  // (SUMS, blockDim.x + 1)
    return work;
}

__device__ long long entry(long long a, long long b, long long q) { return a * q - a * (a - 1) / 2 + b - a; }

__device__ double scale_of(const Axis& axis, double g) {
    const double scale = 1.0 + g * axis.lam;
    return scale > 0 ? scale : 1.0;
}

__device__ bool covers(const Axis& axis, double g) {
    const double A = 1.0 + g * axis.lam;
    return axis.lowest <= A && axis.highest >= A;
}

__device__ void fill_basis(const Axis& axis, double g, double* basis) {
    double t = (log1p(g * axis.lam) - axis.middle) / axis.half;
    t = t > 1.0 ? 1.0 : t < -1.0 ? -1.0 : t;
    const double angle = acos(t);
    for (long long n = threadIdx.x; n < axis.size; n += blockDim.x) basis[n] = cos(angle * n);
}

// Each thread adds up a part of one function of the table.
__device__ void look_up_traces(const Design& at, const Work& work) {
    const int function = threadIdx.x % FUNCTIONS, lanes = blockDim.x / FUNCTIONS;
    double sum = 0.0;
    for (long long i = threadIdx.x / FUNCTIONS; i < at.axes[0].size; i += lanes) {
        const double* row = at.traces + i * at.axes[1].size * FUNCTIONS + function;
        double inner = 0.0;
        for (long long j = 0; j < at.axes[1].size; j++) inner += work.basis[1][j] * row[j * FUNCTIONS];
        sum += work.basis[0][i] * inner;
    }
    work.sums[function * (blockDim.x + 1) + threadIdx.x / FUNCTIONS] = sum;
}

// I + g_f F, its upper triangle, from the table.
__device__ void fill_system(const Design& at, const Work& work, const double* g) {
    const double scale = scale_of(at.axes[at.e], g[at.e]), g_f = g[1 - at.e];
    const double* basis = work.basis[at.e];
    for (long long i = threadIdx.x; i < at.pairs; i += blockDim.x) {
        double F = 0.0;
        for (long long n = 0; n < at.axes[at.e].size; n++) F += basis[n] * at.F[n * at.pairs + i];
        work.U[i] = (F / scale + at.F_rest[i]) * g_f + at.unit[i];
    }
}

// delta and delta h; whether 1 + g_e mu is positive in the rows of this thread.
__device__ bool fill_scaled(const Design& at, const Work& work, double g_e) {
    bool positive = true;
    for (long long j = threadIdx.x; j < at.r; j += blockDim.x) {
        const double A = 1.0 + at.mu[j] * g_e;
        positive = positive && A > 0;
        work.delta[j] = 1.0 / (A > 0 ? A : 1.0);
        work.scaled[j] = work.delta[j] * work.h[j];
    }
    return positive;
}

// K_R delta h, in parts.
__device__ void project(const Design& at, const Work& work) {
    for (long long i = threadIdx.x; i < PARTS * at.q_R; i += blockDim.x) {
        const long long a = i % at.q_R;
        double sum = 0.0;
        for (long long j = i / at.q_R; j < at.r; j += PARTS) sum += at.transposed[j * at.q_R + a] * work.scaled[j];
        work.parts[i] = sum;
    }
}

// Cholesky factor in the place of the matrix, and the solution in that of u; false if it is not positive definite.
__device__ bool factorise_and_solve(const Work& work, long long q) {
    bool ok = true;
    for (long long k = 0; k < q; k++) {
        const double pivot = work.U[entry(k, k, q)];
        ok = ok && pivot > 0;
        const double inverse = 1.0 / sqrt(pivot > 0 ? pivot : 1.0), y = work.u[k] * inverse;
        __syncthreads();  // everybody has read the pivot
        for (long long b = k + 1 + threadIdx.x; b < q; b += blockDim.x) {
            const double scaled = work.U[entry(k, b, q)] * inverse;
            work.U[entry(k, b, q)] = scaled;
            work.u[b] -= scaled * y;
        }
        if (threadIdx.x == 0) {
            work.inverse[k] = inverse;
            work.u[k] = y;
        }
        __syncthreads();
        for (long long a = k + 1 + threadIdx.x / 32; a < q; a += blockDim.x / 32) {
            const double *pivots = work.U + entry(k, k, q) - k, left = pivots[a];
            double* row = work.U + entry(a, a, q) - a;
            for (long long b = a + threadIdx.x % 32; b < q; b += 32) row[b] -= left * pivots[b];
        }
        __syncthreads();
    }
    for (long long k = q - 1; k >= 0; k--) {
        const double x = work.u[k] * work.inverse[k];
        __syncthreads();
        for (long long a = threadIdx.x; a < k; a += blockDim.x) work.u[a] -= work.U[entry(a, k, q)] * x;
        if (threadIdx.x == 0) work.u[k] = x;
        __syncthreads();
    }
    return ok;
}

// Sums of this thread over the rows of v = delta h - delta K_R' g_f e_R and of e_R, which is u.
__device__ void add_up(const Design& at, const Work& work, double g_f) {
    double mu_v_v = 0.0, v_v = 0.0, v_h = 0.0, e_e = 0.0;
    for (long long j = threadIdx.x; j < at.r; j += blockDim.x) {
        double back = 0.0;
        for (long long a = 0; a < at.q_R; a++) back += at.K_R[a * at.r + j] * (g_f * work.u[a]);
        const double v = work.scaled[j] - work.delta[j] * back;
        mu_v_v += at.mu[j] * (v * v);
        v_v += v * v;
        v_h += v * work.h[j];
    }
    for (long long a = threadIdx.x; a < at.q_R; a += blockDim.x) e_e += work.u[a] * work.u[a];
    const int stride = blockDim.x + 1;
    work.sums[SUM_MU_V_V * stride + threadIdx.x] = mu_v_v;
    work.sums[SUM_V_V * stride + threadIdx.x] = v_v;
    work.sums[SUM_V_H * stride + threadIdx.x] = v_h;
    work.sums[SUM_E_E * stride + threadIdx.x] = e_e;
}

// Every sum over the threads, to its first place.
__device__ void reduce(const Work& work) {
    for (int i = threadIdx.x; i < SUMS; i += blockDim.x) {
        double* row = work.sums + i * (blockDim.x + 1);
        const int terms = i < FUNCTIONS ? blockDim.x / FUNCTIONS : blockDim.x;
        for (int term = 1; term < terms; term++) row[0] += row[term];
    }
}

// Traces at the ratios g from the sums (many_components.py: _unscaled and _squares).
__device__ void collect(const Design& at, const Work& work, const double* g, double explained, Traces& found) {
    double sums[SUMS], scale[K];
    for (int i = 0; i < SUMS; i++) sums[i] = work.sums[i * (blockDim.x + 1)];
    for (int i = 0; i < K; i++) scale[i] = scale_of(at.axes[i], g[i]);
    for (int i = 0; i < K; i++) {
        found.T[i] = sums[i] / scale[i];
        for (int j = 0; j < K; j++) found.B[i][j] = sums[K + i * K + j] / (scale[i] * scale[j]);
        found.E[i] = i == at.e ? sums[SUM_MU_V_V] : sums[SUM_E_E];
    }
    found.logdet = sums[FUNCTIONS - 2];
    found.ok = sums[FUNCTIONS - 1] > 0.5;
    const double gE_0 = g[0] * found.E[0], gE_1 = g[1] * found.E[1];
    const double by_product = sqrt(fabs(explained) * sums[SUM_V_V]);
    const double by_squares = sums[SUM_V_V] + (fabs(gE_0) + fabs(gE_1));
    found.between_ss = by_product < by_squares ? sums[SUM_V_H] : sums[SUM_V_V] + (gE_0 + gE_1);
    found.between_error = smaller(by_product, by_squares) * larger(scale[0], scale[1]);
}

// Traces at the ratios g, which the tables cover; all threads of the block get them.
__device__ void evaluate(const Design& at, const Work& work, const double* g, double explained, Traces& found) {
    __shared__ int positive;
    if (threadIdx.x == 0) positive = 1;
    for (int i = 0; i < K; i++) fill_basis(at.axes[i], g[i], work.basis[i]);
    const bool own = fill_scaled(at, work, g[at.e]);
    __syncthreads();
    if (!own) positive = 0;
    look_up_traces(at, work);
    fill_system(at, work, g);
    project(at, work);
    __syncthreads();
    for (long long a = threadIdx.x; a < at.q_R; a += blockDim.x) {
        work.u[a] = work.parts[a];
        for (int part = 1; part < PARTS; part++) work.u[a] += work.parts[part * at.q_R + a];
    }
    __syncthreads();
    const bool definite = factorise_and_solve(work, at.q_R);
    add_up(at, work, g[1 - at.e]);
    __syncthreads();
    reduce(work);
    __syncthreads();
    collect(at, work, g, explained, found);
    found.ok = found.ok && definite && positive;
    __syncthreads();  // everybody has read the sums
}

extern "C" __global__ void two_components(
    const double* axes, const double* traces, const double* F, const double* F_rest, const double* unit,
    const double* mu, const double* K_R, const double* transposed, const double* h, const double* yry, const double* rss,
    const double* start, const long long* niter0, const long long* refused0, long long size_0, long long size_1,
    long long e, long long r, long long q_R, long long b, double N, double residual_df, double epsilon,
    long long max_iter, long long most_refused, bool nonnegative, bool relaxed, double* theta, double* yPy,
    long long* niter, long long* refused, long long* status) {
    extern __shared__ double memory[];
    const long long gene = blockIdx.x;
    const Rules rules = {epsilon, max_iter, most_refused, nonnegative, relaxed};
    const Gene of = {N, yry[gene] / residual_df, rss[gene]};
    const Axis first = {axes[0], axes[1], axes[2], axes[3], axes[4], size_0};
    const Axis second = {axes[5], axes[6], axes[7], axes[8], axes[9], size_1};
    const Design design = {{first, second}, traces, F, F_rest, unit, mu, K_R, transposed, r, q_R, q_R * (q_R + 1) / 2,
                           (int)e};
    const Work work = divided(memory, design);
    for (long long j = threadIdx.x; j < r; j += blockDim.x) work.h[j] = h[j * b + gene];
    State state;
    begin(state, start, niter0, refused0, gene, b);
    while (!state.done) {  // the same in all threads
        double trial[ROWS], g[K];
        next_trial(rules, state, trial);
        ratios(trial, g);
        Traces at_trial = {};
        Evaluation found;
        const bool covered = covers(first, g[0]) && covers(second, g[1]);
        if (covered) evaluate(design, work, g, yry[gene] - rss[gene], at_trial);
        at_trial.outside_table = !covered;
        compose(of, trial[K], g, at_trial, found);
        advance(rules, trial, found, state);
    }
    if (threadIdx.x == 0) store(state, {theta, yPy, niter, refused, status}, gene, b);
}
