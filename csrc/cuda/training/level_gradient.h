#pragma once

#include "cuda/decoder/level.h"
#include "cuda/training/patches.h"

// The input of a level as one map, and its gradient distributed to the tensors that it came from.
namespace hyperseg::cuda {

// Write two coordinates, skip and resized previous as consecutive channels.
void level_input(const DecoderLevelArgs& level, const Map<void>& out, Type type, const char* op, Stream stream);

// Destination of an input gradient. Channels before `first` are dropped; the next `split`, or all, go to `skip` and the
// following ones to `previous`; both have the size of the input.
struct InputGradient {
  int first = 0, split = 0;  // split is relative to `first`
  Map<void> skip, previous;
};

// Each pixel gathers from the windows that contain it, [patch][pixel][channel] if windows_by_pixel, else
// [patch][channel][pixel].
bool windows_by_pixel(const InputGradient& gradient);
void collect_windows(const void* windows, const PatchGrid& grid, int64_t channels, const InputGradient& gradient,
                     Type type, const char* op, Stream stream);

// Compute the gradient of a map from the gradient `d` of its resized version.
void resize_gradient(const Map<const void>& d, int64_t images, const Map<void>& out, Type type, const char* op,
                     Stream stream);

}  // namespace hyperseg::cuda
