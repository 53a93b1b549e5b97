#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "common/acc.h"
#include "common/check.h"
#include "common/tensors.h"
#include "cpu/base/patch_weights.h"

// From tensors to the arguments of kernels.
namespace hyperseg::cpu {

// Call body(value of the C++ type) for a tensor's type.
template <typename Body>
void with_type(const Tensor& t, const char* name, Body&& body) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    case ScalarType::Half:
      return body(torch::headeronly::Half{});
    case ScalarType::BFloat16:
      return body(torch::headeronly::BFloat16{});
    default:
      check(false, name, ": takes float16, bfloat16, float32 or float64, got ",
            torch::headeronly::toString(t.scalar_type()));
  }
}

template <typename S>
std::vector<acc_t<S>> values(const std::optional<Tensor>& t) {
  if (!t) return {};
  std::vector<acc_t<S>> result(t->size(0));
  const S* data = static_cast<const S*>(t->const_data_ptr());
  for (int64_t i = 0; i < t->size(0); ++i) result[i] = static_cast<acc_t<S>>(data[i * t->stride(0)]);
  return result;
}

template <typename S>
PatchWeights<S> patch_weights(const Tensor& weights) {
  return {static_cast<const S*>(weights.const_data_ptr()),
          weights.stride(0),
          weights.stride(1),
          weights.stride(2),
          weights.stride(3),
          weights.size(3)};
}

}  // namespace hyperseg::cpu
