#pragma once

#include "common/check.h"
#include "cuda/device/device.cuh"
#include "cuda/device/launch.h"

#ifdef HYPERSEG_SHIM
#include "shim/launch.h"
#else

#include <type_traits>

namespace hyperseg::cuda {

template <typename... Params>
void launch_with(const char* op, void (*kernel)(Params...), LaunchModes& prepared, Grid grid, unsigned threads,
                 size_t shared, Stream stream, std::type_identity_t<Params>... args) {
  void* pointers[] = {&args...};
  launch_kernel(op, reinterpret_cast<const void*>(kernel), prepared, grid, threads, shared, stream, pointers);
}

template <auto kernel>
inline LaunchModes launch_modes{};

// Launch `kernel` with `threads` threads and `shared` bytes of shared memory per block, as a programmatic dependent of
// the previous kernel: see wait_for_previous_kernel.
template <auto kernel, typename... Args>
void launch(const char* op, Grid grid, unsigned threads, size_t shared, Stream stream, const Args&... args) {
  launch_with(op, kernel, launch_modes<kernel>, grid, threads, shared, stream, args...);
}

// The most blocks that launch_together may launch here: see resident_blocks. Each kernel has one size of blocks.
template <auto kernel>
unsigned together_at_most(const char* op, unsigned threads, size_t shared) {
  static LaunchModes known;
  return static_cast<unsigned>(
      resident_blocks(op, reinterpret_cast<const void*>(kernel), launch_modes<kernel>, known, threads, shared));
}

// Launch blocks that are all resident at once, so that they can wait for one another. `args`: one argument, which may
// be large.
template <auto kernel, typename Args>
void launch_together(const char* op, unsigned blocks, unsigned threads, size_t shared, Stream stream, Args& args) {
  void* pointers[] = {&args};
  launch_kernel(op, reinterpret_cast<const void*>(kernel), launch_modes<kernel>, {blocks}, threads, shared, stream,
                pointers, true);
}

}  // namespace hyperseg::cuda

#endif

namespace hyperseg::cuda {

// Call body(value of the C++ type).
template <typename Body>
void with_type(Type type, Body&& body) {
  switch (type) {
    case Type::kFloat:
      return body(float{});
    case Type::kHalf:
      return body(half{});
    case Type::kBFloat16:
      return body(bfloat16{});
  }
}

// A grid of `rows` x `blocks` blocks.
inline Grid grid_of(const char* op, int64_t blocks, int64_t rows = 1) {
  check(blocks < int64_t{1} << 31 && rows < 1 << 16, op, ": too large for a GPU, it would take ", rows, " x ", blocks,
        " blocks");
  return {static_cast<unsigned>(blocks), static_cast<unsigned>(rows)};
}

}  // namespace hyperseg::cuda
