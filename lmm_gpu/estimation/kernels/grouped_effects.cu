// Levels that share no observation, bordered by the fixed columns alone (group_elimination.py, grouped_effects.py).
//
// A block of threads scores one gene. K_g and C_g of all levels are in shared memory; sums over the levels are added
// up in a fixed order. EFFECTS is the number k of columns of Z per level, FIXED that p of X; parameter l of the K
// stands for the effects PAIR_A[l] <= PAIR_B[l]. Symmetric matrices are stored whole.

#define MATRIX (EFFECTS * EFFECTS)
#define SQUARE (FIXED * FIXED)
enum { SUM_T, SUM_B = K, SUM_E = SUM_B + K * K, SUM_SQUARES = SUM_E + K, SUM_X, SUMS = SUM_X + FIXED };

struct Design {
    const double *root, *loads, *within, *border;  // (k, k, designs, G), (designs, k G, p), (designs, p, p) twice
    long long G, designs, at;                      // levels, number of designs, and which one is the gene's
    const double *y, *outside;                     // of the gene (k G,), (p,)
    bool reml;
};

// Shared memory of a gene.
struct Work {
    double *inverse, *C, *A, *W, *rhs, *beta, *R, *RW, *logdets, *sums;
};

__device__ Work divided(double* memory, long long G) {
    Work work;
    work.inverse = memory;                   // (G, k, k)
    work.C = work.inverse + G * MATRIX;      // (G, k, p)
    work.A = work.C + G * EFFECTS * FIXED;   // (p, p), then its Cholesky factor with inverse pivots
    work.W = work.A + SQUARE;                // (p, p)
    work.rhs = work.W + SQUARE;              // (p,)
    work.beta = work.rhs + FIXED;            // (p,)
    work.R = work.beta + FIXED;              // (K, p, p)
    work.RW = work.R + K * SQUARE;           // (K, p, p)
    work.logdets = work.RW + K * SQUARE;     // (2, threads): log determinants of levels, and whether all are valid
    work.sums = work.logdets + 2 * blockDim.x;  // (SUMS, threads + 1)
    return work;
}

__device__ double root_of(const Design& at, int a, int c, long long g) {
    return at.root[((a * EFFECTS + c) * at.designs + at.at) * at.G + g];
}

__device__ const double* loads_of(const Design& at, int a, long long g) {
    return at.loads + ((at.at * EFFECTS + a) * at.G + g) * FIXED;
}

// Covariance over s_0 of the effects of a level.
__device__ void fill_gamma(const double* ratios, double gamma[EFFECTS][EFFECTS]) {
    const int pair_a[K] = PAIR_A, pair_b[K] = PAIR_B;
    for (int a = 0; a < EFFECTS; a++)
        for (int b = 0; b < EFFECTS; b++) gamma[a][b] = 0.0;
    for (int l = 0; l < K; l++) gamma[pair_a[l]][pair_b[l]] = gamma[pair_b[l]][pair_a[l]] = ratios[l];
}

// (I + L' Gamma L)^-1 of a level; false if it is not positive definite.
__device__ bool invert(const double A[EFFECTS][EFFECTS], double inverse[EFFECTS][EFFECTS], double& logdet) {
    double L[EFFECTS][EFFECTS];
    bool ok = isfinite(A[0][0]);
    for (int j = 0; j < EFFECTS; j++) {
        double pivot = A[j][j];
        for (int c = 0; c < j; c++) pivot -= L[j][c] * L[j][c];
        const bool good = pivot > LOST_PIVOT * A[j][j];
        ok = ok && good;
        L[j][j] = good ? 1.0 / sqrt(pivot) : 0.0;
        if (good) logdet -= 2.0 * log(L[j][j]);
        for (int i = j + 1; i < EFFECTS; i++) {
            double entry = A[i][j];
            for (int c = 0; c < j; c++) entry -= L[i][c] * L[j][c];
            L[i][j] = entry * L[j][j];
        }
    }
    for (int column = 0; column < EFFECTS; column++) {
        double x[EFFECTS];
        for (int i = 0; i < EFFECTS; i++) {
            x[i] = i == column ? 1.0 : 0.0;
            for (int c = 0; c < i; c++) x[i] -= L[i][c] * x[c];
            x[i] *= L[i][i];
        }
        for (int i = EFFECTS - 1; i >= 0; i--) {
            for (int c = i + 1; c < EFFECTS; c++) x[i] -= L[c][i] * x[c];
            x[i] *= L[i][i];
        }
        for (int i = 0; i < EFFECTS; i++) inverse[i][column] = x[i];
    }
    return ok;
}

