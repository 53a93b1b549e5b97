// Compiled once per instruction set, like primitives.cpp and under the same rule (vectors.h).
#include "cpu/simd/primitives_backward.h"

#include <cstring>

#include "cpu/simd/vectors.h"

namespace hyperseg::cpu {
namespace {

// Accumulators and operands of a GEMM tile, in registers.
constexpr int64_t kGemmRows = kBytes == 64 ? 6 : 4, kGemmColumns = kBytes == 64 ? 4 : 2;

template <typename T>
constexpr int64_t kLanes = Vector<T>::lanes;

template <typename T>
using four = typename Vector<T, 4 * sizeof(T)>::type;

// Reduce a vector's lanes to four, by parts.
template <typename T, int64_t bytes = kBytes>
inline four<T> folded(typename Vector<T, bytes>::type v) {
  if constexpr (bytes == 4 * sizeof(T)) {
    return v;
  } else {
    typename Vector<T, bytes / 2>::type parts[2];
    std::memcpy(parts, &v, bytes);
    return folded<T, bytes / 2>(parts[0] + parts[1]);
  }
}

// The totals of four vectors at once, which takes fewer shuffles than one after the other.
template <typename T>
inline void totals(const vec<T> (&v)[4], T* out) {
  if constexpr (kBytes < 4 * sizeof(T)) {
    for (int i = 0; i < 4; ++i) out[i] = total<T>(v[i]);
  } else {
    const four<T> a = folded<T>(v[0]), b = folded<T>(v[1]), c = folded<T>(v[2]), d = folded<T>(v[3]);
    const four<T> ab = four<T>{a[0], b[0], a[1], b[1]} + four<T>{a[2], b[2], a[3], b[3]};
    const four<T> cd = four<T>{c[0], d[0], c[1], d[1]} + four<T>{c[2], d[2], c[3], d[3]};
    const four<T> sums = four<T>{ab[0], ab[1], cd[0], cd[1]} + four<T>{ab[2], ab[3], cd[2], cd[3]};
    std::memcpy(out, &sums, sizeof(sums));
  }
}

template <typename T, int R, int C>
inline void gemm_nt_tile(int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc) {
  vec<T> sum[R][C] = {};
  for (int64_t i = 0; i < k; i += kLanes<T>) {
    vec<T> column[C];
    for (int j = 0; j < C; ++j) column[j] = load(b + j * ldb + i);
    for (int r = 0; r < R; ++r) {
      const vec<T> row = load(a + r * lda + i);
      for (int j = 0; j < C; ++j) sum[r][j] += row * column[j];
    }
  }
  for (int r = 0; r < R; ++r) {
    if constexpr (C == 4) {
      totals<T>(sum[r], c + r * ldc);
    } else {
      for (int j = 0; j < C; ++j) c[r * ldc + j] = total<T>(sum[r][j]);
    }
  }
}

template <typename T, int R>
inline void gemm_nt_rows(int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc) {
  int64_t j = 0;
  for (; j + kGemmColumns <= n; j += kGemmColumns)
    gemm_nt_tile<T, R, kGemmColumns>(k, a, lda, b + j * ldb, ldb, c + j, ldc);
  for (; j < n; ++j) gemm_nt_tile<T, R, 1>(k, a, lda, b + j * ldb, ldb, c + j, ldc);
}

template <typename T>
void gemm_nt(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc) {
  int64_t i = 0;
  for (; i + kGemmRows <= m; i += kGemmRows)
    gemm_nt_rows<T, kGemmRows>(n, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
  for (; i + 2 <= m; i += 2) gemm_nt_rows<T, 2>(n, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
  for (; i < m; ++i) gemm_nt_rows<T, 1>(n, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
}

template <typename T>
void filter(int64_t channels, int64_t count, int64_t stride, const T* in, int64_t in_map, const T* weights, T* out,
            int64_t out_map) {
  for (int64_t ch = 0; ch < channels; ++ch) {
    const T* source = in + ch * in_map;
    vec<T> tap[9];
    for (int t = 0; t < 9; ++t) tap[t] = splat(weights[ch * 9 + t]);
    for (int64_t p = 0; p < count; p += kLanes<T>) {
      vec<T> top = {}, middle = {}, bottom = {};
      for (int t = 0; t < 3; ++t) {
        top += tap[t] * load(source + p + t);
        middle += tap[3 + t] * load(source + p + stride + t);
        bottom += tap[6 + t] * load(source + p + 2 * stride + t);
      }
      store(out + ch * out_map + p, top + middle + bottom);
    }
  }
}

template <typename T>
void filter_weights(int64_t channels, int64_t count, int64_t stride, const T* in, int64_t in_map, const T* gradient,
                    int64_t gradient_map, T* out) {
  for (int64_t ch = 0; ch < channels; ++ch) {
    vec<T> sum[9] = {};
    for (int64_t p = 0; p < count; p += kLanes<T>) {
      const vec<T> pulled = load(gradient + ch * gradient_map + p);
      const T* source = in + ch * in_map + p;
      for (int t = 0; t < 9; ++t) sum[t] += pulled * load(source + t / 3 * stride + t % 3);
    }
    for (int t = 0; t < 9; ++t) out[ch * 9 + t] = total<T>(sum[t]);
  }
}

template <typename T>
void norm_relu6(int64_t channels, int64_t count, const T* z, int64_t map, const T* mean, const T* factor,
                const T* shift, T* out) {
  for (int64_t ch = 0; ch < channels; ++ch) {
    const vec<T> middle = splat(mean[ch]), times = splat(factor[ch]), plus = splat(shift[ch]);
    for (int64_t p = 0; p < count; p += kLanes<T>) {
      const vec<T> v = (load(z + ch * map + p) - middle) * times + plus;
      store(out + ch * map + p, activate<T>(v, Activation::kRelu6));
    }
  }
}

template <typename T>
void relu6_gradient(int64_t channels, int64_t count, const T* activated, int64_t map, T* gradient,
                    int64_t gradient_map) {
  for (int64_t ch = 0; ch < channels; ++ch)
    for (int64_t p = 0; p < count; p += kLanes<T>) {
      const vec<T> a = load(activated + ch * map + p);
      T* g = gradient + ch * gradient_map + p;
      const vec<T> v = a <= T(0) ? splat(T(0)) : load(g);
      store(g, a >= T(6) ? splat(T(0)) : v);
    }
}

template <typename T>
void norm_gradient(int64_t channels, int64_t count, const T* valid, const T* z, int64_t map, const T* mean,
                   const T* slope, const T* tilt, const T* level, T* gradient, int64_t gradient_map) {
  for (int64_t ch = 0; ch < channels; ++ch) {
    const vec<T> middle = splat(mean[ch]), times = splat(slope[ch]), lean = splat(tilt[ch]), plus = splat(level[ch]);
    T* g = gradient + ch * gradient_map;
    for (int64_t p = 0; p < count; p += kLanes<T>)
      store(g + p, load(valid + p) * (times * load(g + p) + lean * (load(z + ch * map + p) - middle) + plus));
  }
}

template <typename T>
void gradient_sums(int64_t channels, int64_t count, const T* gradient, int64_t gradient_map, const T* z, int64_t map,
                   const T* mean, T* sum, T* by_value) {
  for (int64_t ch = 0; ch < channels; ++ch) {
    vec<T> sums = {}, weighted = {};
    for (int64_t p = 0; p < count; p += kLanes<T>) {
      const vec<T> g = load(gradient + ch * gradient_map + p);
      sums += g;
      if (z) weighted += g * (load(z + ch * map + p) - mean[ch]);
    }
    sum[ch] = total<T>(sums);
    if (z) by_value[ch] = total<T>(weighted);
  }
}

template <typename T>
void statistics(int64_t channels, int64_t count, const T* valid, int64_t number, const T* z, int64_t map, T* mean,
                T* squares) {
  for (int64_t ch = 0; ch < channels; ++ch) {
    const T* values = z + ch * map;
    vec<T> sum = {};
    for (int64_t p = 0; p < count; p += kLanes<T>) sum += load(valid + p) * load(values + p);
    mean[ch] = total<T>(sum) / static_cast<T>(number);
    const vec<T> middle = splat(mean[ch]);
    vec<T> around = {};
    for (int64_t p = 0; p < count; p += kLanes<T>) {
      const vec<T> distance = load(values + p) - middle;
      around += load(valid + p) * distance * distance;
    }
    squares[ch] = total<T>(around);
  }
}

template <typename T>
struct Exponential;

template <>
struct Exponential<float> {
  using Integer = int32_t;
  static constexpr int kDegree = 7, kMantissa = 23, kBias = 127;
  static constexpr float kLowest = -87.0f, kLn2High = 0.693145751953125f, kLn2Low = 1.428606820309417e-6f;
};

template <>
struct Exponential<double> {
  using Integer = int64_t;
  static constexpr int kDegree = 13, kMantissa = 52, kBias = 1023;
  static constexpr double kLowest = -708.0, kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
};

// exp(x) for x <= 0; results below the normal numbers become the smallest normal number. NaN stays NaN.
template <typename T>
inline vec<T> exponential(vec<T> x) {
  using E = Exponential<T>;
  using Integers = vec<typename E::Integer>;
  x = x < E::kLowest ? splat(E::kLowest) : x;
  const Integers power = __builtin_convertvector(x * T(1.4426950408889634) - T(0.5), Integers);
  const vec<T> whole = __builtin_convertvector(power, vec<T>);
  const vec<T> rest = (x - whole * E::kLn2High) - whole * E::kLn2Low;
  T coefficient[E::kDegree + 1] = {T(1)};
  for (int i = 1; i <= E::kDegree; ++i) coefficient[i] = coefficient[i - 1] / static_cast<T>(i);
  vec<T> value = splat(coefficient[E::kDegree]);
  for (int i = E::kDegree - 1; i >= 0; --i) value = value * rest + coefficient[i];
  const Integers bits = (power + E::kBias) << E::kMantissa;
  vec<T> scale;
  std::memcpy(&scale, &bits, sizeof(scale));
  return value * scale;
}

template <typename T>
void softmax(int64_t classes, int64_t count, const T* upper, const T* lower, int64_t map, T weight, T* exps,
             int64_t exps_map, T* maximum, T* sum) {
  for (int64_t p = 0; p < count; p += kLanes<T>) {
    vec<T> most = {};
    for (int64_t c = 0; c < classes; ++c) {
      const vec<T> score = load(upper + c * map + p) * (T(1) - weight) + load(lower + c * map + p) * weight;
      store(exps + c * exps_map + p, score);
      most = c == 0 ? score : (score > most ? score : most);
    }
    vec<T> sums = {};
    for (int64_t c = 0; c < classes; ++c) {
      const vec<T> value = exponential<T>(load(exps + c * exps_map + p) - most);
      store(exps + c * exps_map + p, value);
      sums += value;
    }
    store(maximum + p, most);
    store(sum + p, sums);
  }
}

template <typename T>
void spread(int64_t classes, int64_t count, const T* exps, int64_t exps_map, const T* factor, T weight, T* first,
            T* second, int64_t map) {
  for (int64_t c = 0; c < classes; ++c)
    for (int64_t p = 0; p < count; p += kLanes<T>) {
      const vec<T> value = load(exps + c * exps_map + p) * load(factor + p);
      store(first + c * map + p, load(first + c * map + p) + value * (T(1) - weight));
      store(second + c * map + p, load(second + c * map + p) + value * weight);
    }
}

template <typename T>
constexpr PrimitivesBackward<T> table = {gemm_nt<T>,        filter<T>,        filter_weights<T>, norm_relu6<T>,
                                         relu6_gradient<T>, norm_gradient<T>, gradient_sums<T>,  statistics<T>,
                                         softmax<T>,        spread<T>};

}  // namespace

#define HYPERSEG_JOIN_(a, b) a##b
#define HYPERSEG_JOIN(a, b) HYPERSEG_JOIN_(a, b)
extern const PrimitivesBackward<float> HYPERSEG_JOIN(float_backward_, HYPERSEG_ISA);
extern const PrimitivesBackward<double> HYPERSEG_JOIN(double_backward_, HYPERSEG_ISA);
const PrimitivesBackward<float> HYPERSEG_JOIN(float_backward_, HYPERSEG_ISA) = table<float>;
const PrimitivesBackward<double> HYPERSEG_JOIN(double_backward_, HYPERSEG_ISA) = table<double>;

}  // namespace hyperseg::cpu
