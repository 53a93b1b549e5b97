#pragma once

#include <cstddef>

#include "type.h"

// A launch without its kernel's type, so that it is compiled once.
namespace hyperseg::cuda {

struct Grid {
  unsigned x, y = 1, z = 1;
};

constexpr int kDevices = 64;
// How a kernel is to be launched on each device, 0 where that is not known yet.
using Prepared = int[kDevices];

// `args` as cudaLaunchKernel takes them.
void launch_kernel(const char* op, const void* kernel, Prepared& prepared, Grid grid, unsigned threads, size_t shared,
                   Stream stream, void** args);

}  // namespace hyperseg::cuda
