#pragma once

#include "cuda/training/patches.h"

namespace hyperseg::cuda {

// The depthwise 3x3 filter of an inverted residual in training. Hidden maps lie in memory patch after patch, [patch]
// [pixel][stored channels]; before the filter, with the halo "own", they are windows.
struct Depthwise {
  PatchGrid grid;
  int hidden = 0, stored = 0;  // channels, and with spare ones: a multiple of 8
  bool own = true;             // halo
  PatchMatrix taps;            // [hidden, 9], side by side
  Norm norm;                   // of the hidden map before the filter
};

// filtered = filter of relu6(norm(hidden)). `partial`: none, or room for its moments, [rows, 2, stored].
PartialRows rows_of_filtered(const Depthwise& filter);
void depthwise_filter(const Depthwise& filter, const void* hidden, void* filtered, float* partial, Type type,
                      const char* op, Stream stream);

// The gradient of the hidden map before norm and ReLU6, given that behind the filter; the sums of it and of it times
// the hidden map.
PartialRows rows_of_gradient(const Depthwise& filter);
void depthwise_gradient(const Depthwise& filter, const void* d, const void* hidden, void* gradient, float* partial,
                        Type type, const char* op, Stream stream);

// That of the taps, into [patch, parameters] from `first` on.
void depthwise_taps_gradient(const Depthwise& filter, const void* d, const void* hidden, void* gradient, int64_t first,
                             int64_t parameters, Type type, const char* op, Stream stream);

}  // namespace hyperseg::cuda
