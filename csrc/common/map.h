#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define HYPERSEG_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define HYPERSEG_HOST_DEVICE inline
#endif

namespace hyperseg {

// A map [N, C, H, W] with any strides; Map<void> has a type known only at run time.
template <typename S>
struct Map {
  S* data = nullptr;
  int64_t channels = 0, height = 0, width = 0;
  int64_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0;

  HYPERSEG_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
  HYPERSEG_HOST_DEVICE S* at(int64_t n, int64_t c, int64_t y, int64_t x) const {
    return data + n * stride_n + c * stride_c + y * stride_h + x * stride_w;
  }
  template <typename T>
  Map<T> of() const {
    return {static_cast<T*>(data), channels, height, width, stride_n, stride_c, stride_h, stride_w};
  }
};

}  // namespace hyperseg
