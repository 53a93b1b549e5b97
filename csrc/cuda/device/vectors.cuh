#pragma once

#include "cuda/device/device.cuh"

// Loads and stores of 16 bytes, and of eight values.
namespace hyperseg::cuda {

template <typename T>
constexpr int kVector = 16 / sizeof(T);  // values in 16 bytes

// Eight values in their storage type: a load does not stall until they are unpacked.
template <typename T>
struct Packed8 {
  uint4 parts[sizeof(T) / 2] = {};

  HYPERSEG_DEVICE void load(const T* from) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(T) / 2); ++i) parts[i] = reinterpret_cast<const uint4*>(from)[i];
  }
  HYPERSEG_DEVICE void unpack_to(float (&v)[8]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4& part = parts[i * sizeof(T) / 8];
      if constexpr (sizeof(T) == 4) {
        v[2 * i] = as_float(i % 2 ? part.z : part.x);
        v[2 * i + 1] = as_float(i % 2 ? part.w : part.y);
      } else {
        const float2 two = unpack<T>(i == 0 ? part.x : i == 1 ? part.y : i == 2 ? part.z : part.w);
        v[2 * i] = two.x, v[2 * i + 1] = two.y;
      }
    }
  }
};

template <typename T>
HYPERSEG_DEVICE void load8(const T* from, float (&v)[8]) {
  Packed8<T> packed;
  packed.load(from);
  packed.unpack_to(v);
}
// Load the first `count` of them one by one, `stride` apart; zeros for the others.
template <typename T>
HYPERSEG_DEVICE void load8(const T* from, int64_t stride, int count, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = i < count ? to_float(from[i * stride]) : 0.0f;
}

HYPERSEG_DEVICE void store8(float* to, const float (&v)[8]) {
  reinterpret_cast<float4*>(to)[0] = float4{v[0], v[1], v[2], v[3]};
  reinterpret_cast<float4*>(to)[1] = float4{v[4], v[5], v[6], v[7]};
}
template <typename T>
HYPERSEG_DEVICE void store8(T* to, const float (&v)[8]) {
  *reinterpret_cast<uint4*>(to) =
      uint4{pack<T>(v[0], v[1]), pack<T>(v[2], v[3]), pack<T>(v[4], v[5]), pack<T>(v[6], v[7])};
}

// Two adjacent values.
HYPERSEG_DEVICE float2 load2(const float* from) { return *reinterpret_cast<const float2*>(from); }
template <typename T>
HYPERSEG_DEVICE float2 load2(const T* from) {
  return unpack<T>(*reinterpret_cast<const uint32_t*>(from));
}
HYPERSEG_DEVICE void store2(float* to, float2 v) { *reinterpret_cast<float2*>(to) = v; }
template <typename T>
HYPERSEG_DEVICE void store2(T* to, float2 v) {
  *reinterpret_cast<uint32_t*>(to) = pack<T>(v.x, v.y);
}

}  // namespace hyperseg::cuda
