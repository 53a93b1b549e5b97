#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device/type.h"

// A launch without its kernel's type, so that it is compiled once.
namespace hyperseg::cuda {

struct Grid {
  unsigned x, y = 1, z = 1;
};

// Blocks that cover `count` items, `size` each.
inline unsigned blocks_of(int64_t count, int64_t size) { return static_cast<unsigned>((count + size - 1) / size); }

constexpr int kDevices = 64;
// How a kernel is launched on each device; 0 if not yet known.
using LaunchModes = int[kDevices];

// `args` as for cudaLaunchKernel.
void launch_kernel(const char* op, const void* kernel, LaunchModes& prepared, Grid grid, unsigned threads,
                   size_t shared, Stream stream, void** args, bool together = false);

// The number of blocks of a launch `together`, cooperative, that the current device can hold at once; 0 if it does not
// support such launches. Asked once per device: `known` belongs to one kernel with one size of shared memory.
int resident_blocks(const char* op, const void* kernel, LaunchModes& prepared, LaunchModes& known, unsigned threads,
                    size_t shared);

}  // namespace hyperseg::cuda
