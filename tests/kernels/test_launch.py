"""How csrc/cuda/device/launch.cpp launches kernels, compiled against a CUDA runtime that only records."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Stands for <cuda_runtime_api.h>: what launch.cpp uses of it.
RUNTIME = r"""
#include <cstddef>
#include <cstdio>

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorNotSupported };
enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrCooperativeLaunch,
  cudaDevAttrMultiProcessorCount
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributePreferredSharedMemoryCarveout };
enum { cudaSharedmemCarveoutMaxShared = 100 };
struct cudaFuncAttributes { size_t sharedSizeBytes; int ptxVersion; };
struct dim3 { unsigned x, y = 1, z = 1; dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {} };
enum cudaLaunchAttributeID {
  cudaLaunchAttributeNone,
  cudaLaunchAttributeCooperative,
  cudaLaunchAttributeProgrammaticStreamSerialization
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct { int cooperative, programmaticStreamSerializationAllowed; } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  struct CUstream_st* stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "none"; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 232448;
  return cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  return *found = {1024, 90}, cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute attribute, int value) {
  const bool shared = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize;
  return std::printf("%s %d\n", shared ? "shared" : "carveout", value), cudaSuccess;
}
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  return *blocks = 2, cudaSuccess;
}
// A driver that refuses both attributes of a cooperative launch together.
inline cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void*, void**) {
  bool dependent = false, together = false;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    dependent = dependent || config->attrs[i].val.programmaticStreamSerializationAllowed;
    together = together || config->attrs[i].val.cooperative;
  }
  if (dependent && together) return std::printf("refused\n"), cudaErrorNotSupported;
  return std::printf(together ? "together\n" : dependent ? "dependent\n" : "plain\n"), cudaSuccess;
}
"""
PROGRAM = r"""
#include "cuda/device/launch.h"

int main() {
  static hyperseg::cuda::LaunchModes modes;
  for (int i = 0; i < 2; ++i) hyperseg::cuda::launch_kernel("op", modes, modes, {1}, 32, 0, nullptr, nullptr, false);
  static hyperseg::cuda::LaunchModes others;
  for (int i = 0; i < 2; ++i) hyperseg::cuda::launch_kernel("op", others, others, {1}, 32, 0, nullptr, nullptr, true);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("launch")
    (folder / "cuda_runtime_api.h").write_text(RUNTIME)
    (folder / "main.cpp").write_text(PROGRAM)
    sources = [folder / "main.cpp", ROOT / "csrc/cuda/device/launch.cpp", ROOT / "csrc/common/check.cpp"]
    command = [compiler, "-std=c++20", f"-I{folder}", f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", folder / "run"]
    subprocess.run(command, check=True)
    return folder / "run"


@pytest.mark.parametrize(("setting", "launched"), [(None, "dependent"), ("1", "dependent"), ("0", "plain")])
def test_launches_are_programmatic_unless_the_variable_forbids_it(program, setting, launched):
    env = {key: value for key, value in os.environ.items() if key != "HYPERSEG_DEPENDENT"}
    env |= {} if setting is None else {"HYPERSEG_DEPENDENT": setting}
    lines = subprocess.run([program], env=env, check=True, capture_output=True, text=True).stdout.splitlines()
    # Prepared once, and with the same carve-out whatever the kernel needs.
    prepared = ["shared 231424", "carveout 100"]
    refused = ["refused"] if launched == "dependent" else []
    assert lines == [*prepared, launched, launched, *prepared, *refused, "together", "together"]
