// (A1 − λA2)V and its gradients on CPUs: float32 on any, bfloat16 where the processor multiplies it.
//
// Letters as in ops.py.py: B batch, H heads, N tokens, D head width; a pair is two heads of q and k and one of
// v, which is 2D wide. A thread takes one pair of one image at a time, and of its queries `rows` at a time, so that
// the maps of a step (rows × N) stay in the second-level cache. Maps, sums and products are float32; the operands of
// the matrix products have the type of the tensors.
//
// The matrix products are PyTorch's (oneDNN's brgemm): C = A·B with A row by row and B packed, for bfloat16 in twos
// (K × N → [K/2][N][2]), which is what the processor multiplies. K is then even: odd ends are filled with zeros.
// Where it has none, and for long rows without AVX-512, float32 is multiplied by the BLAS that PyTorch brings along.
// The gradients of k and v, sums over queries, are made transposed, dVᵀ = dOᵀ·A, since A is at hand as a right operand.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <omp.h>
#include <vector>

namespace c10 {
struct BFloat16 {
  uint16_t bits;
};
}  // namespace c10

namespace at::native::cpublas {  // declared here, so that compiling takes two seconds and none of PyTorch's headers
void brgemm(int64_t M, int64_t N, int64_t K, int64_t lda, int64_t ldb, int64_t ldc, bool add, const float* A,
            const float* B, float* C, bool packed);
void brgemm(int64_t M, int64_t N, int64_t K, int64_t lda, int64_t ldb, int64_t ldc, bool add, const c10::BFloat16* A,
            const c10::BFloat16* B, float* C, bool packed);
void brgemm_release(bool packed);
}  // namespace at::native::cpublas

extern "C" void sgemm_(const char* transa, const char* transb, const int* m, const int* n, const int* k,
                       const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
                       const float* beta, float* c, const int* ldc);

