#pragma once

#include "device.h"

// The names of csrc/cuda/launch.cuh on a CPU.
namespace hyperseg::cuda {

struct Grid {
  unsigned x, y = 1, z = 1;
};

template <auto kernel, typename... Args>
void launch(const char* op, Grid grid, unsigned threads, size_t shared, Stream, const Args&... args) {
  shim::run(op, {grid.x, grid.y, grid.z}, threads, shared, [&] { kernel(args...); });
}

}  // namespace hyperseg::cuda
