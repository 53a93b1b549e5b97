#pragma once

// Vectors for one instruction set. Nothing here may be inline with external linkage: the linker keeps one copy of such
// a function, possibly the one for the wrong CPU. Hence the unnamed namespace in a header.
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/simd/primitives.h"

namespace hyperseg::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kBytes = 64, kColumns = 4;
#elif defined(__AVX2__)
constexpr int64_t kBytes = 32, kColumns = 2;
#elif defined(__aarch64__)
constexpr int64_t kBytes = 16, kColumns = 4;
#else
constexpr int64_t kBytes = 16, kColumns = 2;
#endif
constexpr int64_t kRows = 6;  // kRows * kColumns accumulators and kColumns operands fit the registers

template <typename T, int64_t bytes = kBytes>
struct Vector {
  using integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef T type __attribute__((vector_size(bytes), aligned(alignof(T)), may_alias));
  typedef integer integers __attribute__((vector_size(bytes)));
  static constexpr int64_t lanes = bytes / int64_t(sizeof(T));
};
template <typename T>
using vec = typename Vector<T>::type;

template <typename T>
inline vec<T> load(const T* p) {
  return *reinterpret_cast<const vec<T>*>(p);
}

// Not 0 + value, which costs an addition: it is not -0 for -0.
template <typename T>
inline vec<T> splat(T value) {
  return value - vec<T>{};
}

template <typename T>
inline void store(T* p, vec<T> v) {
  *reinterpret_cast<vec<T>*>(p) = v;
}

// The first `count` lanes, of which there may be more than the vector has.
template <typename T>
inline void store(T* p, vec<T> v, int64_t count) {
  if (count >= Vector<T>::lanes) return store(p, v);
#ifdef __AVX512F__
  if constexpr (std::is_same_v<T, float>) return _mm512_mask_storeu_ps(p, (1u << count) - 1, v);
#endif
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

template <typename T>
inline vec<T> load(const T* p, int64_t count) {
  if (count >= Vector<T>::lanes) return load(p);
#ifdef __AVX512F__
  if constexpr (std::is_same_v<T, float>) return _mm512_maskz_loadu_ps((1u << count) - 1, p);
#endif
  vec<T> v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

// The sum of a vector's lanes, by parts.
template <typename T, int64_t bytes = kBytes>
inline T total(typename Vector<T, bytes>::type v) {
  if constexpr (bytes == sizeof(T)) {
    return v[0];
  } else {
    typename Vector<T, bytes / 2>::type parts[2];
    std::memcpy(parts, &v, bytes);
    return total<T, bytes / 2>(parts[0] + parts[1]);
  }
}

// v clamped to low and high; NaN stays NaN, as in torch.
template <typename T>
inline vec<T> clamp_low(vec<T> v, T low) {
#ifdef __AVX512F__
  if constexpr (std::is_same_v<T, float>) return _mm512_maskz_max_ps(-1, splat(low), v);
#endif
  return v < low ? splat(low) : v;
}

template <typename T>
inline vec<T> clamp_high(vec<T> v, T high) {
#ifdef __AVX512F__
  if constexpr (std::is_same_v<T, float>) return _mm512_maskz_min_ps(-1, splat(high), v);
#endif
  return v > high ? splat(high) : v;
}

// 1 + e^-x, to about 1e-6 of the result for |x| < 20, in float. It becomes infinite, so that x / (1 + e^-x) tends to 0.
inline vec<float> one_plus_exp_minus(vec<float> x) {
#ifdef __AVX512F__
  // 2^y = 2^floor(y) 2^f with 0 <= f < 1, the latter by a polynomial.
  const vec<float> y = x * -1.44269504088896341f;
  const vec<float> f = _mm512_maskz_reduce_ps(-1, y, _MM_FROUND_TO_NEG_INF);
  vec<float> p = splat(1.8775767e-3f);
  p = p * f + 8.9893397e-3f;
  p = p * f + 5.5826318e-2f;
  p = p * f + 2.4015361e-1f;
  p = p * f + 6.9315308e-1f;
  p = p * f + 9.9999994e-1f;
  return (vec<float>)_mm512_maskz_scalef_ps(-1, p, y) + 1.0f;
#else
  using integers = Vector<float>::integers;
  const vec<float> z = clamp_low(-x, -87.0f);
  // e^z = 2^n e^r with |r| <= ln(2) / 2: adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
  const vec<float> shifted = z * 1.44269504088896341f + 12582912.0f;
  const vec<float> n = shifted - 12582912.0f;
  const vec<float> r = z - n * 0.693145751953125f - n * 1.42860682030941723e-6f;
  vec<float> p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  p = (vec<float>)((integers)p + ((integers)shifted << 23)) + 1.0f;
  return x < -88.0f ? splat(__builtin_inff()) : p;  // beyond, n does not fit the exponent
#endif
}

inline vec<double> one_plus_exp_minus(vec<double> x) {
  for (int64_t i = 0; i < Vector<double>::lanes; ++i) x[i] = 1.0 + __builtin_exp(-x[i]);
  return x;
}

template <typename T>
inline vec<T> activate(vec<T> v, Activation act) {
  if (act == Activation::kNone) return v;
  if (act == Activation::kSilu) return v / one_plus_exp_minus(v);
  v = clamp_low(v, T(0));
  return act == Activation::kRelu6 ? clamp_high(v, T(6)) : v;
}

}  // namespace
}  // namespace hyperseg::cpu