namespace {
using at::native::cpublas::brgemm;
using c10::BFloat16;

template <class T>
constexpr int PACK = 4 / sizeof(T);  // rows of a right operand that lie interleaved

inline float load(float x) { return x; }
inline float load(BFloat16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float made;
  memcpy(&made, &bits, 4);
  return made;
}
inline void store(float& to, float x) { to = x; }
inline void store(BFloat16& to, float x) {  // to the nearest, ties to even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &x, 4);
  to.bits = x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : 0x7fc0;
}

// 2^x for x ≤ 0, relative error 1e-7; below −126 it stays at 2^−126. x = n + f with n whole and |f| ≤ ½: a polynomial
// (through the Chebyshev nodes) gives 2^f, and n goes into its exponent. Adding 1.5·2^23 rounds, and leaves n in the lowest bits.
inline float power_of_two(float x) {
  constexpr float ROUND = 12582912.0f;
  x = std::max(x, -126.0f);
  const float rounded = x + ROUND, f = x - (rounded - ROUND);
  float p = 1.3390863364e-3f;
  p = p * f + 9.6760319183e-3f;
  p = p * f + 5.5503571142e-2f;
  p = p * f + 2.4022107485e-1f;
  p = p * f + 6.9314718803e-1f;
  p = p * f + 1.0000000755f;
  int32_t bits, whole;
  memcpy(&bits, &p, 4);
  memcpy(&whole, &rounded, 4);
  bits += (int32_t)((uint32_t)whole << 23);
  memcpy(&p, &bits, 4);
  return p;
}

// softmax of the first `seen` of `width` numbers times scale, of two rows in place; the others become 0. Two at a time,
// because a row alone is too short to keep the processor busy.
void softmax(float* x, float* y, int seen, int width, float scale) {
  for (int j = seen; j < width; j++) x[j] = y[j] = -3e38f;
  float x_highest = x[0], y_highest = y[0], x_sum = 0, y_sum = 0;
#pragma omp simd reduction(max : x_highest, y_highest)
  for (int j = 0; j < width; j++) x_highest = std::max(x_highest, x[j]), y_highest = std::max(y_highest, y[j]);
  const float slope = scale * 1.44269504f;  // log2 e
#pragma omp simd reduction(+ : x_sum, y_sum)
  for (int j = 0; j < width; j++) {
    x_sum += x[j] = power_of_two((x[j] - x_highest) * slope);
    y_sum += y[j] = power_of_two((y[j] - y_highest) * slope);
  }
  const float x_factor = 1 / x_sum, y_factor = 1 / y_sum;
#pragma omp simd
  for (int j = 0; j < width; j++) x[j] *= x_factor, y[j] *= y_factor;
  for (int j = seen; j < width; j++) x[j] = y[j] = 0;
}

// A tensor (B, heads, N, width) whose last dimension is contiguous.
template <class T>
struct View {
  T* data;
  int64_t image, head, token;
  T* at(int64_t i, int64_t h, int64_t n = 0) const { return data + i * image + h * head + n * token; }
};

template <class T>
View<T> view(void* data, const int64_t*& strides) {
  View<T> made{(T*)data, strides[0], strides[1], strides[2]};
  strides += 3;
  return made;
}

int rounded_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// (n, width) → (width, n).
template <class U>
void transpose(const U* x, int64_t row, int n, int width, U* out, int64_t out_row) {
  for (int i = 0; i < n; i += 16)
    for (int j = 0; j < width; j += 16)
      for (int jj = j; jj < std::min(width, j + 16); jj++)
        for (int ii = i; ii < std::min(n, i + 16); ii++) out[jj * out_row + ii] = x[ii * row + jj];
}

// Right operand X: (n, width) → [n/PACK][width][PACK].
template <class T>
void pack(const T* x, int64_t row, int n, int width, T* out) {
  for (int i = 0; i < n; i += PACK<T>)
    for (int part = 0; part < PACK<T>; part++)
      for (int j = 0; j < width; j++)
        out[(int64_t)i * width + j * PACK<T> + part] = i + part < n ? x[(i + part) * row + j] : T{};
}

// Right operand Xᵀ: (n, width) → [width/PACK][n][PACK]: a transposition of PACK numbers at a time.
template <class T>
void pack_transposed(const T* x, int64_t row, int n, int width, T* out) {
  transpose((const uint32_t*)x, row / PACK<T>, n, width / PACK<T>, (uint32_t*)out, n);
}

// Left operand Xᵀ: (n, width) → (width, n rounded up to PACK).
template <class T>
void transposed(const T* x, int64_t row, int n, int width, T* out) {
  const int padded = rounded_up(n, PACK<T>);
  for (int j = 0; j < width && padded > n; j++) out[(int64_t)j * padded + n] = T{};
  transpose(x, row, n, width, out, padded);
}

bool has_brgemm = true;  // `usable` finds out; of float32 alone, since BLAS has no bfloat16
// With AVX2 brgemm is fast for short rows alone: it reads a long B across many pages, which BLAS packs first.
#ifdef __AVX512F__
constexpr int LONGEST = std::numeric_limits<int>::max();
#else
constexpr int LONGEST = 128;
#endif

// C = A·B, row by row. BLAS counts by columns, in which the same numbers are Cᵀ = Bᵀ·Aᵀ.
void multiply(int m, int n, int k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
              bool add) {
  if (has_brgemm && std::max(n, k) <= LONGEST) return brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, false);
  const int row_a = lda, row_b = ldb, row_c = ldc;
  const float one = 1, beta = add;
  sgemm_("N", "N", &n, &m, &k, &one, b, &row_b, a, &row_a, &beta, c, &row_c);
}
void multiply(int m, int n, int k, const BFloat16* a, int64_t lda, const BFloat16* b, int64_t ldb, float* c,
              int64_t ldc, bool add) {
  brgemm(m, n, rounded_up(k, 2), lda, ldb, ldc, add, a, b, c, true);
}

// A thread gives back what brgemm set up in it.
template <class T>
void release() {
  if (has_brgemm) at::native::cpublas::brgemm_release(PACK<T> == 2);
}

template <class T>
void write(const float* x, int64_t row, int n, int width, float factor, T* out, int64_t out_row) {
  for (int i = 0; i < n; i++) {
    T* to = out + i * out_row;
    const float* from = x + i * row;
#pragma omp simd
    for (int j = 0; j < width; j++) store(to[j], factor * from[j]);
  }
}

struct Shape {
  int batch, heads, length, width, rows;
  float lam;
  bool causal;
  int pairs() const { return batch * heads / 2; }
  float scale() const { return 1 / std::sqrt((float)width); }
  // A row of a map in memory: whole vectors of 16.
  int row() const { return rounded_up(length, 16); }
};