// K_g and C_g = L_g K_g X~_g of the levels of this thread.
__device__ void fill_levels(const Design& at, const Work& work, const double gamma[EFFECTS][EFFECTS]) {
    double logdet = 0.0;
    bool ok = true;
    for (long long g = threadIdx.x; g < at.G; g += blockDim.x) {
        double A[EFFECTS][EFFECTS], inverse[EFFECTS][EFFECTS];
        for (int i = 0; i < EFFECTS; i++)
            for (int j = 0; j < EFFECTS; j++) {
                A[i][j] = i == j ? 1.0 : 0.0;
                for (int a = 0; a < EFFECTS; a++)
                    for (int b = 0; b < EFFECTS; b++)
                        A[i][j] += root_of(at, a, i, g) * gamma[a][b] * root_of(at, b, j, g);
            }
        ok = invert(A, inverse, logdet) && ok;
        for (int a = 0; a < EFFECTS; a++) {
            double moved[EFFECTS];
            for (int c = 0; c < EFFECTS; c++) {
                work.inverse[g * MATRIX + a * EFFECTS + c] = inverse[a][c];
                moved[c] = 0.0;
                for (int i = 0; i < EFFECTS; i++) moved[c] += root_of(at, a, i, g) * inverse[i][c];
            }
            for (int i = 0; i < FIXED; i++) {
                double value = 0.0;
                for (int c = 0; c < EFFECTS; c++) value += moved[c] * loads_of(at, c, g)[i];
                work.C[(g * EFFECTS + a) * FIXED + i] = value;
            }
        }
    }
    work.logdets[threadIdx.x] = logdet;
    work.logdets[blockDim.x + threadIdx.x] = ok ? 1.0 : 0.0;
}

// A = within + sum X~_g' K_g X~_g and X'P0-like sums of y, an entry per thread.
__device__ void fill_border(const Design& at, const Work& work) {
    for (int i = threadIdx.x; i < SQUARE + FIXED; i += blockDim.x) {
        const int row = i < SQUARE ? i / FIXED : i - SQUARE, column = i % FIXED;
        double sum = i < SQUARE ? at.within[at.at * SQUARE + i] : at.outside[row];
        for (long long g = 0; g < at.G; g++)
            for (int a = 0; a < EFFECTS; a++)
                for (int c = 0; c < EFFECTS; c++) {
                    const double right = i < SQUARE ? loads_of(at, c, g)[column] : at.y[c * at.G + g];
                    sum += loads_of(at, a, g)[row] * work.inverse[g * MATRIX + a * EFFECTS + c] * right;
                }
        (i < SQUARE ? work.A[i] : work.rhs[row]) = sum;
    }
}

// Cholesky factor of A in its lower triangle, with inverse pivots, by one thread; its log determinant, NaN if there is none.
__device__ double factorise(const Work& work) {
    double logdet = 0.0;
    for (int j = 0; j < FIXED; j++) {
        double pivot = work.A[j * FIXED + j];
        for (int c = 0; c < j; c++) pivot -= work.A[j * FIXED + c] * work.A[j * FIXED + c];
        logdet += pivot > 0 ? log(pivot) : log(-1.0);
        const double inverse = work.A[j * FIXED + j] = 1.0 / sqrt(pivot > 0 ? pivot : 1.0);
        for (int i = j + 1; i < FIXED; i++) {
            double entry = work.A[i * FIXED + j];
            for (int c = 0; c < j; c++) entry -= work.A[i * FIXED + c] * work.A[j * FIXED + c];
            work.A[i * FIXED + j] = entry * inverse;
        }
    }
    return logdet;
}

// W = A^-1, a column per thread, and beta = W rhs in the place of the column FIXED.
__device__ void solve_border(const Work& work) {
    for (int column = threadIdx.x; column <= FIXED; column += blockDim.x) {
        double x[FIXED];
        for (int i = 0; i < FIXED; i++) {
            x[i] = column == FIXED ? work.rhs[i] : i == column ? 1.0 : 0.0;
            for (int c = 0; c < i; c++) x[i] -= work.A[i * FIXED + c] * x[c];
            x[i] *= work.A[i * FIXED + i];
        }
        for (int i = FIXED - 1; i >= 0; i--) {
            for (int c = i + 1; c < FIXED; c++) x[i] -= work.A[c * FIXED + i] * x[c];
            x[i] *= work.A[i * FIXED + i];
        }
        for (int i = 0; i < FIXED; i++) (column == FIXED ? work.beta[i] : work.W[i * FIXED + column]) = x[i];
    }
}

