#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "shim/fibers.h"

// The names of csrc/cuda/device/device.cuh on a CPU.
#define __device__
#define __host__
#define __restrict__ __restrict
#define HYPERSEG_DEVICE inline
#define HYPERSEG_KERNEL(threads, blocks) void
#define HYPERSEG_TABLE const

#define threadIdx (::hyperseg::shim::position.thread)
#define blockIdx (::hyperseg::shim::position.block)
#define blockDim (::hyperseg::shim::position.threads)
#define gridDim (::hyperseg::shim::position.blocks)

namespace hyperseg::cuda {

struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};
struct float2 {
  float x, y;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

using std::max;
using std::min;

using shim::shared_memory;
using shim::sync_block;

enum Operation { kShuffle, kSyncWarp, kLdmatrix4, kLdmatrix2, kLdmatrix4Transposed, kTransposed, kMma16, kMma8 };

inline void sync_warp() { shim::exchange(nullptr, 0, kSyncWarp); }

template <typename V>  // a float or a uint32_t
V shuffle_xor(V value, int mask) {
  const auto* said = shim::exchange(&value, sizeof value, kShuffle + 16 * mask);
  std::memcpy(&value, said[(threadIdx.x % 32) ^ mask], sizeof value);
  return value;
}

inline int warp_of(int thread) { return thread / 32; }
inline int warp_index() { return warp_of(threadIdx.x); }

inline int opaque(int v) { return v; }

inline void wait_for_previous_kernel() {}
inline void let_next_kernel_start() {}
template <typename Stage>
void stage_constants_and_wait(bool, const Stage& stage) {
  stage();
}

inline void add_release(unsigned* counter, unsigned value) {
  *counter += value;
  shim::progress();
}
inline unsigned load_acquire(const unsigned* counter) {
  shim::spin();
  return *counter;
}

inline float as_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline uint32_t as_bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

inline float to_float(float v) { return v; }
inline float to_float(half v) {
  // Exponent and mantissa as a float with a bias that is 112 too small; the largest exponent is infinity or NaN.
  const uint32_t size = (v.bits & 0x7fffu) << 13;
  const uint32_t scaled = as_bits(as_float(size) * 0x1p112f);
  return as_float((size < 0x7c00u << 13 ? scaled : size | 0x7f800000u) | (v.bits & 0x8000u) << 16);
}
inline float to_float(bfloat16 v) {
  const uint32_t bits = uint32_t{v.bits} << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

template <typename T>
T from_float(float v);
template <>
inline float from_float<float>(float v) {
  return v;
}
template <>
inline half from_float<half>(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  const uint16_t sign = bits >> 16 & 0x8000u;
  const float size = std::fabs(v);
  if (std::isnan(v)) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00u)};
  if (size < 0x1p-14f) return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(size * 0x1p24f)))};
  bits &= 0x7fffffffu;
  bits += 0xfffu + (bits >> 13 & 1);  // round to nearest even
  return {static_cast<uint16_t>(sign | ((bits - (112u << 23)) >> 13))};
}
template <>
inline bfloat16 from_float<bfloat16>(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if (std::isnan(v)) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

inline float max_or_nan(float a, float b) { return a >= b || std::isnan(a) ? a : b; }
inline float min_or_nan(float a, float b) { return a <= b || std::isnan(a) ? a : b; }
inline float fast_reciprocal(float v) { return 1.0f / v; }
// HYPERSEG_SHIM_TANH=1 or -1: the largest error that the PTX manual allows, in this direction.
inline float fast_tanh(float v) {
  static const char* error = std::getenv("HYPERSEG_SHIM_TANH");
  static const float factor = error ? 1.0f + std::strtof(error, nullptr) * 0x1p-11f : 1.0f;
  return std::tanh(v) * factor;
}

inline uint32_t byte_of(uint32_t word, int byte) { return word >> 8 * byte & 255u; }

template <typename T>
uint32_t pack(float low, float high) {
  return from_float<T>(low).bits | uint32_t{from_float<T>(high).bits} << 16;
}

template <typename T>
float2 unpack(uint32_t v) {
  return {to_float(T{static_cast<uint16_t>(v)}), to_float(T{static_cast<uint16_t>(v >> 16)})};
}

template <typename T>
uint32_t relu6_of_two(uint32_t v) {
  const auto clamp = [](float f) { return std::isnan(f) ? f : std::min(std::max(f, 0.0f), 6.0f); };
  const float2 two = unpack<T>(v);
  return pack<T>(clamp(two.x), clamp(two.y));
}

template <typename T>
uint32_t pack_relu6(float low, float high) {
  return relu6_of_two<T>(pack<T>(low, high));
}

template <typename T>
uint32_t multiply2(uint32_t a, uint32_t b) {
  const float2 u = unpack<T>(a), v = unpack<T>(b);
  return pack<T>(u.x * v.x, u.y * v.y);
}

template <typename T>
uint32_t without_negative_zeros(uint32_t bits) {
  const float2 two = unpack<T>(bits);
  return pack<T>(two.x + 0.0f, two.y + 0.0f);
}

template <int BYTES = 16>
void copy_async(void* shared, const void* global, bool valid) {
  if (reinterpret_cast<uintptr_t>(shared) % BYTES || reinterpret_cast<uintptr_t>(global) % BYTES) std::abort();
  shim::copy_later(shared, valid ? global : nullptr, BYTES);
}
using shim::commit_copies;
template <int N>
void wait_for_copies() {
  shim::wait_for_copies(N);
}

template <typename V>
void store16(void* global, V v) {
  static_assert(sizeof v == 16);
  if (reinterpret_cast<uintptr_t>(global) % 16) std::abort();
  std::memcpy(global, &v, 16);
}

inline void store16_shared(void* shared, uint4 v) { store16(shared, v); }

template <int COUNT>
void ldmatrix(uint32_t* r, const void* row, int kind) {
  const auto* said = shim::exchange(&row, sizeof row, kind);
  const unsigned lane = threadIdx.x % 32;
  for (int i = 0; i < COUNT; ++i) {
    const char* from;
    std::memcpy(&from, said[8 * i + lane / 4], sizeof from);
    if (reinterpret_cast<uintptr_t>(from) % 16) std::abort();  // as on a GPU, where it is a misaligned address
    std::memcpy(&r[i], from + 4 * (lane % 4), 4);
  }
}

inline void ldmatrix4(uint32_t (&r)[4], const void* row) { ldmatrix<4>(r, row, kLdmatrix4); }
inline void ldmatrix4_transposed(uint32_t (&r)[4], const void* row) {
  const auto* said = shim::exchange(&row, sizeof row, kLdmatrix4Transposed);
  const unsigned lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    uint16_t two[2];
    for (int e = 0; e < 2; ++e) {
      const char* from;
      std::memcpy(&from, said[8 * i + 2 * (lane % 4) + e], sizeof from);
      if (reinterpret_cast<uintptr_t>(from) % 16) std::abort();
      std::memcpy(&two[e], from + lane / 4 * 2, 2);
    }
    r[i] = two[0] | uint32_t{two[1]} << 16;
  }
}
inline void ldmatrix2(uint32_t* r, const void* row) { ldmatrix<2>(r, row, kLdmatrix2); }

