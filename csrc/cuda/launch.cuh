#pragma once

#include <cstddef>

#include "../common/check.h"
#include "device.cuh"
#include "type.h"

namespace hyperseg::cuda {

struct Grid {
  unsigned x, y = 1, z = 1;
};

}  // namespace hyperseg::cuda

#ifdef HYPERSEG_SHIM
#include "../shim/launch.h"
#else

#include <cuda_runtime.h>

#include <atomic>

namespace hyperseg::cuda {

inline void check_cuda(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next operator of PyTorch would find this error and take it for its own
  check(false, op, ": CUDA says: ", cudaGetErrorString(error));
}

// Launch `kernel` with so many threads a block and bytes of shared memory, as part of a chain: see
// wait_for_previous_kernel. What a device needs to be told about a kernel is told once.
template <auto kernel, typename... Args>
void launch(const char* op, Grid grid, unsigned threads, size_t shared, Stream stream, const Args&... args) {
  constexpr int kDevices = 64, kDependent = 1, kPlain = 2;
  static std::atomic<int> prepared[kDevices];  // 0 where it was not
  int device = 0;
  check_cuda(op, cudaGetDevice(&device));
  int how = device < kDevices ? prepared[device].load(std::memory_order_relaxed) : 0;
  if (!how) {
    int most = 0, major = 0;
    check_cuda(op, cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    check_cuda(op, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    cudaFuncAttributes found{};
    check_cuda(op, cudaFuncGetAttributes(&found, kernel));
    check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        most - static_cast<int>(found.sharedSizeBytes)));
    // PTX for an older GPU has no wait, wherever it is compiled: see wait_for_previous_kernel.
    how = major >= 9 && found.ptxVersion >= 90 ? kDependent : kPlain;
    if (device < kDevices) prepared[device].store(how, std::memory_order_relaxed);
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = how == kDependent ? 1 : 0;
  check_cuda(op, cudaLaunchKernelEx(&config, kernel, args...));
}

}  // namespace hyperseg::cuda

#endif

namespace hyperseg::cuda {

// body(value of the type).
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

// As many blocks as a launch asks for, in a row or in several.
inline Grid grid_of(const char* op, int64_t blocks, int64_t rows = 1) {
  check(blocks < int64_t{1} << 31 && rows < 1 << 16, op, ": too large for a GPU, it would take ", rows, " x ", blocks,
        " blocks");
  return {static_cast<unsigned>(blocks), static_cast<unsigned>(rows)};
}

inline unsigned blocks_of(int64_t count, int64_t size) { return static_cast<unsigned>((count + size - 1) / size); }

}  // namespace hyperseg::cuda
