#pragma once

#include "cuda/device/bilinear.cuh"

// Adjoint of bilinear resizing: from a value to the pixels that sampled it.
namespace hyperseg::cuda {

// Return the weight of value `i`, of `size`, in pixel `o`.
HYPERSEG_DEVICE float share_of(int i, int o, float scale, int size) {
  const Sample sample(o, scale, size);
  return (sample.low == i ? 1.0f - sample.weight : 0.0f) + (sample.high == i ? sample.weight : 0.0f);
}

// A lower bound for the pixels that sample value `i` or a later one, before rounding: (i - 1/2) / scale - 1/2.
HYPERSEG_DEVICE int earliest_reader(int i, float scale) {
  return static_cast<int>(fmaxf(floorf((i - 0.5f) / scale - 0.5f), 0.0f));
}

// Return the first pixel that samples value `i`, if there is one.
HYPERSEG_DEVICE int first_reader(int i, float scale, int size) {
  const int first = earliest_reader(i, scale);
  return share_of(i, first, scale, size) == 0.0f ? first + 1 : first;  // 0 if this pixel just misses it
}

// Upper bound for the pixels, of `count`, that sample one of `size` values: those less than one step away.
inline int64_t readers(int64_t size, int64_t count) {
  const int64_t most = (2 * count + size - 1) / size;
  return most < count ? most : count;
}

}  // namespace hyperseg::cuda
