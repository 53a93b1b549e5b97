#pragma once

#include "common/tensor_checks.h"

namespace hyperseg {

inline void check_pointwise_conv(const std::vector<torch::stable::Tensor>& xs,
                                 const std::vector<torch::stable::Tensor>& weights,
                                 const std::vector<torch::stable::Tensor>& biases,
                                 const std::vector<std::string>& activations) {
  constexpr const char* op = "pointwise_conv";
  const size_t count = xs.size();
  check(count > 0 && weights.size() == count && biases.size() == count && activations.size() == count, op,
        ": needs one weight, bias and activation for each map, got ", count, " maps, ", weights.size(), " weights, ",
        biases.size(), " biases and ", activations.size(), " activations");
  for (size_t i = 0; i < count; ++i) {
    check_map(op, "x", xs[i]);
    check_same_kind(op, "x", xs[i], "the first x", xs[0]);
    check_same_kind(op, "weight", weights[i], "x", xs[i]);
    check_same_kind(op, "bias", biases[i], "x", xs[i]);
    check(weights[i].dim() == 2 && weights[i].size(1) == xs[i].size(1), op, ": weight must be [out, ", xs[i].size(1),
          "], got ", shape_of(weights[i]));
    check_count(op, "the number of outputs", weights[i].size(0));
    check_shape(op, "bias", biases[i], {weights[i].size(0)});
    const std::string& a = activations[i];
    check(a == "none" || a == "relu" || a == "silu", op, ": activation must be 'none', 'relu' or 'silu', got '", a,
          "'");
  }
}

}  // namespace hyperseg
