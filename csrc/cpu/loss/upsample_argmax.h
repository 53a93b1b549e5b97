#pragma once

#include <torch/csrc/stable/tensor.h>

namespace hyperseg::cpu {

// labels [N, H, W], uint8 and contiguous: the argmax over the classes of logits [N, C, h, w] resized to H x W.
void upsample_argmax(const torch::stable::Tensor& logits, torch::stable::Tensor& labels);

}  // namespace hyperseg::cpu