template <class T>
void forward(const Shape& s, View<T> q, View<T> k, View<T> v, View<T> out) {
  const int N = s.length, D = s.width, row = s.row(), steps = (N + s.rows - 1) / s.rows;
  // Where there are fewer pairs than threads, several threads share the queries of a pair.
  const int shares = std::min(steps, (omp_get_max_threads() + s.pairs() - 1) / s.pairs());
#pragma omp parallel
  {
    std::vector<float> map1((size_t)s.rows * row), map2((size_t)s.rows * row), result((size_t)s.rows * 2 * D);
    std::vector<T> combined((size_t)s.rows * row), keys1((size_t)N * D), keys2((size_t)N * D);
    std::vector<T> values((size_t)(N + 1) * 2 * D);
#pragma omp for schedule(dynamic) collapse(2)
    for (int pair = 0; pair < s.pairs(); pair++)
      for (int share = 0; share < shares; share++) {
        const int b = pair / (s.heads / 2), p = pair % (s.heads / 2);
        pack_transposed(k.at(b, 2 * p), k.token, N, D, keys1.data());
        pack_transposed(k.at(b, 2 * p + 1), k.token, N, D, keys2.data());
        pack(v.at(b, p), v.token, N, 2 * D, values.data());
        for (int step = steps * share / shares; step < steps * (share + 1) / shares; step++) {
          const int start = step * s.rows, m = std::min(s.rows, N - start), seen = s.causal ? start + m : N;
          const int width = rounded_up(seen, 16);
          multiply(m, seen, D, q.at(b, 2 * p, start), q.token, keys1.data(), N, map1.data(), row, false);
          multiply(m, seen, D, q.at(b, 2 * p + 1, start), q.token, keys2.data(), N, map2.data(), row, false);
          for (int i = 0; i < m; i++) {
            float *a1 = &map1[(size_t)i * row], *a2 = &map2[(size_t)i * row];
            T* a = &combined[(size_t)i * row];
            softmax(a1, a2, s.causal ? start + i + 1 : N, width, s.scale());
#pragma omp simd
            for (int j = 0; j < width; j++) store(a[j], a1[j] - s.lam * a2[j]);
          }
          multiply(m, 2 * D, seen, combined.data(), row, values.data(), 2 * D, result.data(), 2 * D, false);
          write(result.data(), 2 * D, m, 2 * D, 1, out.at(b, p, start), out.token);
        }
      }
    release<T>();
  }
}

// What a thread of the backward pass needs for the rows of one step.
template <class T>
struct Maps {
  std::vector<float> a1, a2, y;          // A1, A2 and Y = dO·Vᵀ
  std::vector<T> combined, ds1, ds2;     // A1 − λA2, packed; dS1 and dS2/(−λ), row by row
  std::vector<T> packed_ds1, packed_ds2;  // the same, packed
  Maps(size_t size) : a1(size), a2(size), y(size), combined(size), ds1(size), ds2(size) {
    if (PACK<T> > 1) packed_ds1.resize(size), packed_ds2.resize(size);
  }
  const T* right1() const { return PACK<T> > 1 ? packed_ds1.data() : ds1.data(); }
  const T* right2() const { return PACK<T> > 1 ? packed_ds2.data() : ds2.data(); }
};

// Row i of A1 and A2 to that of A1 − λA2, dS1 and dS2/(−λ); returns what the row adds to dλ.
template <class T>
float differentiate(Maps<T>& maps, int i, int row, int width, float lam) {
  float *a1 = &maps.a1[(size_t)i * row], *a2 = &maps.a2[(size_t)i * row];
  const float* y = &maps.y[(size_t)i * row];
  T *ds1 = &maps.ds1[(size_t)i * row], *ds2 = &maps.ds2[(size_t)i * row];
  float sum1 = 0, sum2 = 0;
#pragma omp simd reduction(+ : sum1, sum2)
  for (int j = 0; j < width; j++) sum1 += a1[j] * y[j], sum2 += a2[j] * y[j];
  T* combined = &maps.combined[(size_t)i * row];  // in twos, filled by `interleave` instead
#pragma omp simd
  for (int j = 0; j < width; j++) {
    store(ds1[j], a1[j] * (y[j] - sum1));
    store(ds2[j], a2[j] * (y[j] - sum2));
    if constexpr (PACK<T> == 1)
      combined[j] = a1[j] - lam * a2[j];
    else
      a1[j] -= lam * a2[j];
  }
  return -sum2;
}

// Rows i and i + 1, which may be missing, of the three maps as pairs of numbers.
void interleave(Maps<BFloat16>& maps, int i, bool two, int row, int width) {
  const size_t at = (size_t)i * row;
  const float *a = &maps.a1[at], *next = a + (two ? row : 0);
  const BFloat16 *ds1 = &maps.ds1[at], *ds2 = &maps.ds2[at];
  uint32_t *combined = (uint32_t*)&maps.combined[at], *right1 = (uint32_t*)&maps.packed_ds1[at],
           *right2 = (uint32_t*)&maps.packed_ds2[at];
  const uint32_t mask = two ? 0xffff0000u : 0;
  const int step = two ? row : 0;
#pragma omp simd
  for (int j = 0; j < width; j++) {
    BFloat16 low, high;
    store(low, a[j]);
    store(high, next[j]);
    combined[j] = low.bits | ((uint32_t)high.bits << 16 & mask);
    right1[j] = ds1[j].bits | ((uint32_t)ds1[j + step].bits << 16 & mask);
    right2[j] = ds2[j].bits | ((uint32_t)ds2[j + step].bits << 16 & mask);
  }
}

