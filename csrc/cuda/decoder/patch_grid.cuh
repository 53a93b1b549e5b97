#pragma once

#include <initializer_list>

#include "cuda/device/device.cuh"
#include "cuda/device/fast_divmod.h"

namespace hyperseg::cuda {

// The grid of the patches of all images, numbered row by row. It finds a patch without a division.
class PatchGrid {
 public:
  PatchGrid() = default;
  PatchGrid(int64_t height, int64_t width) : height_(height), width_(width) {}
  // Of the signal: if its patches are at equal distances, their addresses need no place.
  PatchGrid(const Map<const void>& signal, int64_t images) : PatchGrid(signal.height, signal.width) {
    if ((signal.height == 1 || signal.stride_h == signal.width * signal.stride_w) &&
        (images == 1 || signal.stride_n == signal.height * signal.width * signal.stride_w))
      stride_ = static_cast<int>(signal.stride_w);
    if (stride_ != signal.stride_w) stride_ = 0;
  }

  struct Place {
    int n, y, x;
  };
  HYPERSEG_DEVICE Place place(int patch) const {
    const int row = width_.quotient(patch), n = height_.quotient(row);
    return {n, row - n * height_.value(), patch - row * width_.value()};
  }

  template <typename T>
  HYPERSEG_DEVICE const T* signal_of(const Map<const T>& signal, int channel, int patch) const {
    if (stride_) return signal.data + channel * signal.stride_c + static_cast<int64_t>(patch) * stride_;
    const Place at = place(patch);
    return signal.at(at.n, channel, at.y, at.x);
  }

 private:
  FastDivmod height_, width_;
  int stride_ = 0;  // 0: not equal
};

// Return how many bytes can be loaded at once from addresses that are `data` plus multiples of `steps` values: 16, 8,
// 4, or 0 if not even 4 or if the values are not contiguous. `size`: of a value.
inline int load_unit(const void* data, int64_t stride, std::initializer_list<int64_t> steps, int64_t size) {
  if (stride != 1) return 0;
  uint64_t bits = reinterpret_cast<uintptr_t>(data);
  for (const int64_t step : steps) bits |= static_cast<uint64_t>(step * size);
  return bits % 16 == 0 ? 16 : bits % 8 == 0 ? 8 : bits % 4 == 0 ? 4 : 0;
}

}  // namespace hyperseg::cuda
