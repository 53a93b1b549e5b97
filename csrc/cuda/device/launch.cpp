#include "cuda/device/launch.h"

#include <cuda_runtime_api.h>

#include <atomic>

#include "common/check.h"

namespace hyperseg::cuda {
namespace {

constexpr int kDependent = 1, kPlain = 2;

void check_cuda(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clear it, or PyTorch's next operator would report it
  fail(op, ": CUDA error: ", cudaGetErrorString(error));
}

// Once per kernel and device: allow it all the shared memory of the device.
int prepare(const char* op, const void* kernel, int device) {
  int most = 0, major = 0;
  check_cuda(op, cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check_cuda(op, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  cudaFuncAttributes found{};
  check_cuda(op, cudaFuncGetAttributes(&found, kernel));
  check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      most - static_cast<int>(found.sharedSizeBytes)));
  // PTX for an older GPU has no grid-dependency wait, wherever it is compiled: see wait_for_previous_kernel.
  return major >= 9 && found.ptxVersion >= 90 ? kDependent : kPlain;
}

}  // namespace

void launch_kernel(const char* op, const void* kernel, LaunchModes& prepared, Grid grid, unsigned threads,
                   size_t shared, Stream stream, void** args) {
  int device = 0;
  check_cuda(op, cudaGetDevice(&device));
  int how = device < kDevices ? std::atomic_ref(prepared[device]).load(std::memory_order_relaxed) : 0;
  if (!how) {
    how = prepare(op, kernel, device);
    if (device < kDevices) std::atomic_ref(prepared[device]).store(how, std::memory_order_relaxed);
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
  check_cuda(op, cudaLaunchKernelExC(&config, kernel, args));
}

}  // namespace hyperseg::cuda