template <class T>
double backward(const Shape& s, View<T> grad, View<T> q, View<T> k, View<T> v, View<T> dq, View<T> dk, View<T> dv) {
  const int N = s.length, D = s.width, row = s.row(), rows = rounded_up(s.rows, PACK<T>);
  const float factors[2] = {s.scale(), -s.lam * s.scale()};
  std::vector<double> dlam(s.pairs());  // added up in order, so that the sum does not depend on the threads
#pragma omp parallel
  {
    Maps<T> maps((size_t)rows * row);
    std::vector<T> keys[2], packed_keys[2], values((size_t)N * 2 * D), left((size_t)2 * D * rows);
    std::vector<float> dkeys[2], dvalues((size_t)2 * D * N), result((size_t)rows * D), turned((size_t)N * 2 * D);
    for (int g : {0, 1}) keys[g].resize((size_t)N * D), packed_keys[g].resize((size_t)(N + 1) * D), dkeys[g].resize((size_t)D * N);
#pragma omp for schedule(dynamic)
    for (int pair = 0; pair < s.pairs(); pair++) {
      const int b = pair / (s.heads / 2), p = pair % (s.heads / 2);
      for (int g : {0, 1}) {
        pack_transposed(k.at(b, 2 * p + g), k.token, N, D, keys[g].data());
        pack(k.at(b, 2 * p + g), k.token, N, D, packed_keys[g].data());
      }
      pack_transposed(v.at(b, p), v.token, N, 2 * D, values.data());
      // From the end, so that the first step reaches every key also under a causal mask, and the others add to it.
      for (int start = (N - 1) / s.rows * s.rows; start >= 0; start -= s.rows) {
        const int m = std::min(s.rows, N - start), seen = s.causal ? start + m : N, width = rounded_up(seen, 16);
        const int padded = rounded_up(m, PACK<T>);
        const bool add = start + m < N;
        multiply(m, seen, D, q.at(b, 2 * p, start), q.token, keys[0].data(), N, maps.a1.data(), row, false);
        multiply(m, seen, D, q.at(b, 2 * p + 1, start), q.token, keys[1].data(), N, maps.a2.data(), row, false);
        multiply(m, seen, 2 * D, grad.at(b, p, start), grad.token, values.data(), N, maps.y.data(), row, false);
        for (int i = 0; i < m; i++) {
          float *a1 = &maps.a1[(size_t)i * row], *a2 = &maps.a2[(size_t)i * row];
          softmax(a1, a2, s.causal ? start + i + 1 : N, width, s.scale());
          std::fill(&maps.y[(size_t)i * row] + seen, &maps.y[(size_t)i * row] + width, 0.0f);
          dlam[pair] += differentiate(maps, i, row, width, s.lam);
          if constexpr (PACK<T> == 2)
            if (i % 2 == 1 || i == m - 1) interleave(maps, i - i % 2, i % 2 == 1, row, width);
        }
        transposed(grad.at(b, p, start), grad.token, m, 2 * D, left.data());
        multiply(2 * D, seen, m, left.data(), padded, maps.combined.data(), row, dvalues.data(), N, add);
        for (int g : {0, 1}) {
          const T* ds = g ? maps.ds2.data() : maps.ds1.data();
          multiply(m, D, seen, ds, row, packed_keys[g].data(), D, result.data(), D, false);
          write(result.data(), D, m, D, factors[g], dq.at(b, 2 * p + g, start), dq.token);
          transposed(q.at(b, 2 * p + g, start), q.token, m, D, left.data());
          multiply(D, seen, m, left.data(), padded, g ? maps.right2() : maps.right1(), row, dkeys[g].data(), N, add);
        }
      }
      transpose(dvalues.data(), N, 2 * D, N, turned.data(), 2 * D);
      write(turned.data(), 2 * D, N, 2 * D, 1, dv.at(b, p), dv.token);
      for (int g : {0, 1}) {
        transpose(dkeys[g].data(), N, D, N, turned.data(), D);
        write(turned.data(), D, N, D, factors[g], dk.at(b, 2 * p + g), dk.token);
      }
    }
    release<T>();
  }
  double sum = 0;
  for (double one : dlam) sum += one;
  return sum;
}

