#pragma once

#include "cuda/decoder/level.h"
#include "cuda/training/patches.h"

// Around the gradients of a level: its input put together, and its input's gradient taken apart.
namespace hyperseg::cuda {

// Two coordinates, skip, and previous resized, side by side.
void level_input(const Level& level, const Map<void>& out, Type type, const char* op, Stream stream);

// Where the gradient of an input goes: channels before `first` nowhere, `count` of them, or all, into `skip`, those
// behind into `previous`; both of the size of the input.
struct InputGradient {
  int first = 0, split = 0;  // split: counted from `first` on
  Map<void> skip, previous;
};

// Each pixel collects from the windows [patch][channel][pixel] that show it.
void collect_windows(const void* windows, const PatchGrid& grid, int64_t channels, const InputGradient& gradient,
                     Type type, const char* op, Stream stream);

// The gradient of a map that was resized to one with gradient `d`.
void resize_gradient(const Map<const void>& d, int64_t images, const Map<void>& out, Type type, const char* op,
                     Stream stream);

}  // namespace hyperseg::cuda
