#pragma once

#include "cuda/device/bilinear.cuh"

// From a pixel of a resized map back to the values that it sampled.
namespace hyperseg::cuda {

// How much of pixel `o` is the value at `i`, of `size`.
HYPERSEG_DEVICE float share_of(int i, int o, float scale, int size) {
  const Sample sample(o, scale, size);
  return (sample.low == i ? 1.0f - sample.weight : 0.0f) + (sample.high == i ? sample.weight : 0.0f);
}

// No pixel before this one samples the value at `i` or any behind it: the one behind (i - 1/2) / scale - 1/2.
HYPERSEG_DEVICE int earliest_reader(int i, float scale) {
  return static_cast<int>(fmaxf(floorf((i - 0.5f) / scale - 0.5f), 0.0f));
}

// The first pixel that samples the value at `i`, if any does.
HYPERSEG_DEVICE int first_reader(int i, float scale, int size) {
  const int first = earliest_reader(i, scale);
  return share_of(i, first, scale, size) == 0.0f ? first + 1 : first;  // 0 where this one just does not
}

// At most so many of `count` pixels sample one of `size` values: those less than a step away.
inline int64_t readers(int64_t size, int64_t count) {
  const int64_t most = (2 * count + size - 1) / size;
  return most < count ? most : count;
}

}  // namespace hyperseg::cuda