// R_l = sum C_g' E_l C_g, an entry per thread.
__device__ void fill_moments(const Design& at, const Work& work) {
    const int pair_a[K] = PAIR_A, pair_b[K] = PAIR_B;
    for (int i = threadIdx.x; i < K * SQUARE; i += blockDim.x) {
        const int l = i / SQUARE, row = i % SQUARE / FIXED, column = i % FIXED;
        int a = 0, b = 0;
        for (int other = 0; other < K; other++)
            if (other == l) a = pair_a[other], b = pair_b[other];
        double sum = 0.0;
        for (long long g = 0; g < at.G; g++) {
            const double *left = work.C + (g * EFFECTS + a) * FIXED, *right = work.C + (g * EFFECTS + b) * FIXED;
            sum += left[row] * right[column];
            if (a != b) sum += right[row] * left[column];
        }
        work.R[i] = sum;
    }
}

__device__ void multiply_moments(const Work& work) {
    for (int i = threadIdx.x; i < K * SQUARE; i += blockDim.x) {
        const double *row = work.R + i / FIXED * FIXED, *column = work.W + i % FIXED;
        work.RW[i] = 0.0;
        for (int c = 0; c < FIXED; c++) work.RW[i] += row[c] * column[c * FIXED];
    }
}

// tr(E_l A E_m B) of the effects (a, b) of l and (c, d) of m.
__device__ double crossed(const double A[EFFECTS][EFFECTS], const double B[EFFECTS][EFFECTS], int a, int b, int c,
                          int d) {
    double sum = A[b][c] * B[d][a];
    if (a != b) sum += A[a][c] * B[d][b];
    if (c != d) sum += A[b][d] * B[c][a];
    if (a != b && c != d) sum += A[a][d] * B[c][b];
    return sum;
}

// What a level adds to the sums of its thread.
__device__ void add_level(const Design& at, const Work& work, long long g, double* sums) {
    const int pair_a[K] = PAIR_A, pair_b[K] = PAIR_B;
    const double* C = work.C + g * EFFECTS * FIXED;
    double M[EFFECTS][EFFECTS], N[EFFECTS][EFFECTS], moved[EFFECTS][EFFECTS], rest[EFFECTS], e[EFFECTS], t[EFFECTS];
    for (int a = 0; a < EFFECTS; a++) {
        rest[a] = at.y[a * at.G + g];
        for (int i = 0; i < FIXED; i++) rest[a] -= loads_of(at, a, g)[i] * work.beta[i];
        for (int c = 0; c < EFFECTS; c++) {
            moved[a][c] = 0.0;
            for (int i = 0; i < EFFECTS; i++)
                moved[a][c] += root_of(at, a, i, g) * work.inverse[g * MATRIX + i * EFFECTS + c];
        }
    }
    for (int a = 0; a < EFFECTS; a++) {
        e[a] = 0.0;
        for (int c = 0; c < EFFECTS; c++) e[a] += moved[a][c] * rest[c];
        for (int b = 0; b < EFFECTS; b++) {
            M[a][b] = N[a][b] = 0.0;
            for (int c = 0; c < EFFECTS; c++) M[a][b] += moved[a][c] * root_of(at, b, c, g);
            for (int i = 0; at.reml && i < FIXED; i++)
                for (int j = 0; j < FIXED; j++)
                    N[a][b] += C[a * FIXED + i] * work.W[i * FIXED + j] * C[b * FIXED + j];
        }
    }
    for (int a = 0; a < EFFECTS; a++) {  // the coordinates L_g^+ e
        const double pivot = root_of(at, a, a, g);
        t[a] = e[a];
        for (int c = 0; c < a; c++) t[a] -= root_of(at, a, c, g) * t[c];
        t[a] = pivot > 0 ? t[a] / pivot : 0.0;
        sums[SUM_SQUARES] += t[a] * t[a];
        for (int i = 0; i < FIXED; i++) sums[SUM_X + i] += loads_of(at, a, g)[i] * t[a];
    }
    for (int l = 0; l < K; l++) {
        const int a = pair_a[l], b = pair_b[l];
        const double times = a == b ? 1.0 : 2.0;
        sums[SUM_T + l] += times * (M[a][b] - N[a][b]);
        sums[SUM_E + l] += times * (e[a] * e[b]);
        for (int m = 0; m < K; m++) {
            const int c = pair_a[m], d = pair_b[m];
            sums[SUM_B + l * K + m] += crossed(M, M, a, b, c, d) - 2.0 * crossed(M, N, a, b, c, d);
        }
    }
}

__device__ void add_up(const Design& at, const Work& work) {
    double sums[SUMS] = {};
    for (long long g = threadIdx.x; g < at.G; g += blockDim.x) add_level(at, work, g, sums);
    for (int i = 0; i < SUMS; i++) work.sums[i * (blockDim.x + 1) + threadIdx.x] = sums[i];
}

