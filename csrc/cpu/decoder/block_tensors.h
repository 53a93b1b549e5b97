#pragma once

#include <string>
#include <tuple>

#include "cpu/base/gradients.h"
#include "cpu/base/tensors.h"
#include "cpu/decoder/block_training.h"

// Training blocks from tensors, for patch_inverted_residual and its variant with batch norms.
namespace hyperseg::cpu {

template <typename S>
InvertedResidualTraining<S> block_of(const LevelInput<S>& input, const Tensor& x, const Tensor& weights, int64_t hidden,
                                     int64_t out_channels, const std::string& halo) {
  return InvertedResidualTraining<S>(input, patch_weights<S>(weights), x.size(0), x.size(2), x.size(3), weights.size(1),
                                     weights.size(2), hidden, out_channels, halo == "own");
}

// Backward pass for either kind of norm: `prepare` sets up the norms and `finish` reads their gradients.
template <typename S, typename Prepare, typename Finish>
std::tuple<Tensor, Tensor> differentiate(const Tensor& grad, const Tensor& x, const Tensor& weights, int64_t hidden,
                                         int64_t out_channels, const std::string& halo, const Prepare& prepare,
                                         const Finish& finish) {
  Tensor d_x = dense_like(x), d_weights = dense_like(weights);
  const LevelInput<S> input(false, read<S>(x), {}, x.size(0));
  InvertedResidualTraining<S> block = block_of(input, x, weights, hidden, out_channels, halo);
  prepare(block);
  Accumulated<S> gradient(d_weights);
  block.backward(read<S>(grad), gradient.data());
  gradient.finish();
  const auto plane = [&](int64_t n, int64_t c, auto* buffer) { return block.input_gradient(n, c, buffer); };
  input.scatter(x.size(0), plane, static_cast<S*>(d_x.mutable_data_ptr()), nullptr);
  finish(block);
  return {d_x, d_weights};
}

}  // namespace hyperseg::cpu
