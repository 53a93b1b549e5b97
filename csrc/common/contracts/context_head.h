#pragma once

#include "common/tensor_checks.h"

namespace hyperseg {

inline void check_context_head(const torch::stable::Tensor& x, const std::optional<torch::stable::Tensor>& reduce,
                               const std::optional<torch::stable::Tensor>& reduce_bias,
                               const std::vector<torch::stable::Tensor>& down,
                               const std::vector<torch::stable::Tensor>& down_biases,
                               const std::vector<torch::stable::Tensor>& up,
                               const std::vector<torch::stable::Tensor>& up_biases) {
  constexpr const char* op = "context_head";
  check_map(op, "x", x);
  check(reduce.has_value() == reduce_bias.has_value(), op, ": give reduce and reduce_bias, or neither");
  const size_t levels = down.size();
  check(levels > 0 && down_biases.size() == levels && up.size() == levels && up_biases.size() == levels, op,
        ": needs as many down as up, at least one, with a bias each, got ", levels, " down, ", down_biases.size(),
        " down_biases, ", up.size(), " up and ", up_biases.size(), " up_biases");
  const auto expect = [&](const char* name, const torch::stable::Tensor& weight, const torch::stable::Tensor& bias,
                          std::vector<int64_t> sizes) {
    check_same_kind(op, name, weight, "x", x);
    check_same_kind(op, "a bias", bias, "x", x);
    check(weight.dim() > 0, op, ": ", name, " must have dimensions, got a number");
    check_count(op, "the number of outputs", weight.size(0));
    sizes.insert(sizes.begin(), weight.size(0));
    check_shape(op, name, weight, sizes);
    check_shape(op, "a bias", bias, {weight.size(0)});
    return weight.size(0);
  };
  std::vector<int64_t> channels{x.size(1)};
  if (reduce) channels[0] = expect("reduce", *reduce, *reduce_bias, channels);
  for (size_t i = 0; i < levels; ++i) channels.push_back(expect("down", down[i], down_biases[i], {channels[i], 2, 2}));
  int64_t context = channels.back();
  for (size_t i = levels; i-- > 0;)
    context = expect("up", up[i], up_biases[i], {channels[reduce ? i + 1 : i] + context});
}

}  // namespace hyperseg
