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

// Launch `kernel` with `threads` threads and `shared` bytes of shared memory per block, as a programmatic dependent of
// the previous kernel: see wait_for_previous_kernel.
template <auto kernel, typename... Args>
void launch(const char* op, Grid grid, unsigned threads, size_t shared, Stream stream, const Args&... args) {
  static LaunchModes prepared;
  launch_with(op, kernel, prepared, grid, threads, shared, stream, args...);
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
