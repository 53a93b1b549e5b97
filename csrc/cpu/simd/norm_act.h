#pragma once

#include <cstdint>

#include "cpu/simd/primitives.h"

namespace hyperseg::cpu {

// Pixels of a map in channels-last memory, and act(x * scale + shift) of them, times the gate of their image. What has
// one value per channel is padded to a multiple of kPadding.
template <typename T>
struct NormAct {
  int64_t channels, pixels;
  const T* x;
  int64_t stride;  // from pixel to pixel
  const T* mean;   // for gradients
  const T* scale;
  const T* shift;
  const T* gate;  // or null
  Activation act;
  int64_t ahead = 0;  // `apply` prefetches what is so far from x, the next row: short pieces of rows are no stream
};

// Channels of the rows that a depthwise convolution copies, zero-padded.
constexpr int64_t kGroup = 32;

// One row of a depthwise convolution of `size` x `size` taps (3 or 5) with stride 1 or 2, of up to kGroup channels.
// Pixel p under tap (ky, kx) is at rows[ky] + (p * stride + kx) * kGroup. Rows have a multiple of kFilterBlock pixels.
constexpr int64_t kFilterBlock = 8;
template <typename T>
struct FilterRow {
  int64_t channels, pixels, size, stride;
  const T* const* rows;
  const T* weights;  // [size * size, weights_stride]
  int64_t weights_stride;
  T* out;
  int64_t out_stride;
  int64_t ahead;  // from out to what will be written next
};

// The gradients that a row of the input gets, or causes. In `rows` is the gradient of the output, null outside of it:
// what pixel q takes from tap (ky, kx) is at rows[ky] + ((size - 1 + q - kx) / stride) * kGroup, if that is an integer.
template <typename T>
struct FilterRowGradient {
  int64_t channels, pixels, size, stride;
  int64_t first, last;  // pixels outside of these have activated = slope = 0 and are not written
  const T* const* rows;
  const T* weights;
  int64_t weights_stride;
  const T* activated;  // the row that was filtered, [pixels, kGroup]
  const T* slope;      // and the derivative of its activation
  const T* x;          // of pixel 0, which may be outside
  int64_t stride_x;
  const T* mean;
  T* out;  // the gradient of the norm's output, of pixel 0
  int64_t ahead;
  T* sums;       // [2, kGroup]: adds it, and it times x - mean
  T* d_weights;  // [size * size, kGroup]: adds
};

template <typename T>
struct NormActPrimitives {
  // Add x - around, and its square, to sums and squares.
  void (*moments)(int64_t channels, int64_t pixels, const T* x, const T* around, double* sums, double* squares);
  // Add the values (without gate) to sums.
  void (*sum)(const NormAct<T>& map, double* sums);
  // Write the values; and the derivative of the activation if `slope` is not null.
  void (*apply)(const NormAct<T>& map, T* out, T* slope, int64_t out_stride);
  // From the gradient g of the values, with a the activation and d its derivative: write the values unless out is null,
  // and add to sums, `apart` from each other: g d and g d (x - mean); with a gate also g a, d and d (x - mean), all
  // without gate.
  void (*gradient_sums)(const NormAct<T>& map, const T* grad, T* out, double* sums, int64_t apart);
  // out = slope * ((grad * gate + spread) * d) + tilt * (x - mean) + level; spread comes with the gate.
  void (*gradient)(const NormAct<T>& map, const T* grad, const T* spread, const T* slope, const T* tilt, const T* level,
                   T* out);
  // Copy pixels that are `stride` apart to pixels that are kGroup apart.
  void (*copy)(int64_t channels, int64_t pixels, const T* in, int64_t stride, int64_t ahead, T* out);
  void (*filter)(const FilterRow<T>& row);
  void (*filter_gradient)(const FilterRowGradient<T>& row);
};

template <typename T>
const NormActPrimitives<T>& norm_act_primitives();

}  // namespace hyperseg::cpu
