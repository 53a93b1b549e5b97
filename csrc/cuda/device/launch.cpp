#include "cuda/device/launch.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdlib>
#include <string_view>

#include "common/check.h"

namespace hyperseg::cuda {
namespace {

constexpr int kDependent = 1, kPlain = 2;

void check_cuda(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clear it, or PyTorch's next operator would report it
  fail(op, ": CUDA error: ", cudaGetErrorString(error));
}

// HYPERSEG_DEPENDENT=0: each kernel starts after the previous one has finished, to measure what an early start saves.
bool dependent_launches() {
  static const bool allowed = [] {
    const char* value = std::getenv("HYPERSEG_DEPENDENT");
    return !value || std::string_view(value) != "0";
  }();
  return allowed;
}

// Once per kernel and device: allow it all the shared memory of the device. All kernels prefer the same split of L1 and
// shared memory, because an SM changes it only when it is idle, which would keep a dependent kernel from starting
// early.
int prepare(const char* op, const void* kernel, int device) {
  int most = 0, major = 0;
  check_cuda(op, cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check_cuda(op, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  cudaFuncAttributes found{};
  check_cuda(op, cudaFuncGetAttributes(&found, kernel));
  check_cuda(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      most - static_cast<int>(found.sharedSizeBytes)));
  check_cuda(
      op, cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
  // PTX for an older GPU has no grid-dependency wait, wherever it is compiled: see wait_for_previous_kernel.
  return dependent_launches() && major >= 9 && found.ptxVersion >= 90 ? kDependent : kPlain;
}

}  // namespace

namespace {

// The device's entry in a table, made by find() if it is 0.
template <typename Find>
int known_or(LaunchModes& known, int device, const Find& find) {
  if (device >= kDevices) return find();
  int value = std::atomic_ref(known[device]).load(std::memory_order_relaxed);
  if (!value) {
    value = find();
    std::atomic_ref(known[device]).store(value, std::memory_order_relaxed);
  }
  return value;
}

int current_device(const char* op) {
  int device = 0;
  check_cuda(op, cudaGetDevice(&device));
  return device;
}

int attribute_of(const char* op, cudaDeviceAttr attribute, int device) {
  int value = 0;
  check_cuda(op, cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

}  // namespace

void launch_kernel(const char* op, const void* kernel, LaunchModes& prepared, Grid grid, unsigned threads,
                   size_t shared, Stream stream, void** args, bool together) {
  const int device = current_device(op);
  const int how = known_or(prepared, device, [&] { return prepare(op, kernel, device); });
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (together) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count++].val.cooperative = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  if (how == kDependent) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count].val.programmaticStreamSerializationAllowed = 1;
    ++config.numAttrs;
    const cudaError_t error = cudaLaunchKernelExC(&config, kernel, args);
    // Whether a driver accepts both attributes is not documented; the kernel is right with either.
    if (!together || (error != cudaErrorNotSupported && error != cudaErrorInvalidValue)) return check_cuda(op, error);
    cudaGetLastError();
    config.numAttrs = count;
    if (device < kDevices) std::atomic_ref(prepared[device]).store(kPlain, std::memory_order_relaxed);
  }
  check_cuda(op, cudaLaunchKernelExC(&config, kernel, args));
}

int resident_blocks(const char* op, const void* kernel, LaunchModes& prepared, LaunchModes& known, unsigned threads,
                    size_t shared) {
  const int device = current_device(op);
  const auto find = [&] {
    known_or(prepared, device, [&] { return prepare(op, kernel, device); });
    const int most = attribute_of(op, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (!attribute_of(op, cudaDevAttrCooperativeLaunch, device) || static_cast<int>(shared) > most) return 1;
    int per_sm = 0;
    check_cuda(op, cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, kernel, static_cast<int>(threads), shared));
    return 1 + per_sm * attribute_of(op, cudaDevAttrMultiProcessorCount, device);
  };
  return known_or(known, device, find) - 1;  // 0 means unknown
}

}  // namespace hyperseg::cuda
