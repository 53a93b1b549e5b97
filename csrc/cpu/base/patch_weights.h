#pragma once

#include <cstdint>

namespace hyperseg::cpu {

// The generated weights [N, fh, fw, P], with any strides.
template <typename S>
struct PatchWeights {
  const S* data = nullptr;
  int64_t stride_n = 0, stride_h = 0, stride_w = 0, stride_p = 1, parameters = 0;

  const S* at(int64_t n, int64_t gy, int64_t gx) const { return data + n * stride_n + gy * stride_h + gx * stride_w; }

  template <typename T>
  void read(int64_t n, int64_t gy, int64_t gx, int64_t first, int64_t count, T* to) const {
    const S* source = at(n, gy, gx) + first * stride_p;
    if (stride_p == 1) {
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(source[i]);
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(source[i * stride_p]);
    }
  }
};

}  // namespace hyperseg::cpu
