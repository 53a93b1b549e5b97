// Compiled once for each instruction set, with HYPERSEG_ISA naming it. Nothing here may be inline with external
// linkage: the linker keeps one copy of such a function, and it could be the one for the wrong CPU.
#include "primitives.h"

namespace hyperseg::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kBytes = 64, kColumns = 4;
#elif defined(__AVX2__)
constexpr int64_t kBytes = 32, kColumns = 2;
#else
constexpr int64_t kBytes = 16, kColumns = 4;
#endif
constexpr int64_t kRows = 6;  // kRows * kColumns accumulators and kColumns operands fit the registers

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias));
  static constexpr int64_t lanes = kBytes / int64_t(sizeof(T));
};
template <typename T>
using vec = typename Vector<T>::type;

template <typename T>
inline vec<T> load(const T* p) {
  return *reinterpret_cast<const vec<T>*>(p);
}

template <typename T>
inline vec<T> splat(T value) {
  return vec<T>{} + value;
}

template <typename T>
inline vec<T> activate(vec<T> v, Activation act) {
  if (act == Activation::kNone) return v;
  v = v > T(0) ? v : splat(T(0));
  if (act == Activation::kRelu6) v = v < T(6) ? v : splat(T(6));
  return v;
}

template <typename T>
inline void store(T* p, vec<T> v, int64_t count) {
  if (count >= Vector<T>::lanes) {
    *reinterpret_cast<vec<T>*>(p) = v;
  } else {
    for (int64_t i = 0; i < count; ++i) p[i] = v[i];
  }
}

template <typename T, int R, int C>
inline void tile(int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                 const T* bias, Activation act) {
  constexpr int64_t L = Vector<T>::lanes;
  vec<T> sum[R][C];
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < C; ++j) sum[r][j] = splat(bias ? bias[r] : T(0));
  for (int64_t i = 0; i < k; ++i) {
    vec<T> column[C];
    for (int j = 0; j < C; ++j) column[j] = load(b + i * ldb + j * L);
    for (int r = 0; r < R; ++r) {
      const vec<T> value = splat(a[r * lda + i]);
      for (int j = 0; j < C; ++j) sum[r][j] += value * column[j];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < C; ++j) {
      if (j * L < n) store(c + r * ldc + j * L, activate<T>(sum[r][j], act), n - j * L);
    }
}

template <typename T, int C>
inline void rows(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                 const T* bias, Activation act) {
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows)
    tile<T, kRows, C>(n, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, bias ? bias + i : nullptr, act);
  const auto rest = [&](auto r) {
    tile<T, decltype(r)::value, C>(n, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, bias ? bias + i : nullptr, act);
  };
  struct R1 {
    enum { value = 1 };
  };
  struct R2 {
    enum { value = 2 };
  };
  struct R3 {
    enum { value = 3 };
  };
  struct R4 {
    enum { value = 4 };
  };
  struct R5 {
    enum { value = 5 };
  };
  switch (m - i) {
    case 1:
      return rest(R1{});
    case 2:
      return rest(R2{});
    case 3:
      return rest(R3{});
    case 4:
      return rest(R4{});
    case 5:
      return rest(R5{});
  }
}

template <typename T>
void gemm(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
          const T* bias, Activation act) {
  constexpr int64_t L = Vector<T>::lanes;
  int64_t j = 0;
  for (; j + (kColumns - 1) * L < n; j += kColumns * L)
    rows<T, kColumns>(m, n - j, k, a, lda, b + j, ldb, c + j, ldc, bias, act);
  for (; j < n; j += L) rows<T, 1>(m, n - j, k, a, lda, b + j, ldb, c + j, ldc, bias, act);
}

template <typename T>
void dots(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
          const T* bias, Activation act) {
  constexpr int64_t L = Vector<T>::lanes;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const T *x = a + i * lda, *y = b + j * ldb;
      vec<T> sums = splat(T(0));
      int64_t l = 0;
      for (; l + L <= k; l += L) sums += load(x + l) * load(y + l);
      T sum = bias ? bias[i] : T(0);
      for (int64_t s = 0; s < L; ++s) sum += sums[s];
      for (; l < k; ++l) sum += x[l] * y[l];
      if (act != Activation::kNone) sum = sum > T(0) ? sum : T(0);
      if (act == Activation::kRelu6) sum = sum < T(6) ? sum : T(6);
      c[i * ldc + j] = sum;
    }
}

template <typename T>
void depthwise(int64_t channels, int64_t count, int64_t stride, const T* in, int64_t in_map, const T* weights, T* out,
               int64_t out_map, const T* bias) {
  constexpr int64_t L = Vector<T>::lanes;
  for (int64_t ch = 0; ch < channels; ++ch) {
    const T *source = in + ch * in_map, *w = weights + ch * 9;
    T* target = out + ch * out_map;
    vec<T> tap[9];
    for (int t = 0; t < 9; ++t) tap[t] = splat(w[t]);
    const vec<T> shift = splat(bias ? bias[ch] : T(0));
    for (int64_t p = 0; p < count; p += L) {
      vec<T> top = shift, middle = splat(T(0)), bottom = splat(T(0));
      for (int t = 0; t < 3; ++t) {
        top += tap[t] * load(source + p + t);
        middle += tap[3 + t] * load(source + p + stride + t);
        bottom += tap[6 + t] * load(source + p + 2 * stride + t);
      }
      *reinterpret_cast<vec<T>*>(target + p) = activate<T>(top + middle + bottom, Activation::kRelu6);
    }
  }
}

template <typename T>
void blend(const T* __restrict a, const T* __restrict b, T weight, int64_t count, T* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = a[i] * (T(1) - weight) + b[i] * weight;
}

template <typename T>
void widen(const T* __restrict row, const int32_t* __restrict low, const int32_t* __restrict high,
           const T* __restrict weight, int64_t count, T* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = row[low[i]] * (T(1) - weight[i]) + row[high[i]] * weight[i];
}

}  // namespace

#define HYPERSEG_JOIN_(a, b) a##b
#define HYPERSEG_JOIN(a, b) HYPERSEG_JOIN_(a, b)
extern const Primitives<float> HYPERSEG_JOIN(float_, HYPERSEG_ISA);
extern const Primitives<double> HYPERSEG_JOIN(double_, HYPERSEG_ISA);
const Primitives<float> HYPERSEG_JOIN(float_, HYPERSEG_ISA) = {gemm<float>, dots<float>, depthwise<float>, blend<float>,
                                                               widen<float>};
const Primitives<double> HYPERSEG_JOIN(double_, HYPERSEG_ISA) = {gemm<double>, dots<double>, depthwise<double>,
                                                                 blend<double>, widen<double>};

}  // namespace hyperseg::cpu
