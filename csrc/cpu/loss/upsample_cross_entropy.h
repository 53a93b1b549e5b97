#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace hyperseg::cpu {

// The loss and the weight of each pixel [N, H, W]; see hyperseg/ops/upsample_cross_entropy.py. Shapes and types have
// been checked, but not values: a label that is no class makes the loss NaN, and the gradients of the logits that its
// pixel samples.
std::tuple<torch::stable::Tensor, torch::stable::Tensor> upsample_cross_entropy(
    const torch::stable::Tensor& logits, const torch::stable::Tensor& labels,
    const std::optional<torch::stable::Tensor>& weight, int64_t ignore_index, int64_t bootstrap, double threshold);

// The gradient of the logits.
torch::stable::Tensor upsample_cross_entropy_backward(const torch::stable::Tensor& grad,
                                                      const torch::stable::Tensor& logits,
                                                      const torch::stable::Tensor& labels,
                                                      const torch::stable::Tensor& weights);

}  // namespace hyperseg::cpu
