#pragma once

#include <cstdint>

#include "cpu/simd/norm_act.h"

namespace hyperseg::cpu {

// A depthwise convolution of act(x * scale + shift), zero-padded, whose values are never written. Maps are dense in
// channels-last memory; per-channel values are padded to a multiple of kGroup.
template <typename T>
struct Depthwise {
  int64_t images, channels, height, width, out_height, out_width;
  int64_t size, stride, left, top;
  const T* x;
  const T* mean;  // for gradients
  const T* scale;
  const T* shift;
  const T* weights;  // [size * size, channels], padded too
  Activation act;
};

template <typename T>
void depthwise(const Depthwise<T>& d, T* out);

// From the gradient of the output: d_norm, the gradient of x * scale + shift; d_weights; and of d_norm per channel the
// sums, and those of its products with x - mean: sums [2, channels].
template <typename T>
void depthwise_gradients(const Depthwise<T>& d, const T* grad, T* d_norm, T* d_weights, T* sums);

}  // namespace hyperseg::cpu
