#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "common/check.h"
#include "common/tensors.h"
#include "cuda/decoder/generator.h"
#include "cuda/device/type.h"

// From tensors to the arguments of kernels.
#ifdef HYPERSEG_SHIM
#define HYPERSEG_DISPATCH CPU
#else
#define HYPERSEG_DISPATCH CUDA
#endif

namespace hyperseg::cuda {

inline Type type_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Type::kFloat;
    case ScalarType::Half:
      return Type::kHalf;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    default:
      check(false, op, ": the CUDA kernels take float16, bfloat16 or float32, got ",
            torch::headeronly::toString(t.scalar_type()));
      return Type::kFloat;
  }
}

inline GeneratorArgs generator_of(const Tensor& t, int64_t offset, int64_t groups, int64_t size) {
  return {.data = t.const_data_ptr(),
          .stride_row = t.stride(0),
          .stride_column = t.stride(1),
          .groups = static_cast<int>(groups),
          .rows = static_cast<int>(t.size(0) / groups),
          .width = static_cast<int>(t.size(1)),
          .offset = static_cast<int>(offset),
          .size = static_cast<int>(size)};
}

// Makes the tensor's device current while this object lives; stream() is PyTorch's current stream there.
class DeviceGuard {
 public:
#ifdef HYPERSEG_SHIM
  explicit DeviceGuard(const Tensor&) {}
  Stream stream() const { return nullptr; }
#else
  explicit DeviceGuard(const Tensor& t) : index_(t.get_device_index()), guard_(index_) {}
  Stream stream() const {
    void* stream = nullptr;
    check(aoti_torch_get_current_cuda_stream(index_, &stream) == AOTI_TORCH_SUCCESS,
          "hyperseg: could not get the current CUDA stream of PyTorch");
    return static_cast<Stream>(stream);
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

}  // namespace hyperseg::cuda
