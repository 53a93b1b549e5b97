#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "../common/patch_inverted_residual.h"
#include "block.h"
#include "gradients.h"

namespace hyperseg::cpu {
namespace {

template <typename S>
Block<S> block_of(const LevelInput<S>& input, const Tensor& x, const Tensor& weights, int64_t hidden,
                  int64_t out_channels, const std::string& halo) {
  return Block<S>(input, patch_weights<S>(weights), x.size(0), x.size(2), x.size(3), weights.size(1), weights.size(2),
                  hidden, out_channels, halo == "own");
}

// Of either kind of norm, which `prepare` sets up and `finish` reads the gradients of.
template <typename S, typename Prepare, typename Finish>
std::tuple<Tensor, Tensor> differentiate(const Tensor& grad, const Tensor& x, const Tensor& weights, int64_t hidden,
                                         int64_t out_channels, const std::string& halo, const Prepare& prepare,
                                         const Finish& finish) {
  Tensor d_x = dense_like(x), d_weights = dense_like(weights);
  const LevelInput<S> input(false, read<S>(x), {}, x.size(0));
  Block<S> block = block_of(input, x, weights, hidden, out_channels, halo);
  prepare(block);
  Accumulated<S> gradient(d_weights);
  block.backward(read<S>(grad), gradient.data());
  gradient.finish();
  const auto plane = [&](int64_t n, int64_t c, auto* buffer) { return block.input_gradient(n, c, buffer); };
  input.scatter(x.size(0), plane, static_cast<S*>(d_x.mutable_data_ptr()), nullptr);
  finish(block);
  return {d_x, d_weights};
}

std::tuple<Tensor, Tensor, Tensor> patch_inverted_residual_backward(const Tensor& grad, const Tensor& x,
                                                                    const Tensor& weights, std::optional<Tensor> bias,
                                                                    int64_t hidden, int64_t out_channels,
                                                                    std::string halo) {
  constexpr char kName[] = "patch_inverted_residual_backward";
  check_patch_inverted_residual(kName, x, weights, bias, hidden, out_channels, halo);
  check_gradient(kName, grad, x, out_channels);
  std::tuple<Tensor, Tensor> gradients;
  Tensor d_bias = nothing(grad);
  with_type(x, kName, [&](auto type) {
    using S = decltype(type);
    gradients = differentiate<S>(
        grad, x, weights, hidden, out_channels, halo, [&](Block<S>& block) { block.fold_norms(values<S>(bias)); },
        [&](Block<S>& block) {
          if (bias) d_bias = vector_like(*bias, block.d_shift);
        });
  });
  return {std::get<0>(gradients), std::get<1>(gradients), d_bias};
}

std::tuple<Tensor, Tensor, Tensor> patch_inverted_residual_batch_norm(const Tensor& x, const Tensor& weights,
                                                                      const Tensor& scale, const Tensor& shift,
                                                                      int64_t hidden, int64_t out_channels,
                                                                      std::string halo, double eps) {
  constexpr char kName[] = "patch_inverted_residual_batch_norm";
  check_patch_inverted_residual_batch_norm(kName, x, weights, hidden, out_channels, halo,
                                           {{"scale", scale}, {"shift", shift}});
  Tensor y = new_map(x, out_channels);
  std::vector<double> mean(scale.size(0)), variance(scale.size(0));
  with_type(x, kName, [&](auto type) {
    using S = decltype(type);
    using T = acc_t<S>;
    const LevelInput<S> input(false, read<S>(x), {}, x.size(0));
    Block<S> block = block_of(input, x, weights, hidden, out_channels, halo);
    block.forward(vector_of<T>(scale, "scale"), vector_of<T>(shift, "shift"), eps, write<S>(y), mean, variance);
  });
  return {y, vector_like(scale, mean), vector_like(scale, variance)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> patch_inverted_residual_batch_norm_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weights, const Tensor& scale, const Tensor& shift,
    int64_t hidden, int64_t out_channels, std::string halo, double eps, const Tensor& mean, const Tensor& variance) {
  constexpr char kName[] = "patch_inverted_residual_batch_norm_backward";
  check_patch_inverted_residual_batch_norm(
      kName, x, weights, hidden, out_channels, halo,
      {{"scale", scale}, {"shift", shift}, {"mean", mean}, {"variance", variance}});
  check_gradient(kName, grad, x, out_channels);
  std::tuple<Tensor, Tensor> gradients;
  Tensor d_scale, d_shift;
  with_type(x, kName, [&](auto type) {
    using S = decltype(type);
    using T = acc_t<S>;
    gradients = differentiate<S>(
        grad, x, weights, hidden, out_channels, halo,
        [&](Block<S>& block) {
          block.normalise(vector_of<T>(scale, "scale"), vector_of<T>(shift, "shift"), vector_of<T>(mean, "mean"),
                          vector_of<T>(variance, "variance"), eps);
        },
        [&](Block<S>& block) {
          d_scale = vector_like(scale, block.d_scale);
          d_shift = vector_like(shift, block.d_shift);
        });
  });
  return {std::get<0>(gradients), std::get<1>(gradients), d_scale, d_shift};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) {
  m.impl("patch_inverted_residual_backward", TORCH_BOX(&patch_inverted_residual_backward));
  m.impl("patch_inverted_residual_batch_norm", TORCH_BOX(&patch_inverted_residual_batch_norm));
  m.impl("patch_inverted_residual_batch_norm_backward", TORCH_BOX(&patch_inverted_residual_batch_norm_backward));
}

}  // namespace hyperseg::cpu
