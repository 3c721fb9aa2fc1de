// Sums over cells by groups of cells, for the values of a chunk that lie on a device. See cuda_sums.py.
//
// VALUE is the type of the stored values, INDEX that of the indices of a compressed matrix, KIND its layout. Sums are
// integers, so that they do not depend on the order in which threads add: a product p with |p| < 2^31 is split into two
// 32-bit numbers, high = round(p) and low = round((p - high) 2^31), which are added to 64-bit integers.
enum { CSR, CSC, DENSE };
enum { AS_IS, LOG, NORMALIZED };
enum { UNUSABLE, FRACTION, NEGATIVE };

struct Cell {
  long long row;   // of all cells
  long long gene;  // of all genes
  VALUE value;
  bool inside;
};

struct Layout {
  const VALUE* data;
  const INDEX* places;
  const long long* begins;
  long long majors, minors, first_row, first_gene;

  __device__ long long begin(long long major) const { return KIND == DENSE ? major * minors : begins[major]; }

  __device__ Cell cell(long long major, long long i) const {
    long long minor = KIND == DENSE ? i - major * minors : (long long)places[i];
    Cell found;
    found.inside = minor >= 0 && minor < minors;
    found.row = first_row + (KIND == CSC ? minor : major);
    found.gene = first_gene + (KIND == CSC ? major : minor);
    found.value = data[i];
    return found;
  }
};

struct Transform {
  int mode;
  double divisor;         // of logarithms
  const double* factors;  // size factors of all cells
  const double* centre;   // of all genes, or null

  __device__ double operator()(const Cell& at) const {
    double y = (double)at.value;
    if (mode == AS_IS) return centre ? y - centre[at.gene] : y;
    return log1p(mode == NORMALIZED ? y / factors[at.row] : y) / divisor;
  }

  __device__ bool usable(const Cell& at) const {
    double y = (double)at.value;
    return at.inside && fabs(y) < 1e70 && (mode == AS_IS || y >= 0);
  }
};

// The values of a matrix, in warps: a warp takes rows (genes, if CSC) one after the other, its threads their values.
#define FOR_EACH_VALUE(layout, at)                                                                            \
  for (long long major = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / 32; major < layout.majors;      \
       major += gridDim.x * (long long)blockDim.x / 32)                                                       \
    for (long long i = layout.begin(major) + threadIdx.x % 32; i < layout.begin(major + 1); i += 32)          \
      if (const Cell at = layout.cell(major, i); true)

// Exponents of the largest absolute value of each gene (|v| < 2^exponent), and flags of what is wrong with the values.
extern "C" __global__ void largest(const VALUE* data, const INDEX* places, const long long* begins, long long majors,
                                   long long minors, long long first_row, long long first_gene, int mode,
                                   double divisor, const double* factors, const double* centre, int* exponents,
                                   int* flags) {
  const Layout layout = {data, places, begins, majors, minors, first_row, first_gene};
  const Transform transform = {mode, divisor, factors, centre};
  FOR_EACH_VALUE(layout, at) {
    if (!transform.usable(at)) {
      atomicMax(flags + UNUSABLE, 1);
      continue;
    }
    if ((double)at.value != floor((double)at.value)) atomicMax(flags + FRACTION, 1);
    if ((double)at.value < 0) atomicMax(flags + NEGATIVE, 1);
    double v = transform(at);
    if (v == 0.0) continue;
    int exponent = ilogb(fabs(v)) + 1;
    if (exponent > exponents[at.gene]) atomicMax(exponents + at.gene, exponent);
  }
}

__device__ void add(unsigned long long* high, unsigned long long* low, long long at, double p) {
  double rounded = rint(p);
  long long h = (long long)rounded, l = (long long)rint((p - rounded) * 2147483648.0);
  if (h) atomicAdd(high + at, (unsigned long long)h);
  if (l) atomicAdd(low + at, (unsigned long long)l);
}

// Add every value to the rows of its groups, to those of the covariates, and its square to the last one.
//
// codes (groupings, cells) are rows of the tables; factors (groupings + covariates + 1, cells) are of size 1 at most.
extern "C" __global__ void group_sums(const VALUE* data, const INDEX* places, const long long* begins,
                                      long long majors, long long minors, long long first_row, long long first_gene,
                                      int mode, double divisor, const double* size_factors, const double* centre,
                                      const int* exponents, int groupings, int covariates, long long cells,
                                      const int* codes, const double* factors, long long groups, long long genes,
                                      unsigned long long* high, unsigned long long* low) {
  const Layout layout = {data, places, begins, majors, minors, first_row, first_gene};
  const Transform transform = {mode, divisor, size_factors, centre};
  FOR_EACH_VALUE(layout, at) {
    if (!transform.usable(at)) continue;
    double v = transform(at);
    if (v == 0.0) continue;
    double unit = ldexp(v, -exponents[at.gene]), p = ldexp(unit, 31);  // |unit| < 1
    const double* factor = factors + at.row;
    for (int g = 0; g < groupings; g++, factor += cells)
      add(high, low, codes[g * cells + at.row] * genes + at.gene, p * *factor);
    for (int h = 0; h < covariates; h++, factor += cells)
      add(high, low, (groups + h) * genes + at.gene, p * *factor);
    add(high, low, (groups + covariates) * genes + at.gene, p * unit * *factor);
  }
}

// Add the integers of a chunk to the sums (rows, genes), and begin again at zero. The last row holds squares.
extern "C" __global__ void fold(const int* exponents, const int* row_exponents, long long rows, long long genes,
                                long long lo, long long hi, unsigned long long* high, unsigned long long* low,
                                double* sums) {
  long long count = rows * (hi - lo), stride = gridDim.x * (long long)blockDim.x;
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < count; i += stride) {
    long long row = i / (hi - lo), gene = lo + i % (hi - lo), at = row * genes + gene;
    long long h = (long long)high[at], l = (long long)low[at];
    if (!h && !l) continue;
    int exponent = exponents[gene] * (row == rows - 1 ? 2 : 1) + row_exponents[row] - 31;
    sums[at] += ldexp((double)h + (double)l / 2147483648.0, exponent);
    high[at] = low[at] = 0;
  }
}
