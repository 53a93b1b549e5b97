#pragma once

// Vectors for one instruction set. Nothing here may be inline with external linkage: the linker keeps one copy of such
// a function, possibly the one for the wrong CPU. Hence the unnamed namespace in a header.
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/simd/primitives.h"

namespace hyperseg::cpu {
namespace {

// kColumns: vectors across a tile of the GEMM; kAccumulators of them and the operands fit the registers.
#if defined(__AVX512F__)
constexpr int64_t kBytes = 64, kColumns = 4, kAccumulators = 24;
#elif defined(__AVX2__)
constexpr int64_t kBytes = 32, kColumns = 2, kAccumulators = 12;
#elif defined(__aarch64__)
constexpr int64_t kBytes = 16, kColumns = 4, kAccumulators = 24;
#else
constexpr int64_t kBytes = 16, kColumns = 2, kAccumulators = 12;
#endif

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
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) {  // not a masked store, which takes tens of cycles on some CPUs
    __m128 part = _mm256_castps256_ps128(v);
    if (count & 4) {
      _mm_storeu_ps(p, part);
      part = _mm256_extractf128_ps(v, 1);
      p += 4;
    }
    if (count & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
      part = _mm_movehl_ps(part, part);
      p += 2;
    }
    if (count & 1) _mm_store_ss(p, part);
    return;
  }
#endif
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

template <typename T>
inline vec<T> load(const T* p, int64_t count) {
  if (count >= Vector<T>::lanes) return load(p);
#ifdef __AVX512F__
  if constexpr (std::is_same_v<T, float>) return _mm512_maskz_loadu_ps((1u << count) - 1, p);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane));
  }
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

// The larger of two values; b if one is NaN.
template <typename T>
inline vec<T> larger(vec<T> a, vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return _mm512_maskz_max_ps(-1, a, b);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) return _mm256_max_ps(a, b);
#endif
  return a > b ? a : b;
}

// v clamped to low and high; NaN stays NaN, as in torch.
template <typename T>
inline vec<T> clamp_low(vec<T> v, T low) {
  return larger<T>(splat(low), v);
}

template <typename T>
inline vec<T> clamp_high(vec<T> v, T high) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return _mm512_maskz_min_ps(-1, splat(high), v);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) return _mm256_min_ps(splat(high), v);
#endif
  return v > high ? splat(high) : v;
}

// 1 + e^-x in float, with a relative error of about 2e-7, and 1e-6 near x = -80. It is 2^n 2^f for n + f = -x log2(e),
// 2^f by a polynomial. It becomes infinite, so that x / (1 + e^-x) tends to 0.
inline vec<float> one_plus_exp_minus(vec<float> x) {
  constexpr float log2_e = -1.44269504088896341f;
#ifdef __AVX512F__
  const vec<float> y = x * log2_e;
  const vec<float> f = _mm512_maskz_reduce_ps(-1, y, _MM_FROUND_TO_NEG_INF);
  vec<float> p = splat(1.8775767e-3f);
  p = p * f + 8.9893397e-3f;
  p = p * f + 5.5826318e-2f;
  p = p * f + 2.4015361e-1f;
  p = p * f + 6.9315308e-1f;
  p = p * f + 9.9999994e-1f;
  return (vec<float>)_mm512_maskz_scalef_ps(-1, p, y) + 1.0f;
#else
  // |f| <= 1/2: adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
  constexpr float most = 87.3f;
  using integers = Vector<float>::integers;
  const vec<float> z = clamp_high(x, most);
  const vec<float> shifted = z * log2_e + 12582912.0f;
  const vec<float> n = shifted - 12582912.0f;
#if defined(__FMA__) || defined(__aarch64__)
  const vec<float> f = z * log2_e - n;  // fused: the product is not rounded
#else
  const vec<float> f = (z + n * 0.693145751953125f + n * 1.42860682030941723e-6f) * log2_e;
#endif
  vec<float> p = splat(1.32647e-3f);
  p = p * f + 9.67151e-3f;
  p = p * f + 5.550734e-2f;
  p = p * f + 2.4022242e-1f;
  p = p * f + 6.9314698e-1f;
  p = p * f + 1.0f;
  p = (vec<float>)((integers)p + ((integers)shifted << 23)) + 1.0f;
  // From x = -88.4 down n does not fit the exponent: p is negative or NaN, and from -266 down anything. This line is
  // negative above -87.3, then larger than p in those cases, 2e37 or more, and infinite from -98 down: x / (1 + e^-x)
  // is within 2e-36 of 0.
  constexpr float slope = -3e37f;
  return larger<float>(p, (x + most) * slope);
#endif
}

inline vec<double> one_plus_exp_minus(vec<double> x) {
  for (int64_t i = 0; i < Vector<double>::lanes; ++i) x[i] = 1.0 + __builtin_exp(-x[i]);
  return x;
}

// Divisions run beside the multiplications of other vectors: an estimate with a step of Newton is not faster.
template <typename T>
inline vec<T> silu(vec<T> v) {
  return v / one_plus_exp_minus(v);
}

template <typename T>
inline vec<T> activate(vec<T> v, Activation act) {
  if (act == Activation::kNone) return v;
  if (act == Activation::kSilu) return silu<T>(v);
  if (act == Activation::kSigmoid) return T(1) / one_plus_exp_minus(v);
  v = clamp_low(v, T(0));
  return act == Activation::kRelu6 ? clamp_high(v, T(6)) : v;
}

}  // namespace
}  // namespace hyperseg::cpu