template <class T>
double run(const Shape& s, void** tensors, const int64_t* strides, bool gradients) {
  View<T> views[7];
  for (int i = 0; i < (gradients ? 7 : 4); i++) views[i] = view<T>(tensors[i], strides);
  auto& [a, b, c, d, e, f, g] = views;
  if (gradients) return backward(s, a, b, c, d, e, f, g);
  forward(s, a, b, c, d);
  return 0;
}

// RMSNorm of rows: y = x·r·w with r = 1/√(mean x² + eps).
template <class T>
void norm(const T* x, const float* weight, T* y, int64_t rows, int width, float eps) {
#pragma omp parallel for
  for (int64_t i = 0; i < rows; i++) {
    const T* from = x + i * width;
    T* to = y + i * width;
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < width; j++) sum += load(from[j]) * load(from[j]);
    const float r = 1 / std::sqrt(sum / width + eps);
#pragma omp simd
    for (int j = 0; j < width; j++) store(to[j], load(from[j]) * r * weight[j]);
  }
}

// dx = r·(w·g − x·r²·mean(w·g·x)) and dw = Σ g·x·r, g being the gradient of y. dw: PARTS rows for the caller to add
// up, so that the sum does not depend on the threads.
constexpr int PARTS = 64;
template <class T>
void norm_backward(const T* grad, const T* x, const float* weight, T* dx, float* dw, int64_t rows, int width, float eps) {
#pragma omp parallel for
  for (int part = 0; part < PARTS; part++) {
    float* sums = dw + (int64_t)part * width;
    std::fill(sums, sums + width, 0.0f);
    for (int64_t i = rows * part / PARTS; i < rows * (part + 1) / PARTS; i++) {
      const T *from = x + i * width, *g = grad + i * width;
      T* to = dx + i * width;
      float square = 0, product = 0;
#pragma omp simd reduction(+ : square, product)
      for (int j = 0; j < width; j++) {
        square += load(from[j]) * load(from[j]);
        product += load(g[j]) * weight[j] * load(from[j]);
      }
      const float r = 1 / std::sqrt(square / width + eps), shared = r * r * product / width;
#pragma omp simd
      for (int j = 0; j < width; j++) {
        store(to[j], r * (weight[j] * load(g[j]) - shared * load(from[j])));
        sums[j] += load(g[j]) * load(from[j]) * r;
      }
    }
  }
}

template <class T>
bool brgemm_works() {
  try {  // throws where the processor lacks the instructions; inside a parallel region nobody could catch it
    std::vector<T> zeros(256);
    std::vector<float> out(256);
    brgemm(4, 4, 4, 4, 4, 4, false, zeros.data(), zeros.data(), out.data(), PACK<T> == 2);
    at::native::cpublas::brgemm_release(PACK<T> == 2);
    return true;
  } catch (...) {
    return false;
  }
}
}  // namespace

// Whether this processor can.
extern "C" bool usable(bool bfloat16) {
  if (bfloat16) return brgemm_works<BFloat16>();
  has_brgemm = brgemm_works<float>();  if(getenv("NOBR")) has_brgemm=false;
  return true;
}

// Forward: tensors q, k, v, output; returns 0. With gradients: tensors dO, q, k, v, dq, dk, dv; returns dλ.
// strides: of (B, heads, N), in numbers, for each tensor.
extern "C" double attention(bool bfloat16, bool gradients, void** tensors, const int64_t* strides, int batch,
                            int heads, int length, int width, int rows, float lam, bool causal) {
  const Shape s{batch, heads, length, width, rows, lam, causal};
  return bfloat16 ? run<BFloat16>(s, tensors, strides, gradients) : run<float>(s, tensors, strides, gradients);
}

// The norm of the heads: x and y (rows, width). With gradients: dO, x, dx (rows, width), and dw (64, width) in float32.
extern "C" void head_norm(bool bfloat16, bool gradients, void** tensors, const float* weight, float* dw, int64_t rows,
                          int width, float eps) {
  auto& [a, b, c] = *(void* (*)[3])tensors;
  if (bfloat16 && gradients)
    norm_backward((BFloat16*)a, (BFloat16*)b, weight, (BFloat16*)c, dw, rows, width, eps);
  else if (gradients)
    norm_backward((float*)a, (float*)b, weight, (float*)c, dw, rows, width, eps);
  else if (bfloat16)
    norm((BFloat16*)a, weight, (BFloat16*)b, rows, width, eps);
  else
    norm((float*)a, weight, (float*)b, rows, width, eps);
}