// Every sum over the threads, to its first place; those of B with the part of the moments.
__device__ void reduce(const Design& at, const Work& work) {
    for (int i = threadIdx.x; i < SUMS; i += blockDim.x) {
        double* row = work.sums + i * (blockDim.x + 1);
        for (int thread = 1; thread < blockDim.x; thread++) row[0] += row[thread];
        if (!at.reml || i < SUM_B || i >= SUM_E) continue;
        const double *left = work.RW + (i - SUM_B) / K * SQUARE, *right = work.RW + (i - SUM_B) % K * SQUARE;
        double sum = 0.0;
        for (int r = 0; r < FIXED; r++)
            for (int c = 0; c < FIXED; c++) sum += left[r * FIXED + c] * right[c * FIXED + r];
        row[0] += sum;
    }
}

// Traces at the ratios from the sums.
__device__ void collect(const Design& at, const Work& work, const double* ratios, double logdet_A, Traces& found) {
    const int stride = blockDim.x + 1;
    double squares = work.sums[SUM_SQUARES * stride], gE = 0.0, size = 0.0, logdet = 0.0;
    bool ok = logdet_A == logdet_A;
    for (int thread = 0; thread < blockDim.x; thread++) {
        logdet += work.logdets[thread];
        ok = ok && work.logdets[blockDim.x + thread] > 0.5;
    }
    for (int j = 0; j < FIXED; j++) {  // h = -B'X~'t
        double h = 0.0;
        for (int i = 0; i < FIXED; i++)
            h -= at.border[at.at * SQUARE + i * FIXED + j] * work.sums[(SUM_X + i) * stride];
        squares += h * h;
    }
    for (int l = 0; l < K; l++) {
        found.T[l] = work.sums[(SUM_T + l) * stride];
        found.E[l] = work.sums[(SUM_E + l) * stride];
        for (int m = 0; m < K; m++) found.B[l][m] = work.sums[(SUM_B + l * K + m) * stride];
        gE += ratios[l] * found.E[l];
        size += fabs(ratios[l] * found.E[l]);
    }
    found.between_ss = squares + gE;
    found.between_error = squares + size;
    found.logdet = at.reml ? logdet + logdet_A : logdet;
    found.ok = ok;
    found.outside_table = false;
}

// Traces at the ratios; all threads of the block get them.
__device__ void evaluate(const Design& at, const Work& work, const double* ratios, Traces& found) {
    __shared__ double logdet_A;
    double gamma[EFFECTS][EFFECTS];
    fill_gamma(ratios, gamma);
    fill_levels(at, work, gamma);
    __syncthreads();
    fill_border(at, work);
    if (at.reml) fill_moments(at, work);
    __syncthreads();
    if (threadIdx.x == 0) logdet_A = factorise(work);
    __syncthreads();
    solve_border(work);
    __syncthreads();
    if (at.reml) multiply_moments(work);
    add_up(at, work);
    __syncthreads();
    reduce(at, work);
    __syncthreads();
    collect(at, work, ratios, logdet_A, found);
    __syncthreads();  // everybody has read the sums
}

extern "C" __global__ void grouped_effects(
    const double* root, const double* loads, const double* within, const double* border, const double* y,
    const double* outside, const double* yry, const double* rss, const double* N, const double* residual_df,
    const double* start, const long long* niter0, const long long* refused0, long long designs, long long G,
    long long b, bool reml, double epsilon, long long max_iter, long long most_refused, bool nonnegative,
    bool relaxed, double* theta, double* yPy, long long* niter, long long* refused, long long* status) {
    extern __shared__ double memory[];
    const long long gene = blockIdx.x;
    const Rules rules = {epsilon, max_iter, most_refused, nonnegative, relaxed};
    const Gene of = {N[gene], yry[gene] / residual_df[gene], rss[gene]};
    const Design design = {root, loads, within, border, G, designs, designs > 1 ? gene : 0,
                           y + gene * EFFECTS * G, outside + gene * FIXED, reml};
    const Work work = divided(memory, G);
    State state;
    begin(state, start, niter0, refused0, gene, b);
    while (!state.done) {  // the same in all threads
        double trial[ROWS], at_trial[K];
        Traces found;
        Evaluation evaluation;
        next_trial(rules, state, trial);
        ratios(trial, at_trial);
        evaluate(design, work, at_trial, found);
        compose(of, trial[K], at_trial, found, evaluation);
        advance(rules, trial, evaluation, state);
    }
    if (threadIdx.x == 0) store(state, {theta, yPy, niter, refused, status}, gene, b);
}
