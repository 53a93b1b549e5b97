#pragma once

#include <typeinfo>

#include "shim/device.h"
#include "shim/record.h"

// Launches of csrc/cuda/device/launch.cuh on a CPU.
namespace hyperseg::cuda {

// Note a launch if launches are recorded; return whether to run it.
template <auto kernel, typename... Args>
bool record_launch(const char* op, Grid grid, unsigned threads, size_t shared, const Args&... args) {
  if (shim::recording == shim::Recording::kOff) return true;
  shim::launches.push_back({op,
                            typeid(shim::Kernel<kernel>).name(),
                            {grid.x, grid.y, grid.z},
                            threads,
                            shared,
                            shim::pack(kernel, args...)});
  return shim::recording != shim::Recording::kOnly;
}

template <auto kernel, typename... Args>
void launch(const char* op, Grid grid, unsigned threads, size_t shared, Stream, const Args&... args) {
  if (record_launch<kernel>(op, grid, threads, shared, args...))
    shim::run(op, {grid.x, grid.y, grid.z}, threads, shared, [&] { kernel(args...); });
}

// HYPERSEG_SHIM_BLOCKS: blocks that a cooperative launch may have; 0 for a device without such launches.
template <auto kernel>
unsigned together_at_most(const char*, unsigned, size_t) {
  const char* const blocks = std::getenv("HYPERSEG_SHIM_BLOCKS");
  return blocks ? static_cast<unsigned>(std::atoi(blocks)) : 3;
}

template <auto kernel, typename Args>
void launch_together(const char* op, unsigned blocks, unsigned threads, size_t shared, Stream, Args& args) {
  if (record_launch<kernel>(op, Grid{blocks}, threads, shared, args))
    shim::run_together(op, {blocks, 1, 1}, threads, shared, [&] { kernel(args); });
}

}  // namespace hyperseg::cuda
