#pragma once

#include "cuda/training/patches.h"

namespace hyperseg::cuda {

// The depthwise 3x3 filter of an inverted residual in training. Hidden maps are stored patch by patch, [patch][pixel]
// [stored channels]; before the filter, with halo "own", as windows.
struct PatchDepthwise {
  PatchGrid grid;
  int hidden = 0, stored = 0;  // channels; padded to a multiple of 8
  bool own = true;             // halo
  PatchMatrix taps;            // [hidden, 9], contiguous
  ScaleShift norm;             // of the hidden map before the filter
};

// filtered = filter(relu6(norm(hidden))). `partial`: nullptr, or workspace for its moments, [rows, 2, stored].
PartialRows rows_of_filtered(const PatchDepthwise& filter, Type type);
void depthwise_filter(const PatchDepthwise& filter, const void* hidden, void* filtered, float* partial, Type type,
                      const char* op, Stream stream);

struct DepthwiseGradients {
  // Gradient after the norm of the filter's output `filtered`; may be overwritten by the one before it, factors[0] * d
  // + factors[1] * filtered + factors[2], with factors [3, stored], or without factors d.
  void* d = nullptr;
  const void* filtered = nullptr;
  const float* factors = nullptr;

  const void* hidden = nullptr;  // before the filter and its norm
  void* gradient = nullptr;      // receives the gradient of `hidden` before norm and ReLU6
  float* partial = nullptr;      // receives the sums of it and of it times `hidden`

  void* d_taps = nullptr;  // receives the gradient of the taps, [patch, parameters] from parameter `first` on
  int64_t first = 0, parameters = 0;
};
// The first part of depthwise_backward: only the gradient of the taps, from d without factors.
void depthwise_wgrad(const PatchDepthwise& filter, const DepthwiseGradients& gradients, Type type, const char* op,
                     Stream stream);

PartialRows rows_of_gradient(const PatchDepthwise& filter, Type type);
void depthwise_backward(const PatchDepthwise& filter, const DepthwiseGradients& gradients, Type type, const char* op,
                        Stream stream);

}  // namespace hyperseg::cuda
