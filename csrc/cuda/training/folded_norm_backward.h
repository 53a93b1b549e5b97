#pragma once

#include <optional>

#include "cuda/decoder/level_tensors.h"
#include "cuda/training/block_training.h"

namespace hyperseg::cuda {

// Compute the gradients of input and weights of a block with folded norms; returns the gradient of the bias, or an
// empty tensor without a bias.
inline Tensor folded_backward(const char* op, const TrainingBlock& block, const Tensor& grad,
                              const std::optional<Tensor>& bias, const InputGradient& d_x, void* d_weights,
                              Stream stream) {
  const int hidden = block.hidden();
  Tensor norms = floats(grad, 4 * hidden);
  float *scale = data(norms), *shift = scale + 2 * hidden;
  folded_norms(bias ? vector_of(op, *bias) : ChannelVector{}, 2 * hidden, scale, shift, op, stream);
  const ScaleShift norm1{scale, shift}, norm2{scale + hidden, shift + hidden};
  Tensor memory[3] = {grad, grad, grad};
  ChannelSums sums[3];
  const auto through = [&](int norm, TrainingBlock::Partial& partial) -> const float* {
    if (bias) std::tie(memory[norm], sums[norm]) = block.add(partial, false);
    return nullptr;
  };
  Tensor z1 = block.expand(nullptr), z2 = block.filter(z1, norm1, nullptr);
  block.backward(grad, {}, z1, z2, norm1, norm2, through, d_x, d_weights);
  if (!bias) return values(grad, 0);
  const std::vector<int64_t> pixels{0, 2, 3};
  memory[2] = torch::stable::sum(grad, pixels, false, ScalarType::Double);
  sums[2] = {static_cast<double*>(memory[2].mutable_data_ptr()), 1, block.outputs()};
  Tensor d_bias = values(*bias, bias->size(0));
  bias_gradients(sums, {hidden, hidden, block.outputs()}, vector_of(op, d_bias), op, stream);
  return d_bias;
}

}  // namespace hyperseg::cuda