inline uint32_t transposed(uint32_t two) {
  const auto* said = shim::exchange(&two, sizeof two, kTransposed);
  const unsigned lane = threadIdx.x % 32;
  uint32_t result = 0;
  for (unsigned e = 0; e < 2; ++e) {
    uint32_t pair;  // with the value in row 2 (lane % 4) + e and column lane / 4
    std::memcpy(&pair, said[4 * (2 * (lane % 4) + e) + lane / 8], sizeof pair);
    result |= (pair >> 16 * (lane / 4 % 2) & 0xffffu) << 16 * e;
  }
  return result;
}

template <int STRIDE, typename T>
void store_matrix4(T* matrix, int lane, const uint32_t (&r)[4]) {
  sync_warp();
  for (int i = 0; i < 4; ++i)
    std::memcpy(matrix + (lane / 4 + i % 2 * 8) * STRIDE + lane % 4 * 2 + i / 2 * 8, &r[i], 4);
}

inline uint32_t diagonal(const void* value, int lane) {
  uint16_t bits;
  std::memcpy(&bits, value, 2);
  const int column = lane / 4;
  return lane % 4 != column / 2 ? 0 : uint32_t{bits} << 16 * (column % 2);
}

// Replace the fragments of a warp's lanes, A words of the left matrix and A / 2 of the right one, by the four values of
// the product that belong to each lane. Defined in mma.cpp.
template <typename T, int A>
void multiply_fragments(unsigned char (*said)[shim::kMessage]);

template <typename T, int A>
void multiply(float (&c)[4], const uint32_t (&fragments)[A + A / 2], int kind) {
  const auto* products = shim::exchange(fragments, sizeof fragments, kind, multiply_fragments<T, A>);
  float mine[4];
  std::memcpy(mine, products[threadIdx.x % 32], sizeof mine);
  for (int e = 0; e < 4; ++e) c[e] += mine[e];
}

template <typename T>
void mma16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply<T, 4>(c, {a[0], a[1], a[2], a[3], b0, b1}, kMma16);
}

template <typename T>
void mma16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float4& d) {
  c[0] = d.x, c[1] = d.y, c[2] = d.z, c[3] = d.w;
  mma16<T>(c, a, b0, b1);
}

template <typename T>
void mma8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  multiply<T, 2>(c, {a0, a1, b}, kMma8);
}

}  // namespace hyperseg::cuda
