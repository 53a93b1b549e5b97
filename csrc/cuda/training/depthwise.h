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
PartialRows rows_of_filtered(const PatchDepthwise& filter);
void depthwise_filter(const PatchDepthwise& filter, const void* hidden, void* filtered, float* partial, Type type,
                      const char* op, Stream stream);

// Compute the gradient of the hidden map before norm and ReLU6 from the gradient `d` of the filter's output, and the
// sums of it and of it times the hidden map.
PartialRows rows_of_gradient(const PatchDepthwise& filter);
void depthwise_gradient(const PatchDepthwise& filter, const void* d, const void* hidden, void* gradient, float* partial,
                        Type type, const char* op, Stream stream);

// Write the gradient of the taps to [patch, parameters], from parameter `first` on.
void depthwise_wgrad(const PatchDepthwise& filter, const void* d, const void* hidden, void* gradient, int64_t first,
                     int64_t parameters, Type type, const char* op, Stream stream);

}  // namespace hyperseg::cuda
