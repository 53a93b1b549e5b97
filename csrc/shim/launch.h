#pragma once

#include "shim/device.h"

// Launches of csrc/cuda/device/launch.cuh on a CPU.
namespace hyperseg::cuda {

template <auto kernel, typename... Args>
void launch(const char* op, Grid grid, unsigned threads, size_t shared, Stream, const Args&... args) {
  shim::run(op, {grid.x, grid.y, grid.z}, threads, shared, [&] { kernel(args...); });
}

}  // namespace hyperseg::cuda
