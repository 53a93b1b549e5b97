#pragma once

#include "device.cuh"

// Loads and stores of 16 bytes, and of eight values.
namespace hyperseg::cuda {

template <typename T>
constexpr int kVector = 16 / sizeof(T);  // values in 16 bytes

HYPERSEG_DEVICE void load8(const float* from, float (&v)[8]) {
  const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
template <typename T>
HYPERSEG_DEVICE void load8(const T* from, float (&v)[8]) {
  const uint4 packed = *reinterpret_cast<const uint4*>(from);
  const float2 a = unpack<T>(packed.x), b = unpack<T>(packed.y), c = unpack<T>(packed.z), d = unpack<T>(packed.w);
  v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y;
  v[4] = c.x, v[5] = c.y, v[6] = d.x, v[7] = d.y;
}
// The first `count` of them one by one, `stride` apart; zeros for the others.
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

// Two values side by side.
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
