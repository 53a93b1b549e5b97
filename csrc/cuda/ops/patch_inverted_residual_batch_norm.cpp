#include <optional>
#include <string>
#include <tuple>

#include "common/contracts/patch_inverted_residual.h"
#include "cuda/decoder/level_tensors.h"
#include "cuda/training/block_training.h"

namespace hyperseg::cuda {
namespace {

// The three batch norms, and the memory of their scale and shift.
struct BatchNorms {
  BatchNorm each[3];
  ScaleShift norm[3];
  Tensor memory;

  BatchNorms(const char* op, const TrainingBlock& block, const Tensor& gamma, const Tensor& beta, const Tensor& mean,
             const Tensor& variance, double eps)
      : memory(floats(gamma, 2 * gamma.size(0))) {
    const int64_t counts[3] = {block.pixels_before(), block.pixels(), block.pixels()};
    for (int i = 0; i < 3; ++i) {
      const int first = i * block.hidden();
      each[i] = {vector_of(op, gamma).from(first),
                 vector_of(op, beta).from(first),
                 vector_of(op, mean).from(first),
                 vector_of(op, variance).from(first),
                 i < 2 ? block.hidden() : block.outputs(),
                 eps,
                 static_cast<double>(counts[i])};
      norm[i] = {scale(i), shift(i)};
    }
  }
  // With a group, let norm `i` use the sums of all processes: they are valid as long as the returned tensor.
  std::optional<Tensor> synchronise(int i, const TrainingBlock& block, const ChannelSums& sums,
                                    const std::string& group) {
    if (group.empty()) return {};
    Tensor all = block.synchronise(sums, each[i].count, group);
    each[i].synchronised = static_cast<const double*>(all.const_data_ptr());
    return all;
  }
  float* scale(int i) { return data(memory) + i * (each[1].gamma.first); }
  float* shift(int i) { return scale(i) + memory.numel() / 2; }
};

// A float map [N, channels, H, W] in the memory format of `like`.
Tensor float_map(const Tensor& like, int64_t channels) {
  const Tensor one = torch::stable::new_empty(like, {1}, ScalarType::Float);
  const int64_t n = like.size(0), height = like.size(2), width = like.size(3);
  if (!channels_last(like)) return torch::stable::new_empty(one, {n, channels, height, width});
  const Tensor flat = torch::stable::new_empty(one, {n, height, width, channels});
  return torch::stable::transpose(torch::stable::transpose(flat, 2, 3), 1, 2);
}

std::tuple<Tensor, Tensor, Tensor> patch_inverted_residual_batch_norm(const Tensor& x, const Tensor& weights,
                                                                      const Tensor& scale, const Tensor& shift,
                                                                      int64_t hidden, int64_t out_channels,
                                                                      std::string halo, double eps, std::string group) {
  constexpr const char* op = "patch_inverted_residual_batch_norm";
  check_patch_inverted_residual_batch_norm(op, x, weights, hidden, out_channels, halo,
                                           {{"scale", scale}, {"shift", shift}});
  Tensor y = new_map(x, out_channels), mean = values(scale, scale.size(0)), variance = values(scale, scale.size(0));
  const DeviceGuard device(x);
  const Stream stream = device.stream();
  const Tensor parameters = contiguous_along(weights, 3);
  const TrainingBlock block(op, x, read<void>(x), parameters, hidden, out_channels, halo, stream);
  BatchNorms norms(op, block, scale, shift, mean, variance, eps);
  TrainingBlock::Partial partial{scale, {}};
  const auto finish = [&](int i) {
    const auto [memory, sums] = block.add(partial, true);
    const auto synchronised = norms.synchronise(i, block, sums, group);
    batch_statistics(norms.each[i], sums, norms.scale(i), norms.shift(i), op, stream);
  };
  const Tensor z1 = block.expand(&partial);
  finish(0);
  const Tensor z2 = block.filter(z1, norms.norm[0], &partial);
  finish(1);
  Tensor z3 = float_map(y, out_channels);
  block.project(z2, norms.norm[1], nullptr, write<float>(z3), partial);
  finish(2);
  normalise(read<float>(z3), norms.scale(2), norms.shift(2), x.size(0), write<void>(y), block.type(), op, stream);
  return {y, mean, variance};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> patch_inverted_residual_batch_norm_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weights, const Tensor& scale, const Tensor& shift,
    int64_t hidden, int64_t out_channels, std::string halo, double eps, std::string group, const Tensor& mean,
    const Tensor& variance) {
  constexpr const char* op = "patch_inverted_residual_batch_norm_backward";
  check_patch_inverted_residual_batch_norm(
      op, x, weights, hidden, out_channels, halo,
      {{"scale", scale}, {"shift", shift}, {"mean", mean}, {"variance", variance}});
  check_gradient(op, grad, x, out_channels);
  const auto sizes = x.sizes(), weight_sizes = weights.sizes();
  Tensor d_x = torch::stable::new_empty(x, sizes), d_weights = torch::stable::new_empty(weights, weight_sizes);
  Tensor d_scale = values(scale, scale.size(0)), d_shift = values(shift, shift.size(0));
  const DeviceGuard device(x);
  const Stream stream = device.stream();
  const Tensor parameters = contiguous_along(weights, 3);
  const TrainingBlock block(op, x, read<void>(x), parameters, hidden, out_channels, halo, stream);
  BatchNorms norms(op, block, scale, shift, mean, variance, eps);
  // All three batch norms are one vector here, as their pixel counts are not used.
  BatchNorm together = norms.each[0];
  together.channels = static_cast<int>(scale.size(0));
  batch_norms(together, norms.scale(0), norms.shift(0), op, stream);

  Tensor factors = floats(x, 3 * std::max<int64_t>(block.stored(), out_channels));
  const auto find = [&](int i, TrainingBlock::Partial& partial) {
    const auto [memory, sums] = block.add(partial, false);
    const auto synchronised = norms.synchronise(i, block, sums, group);
    const int first = norms.each[i].gamma.first;
    batch_norm_gradients(norms.each[i], sums, vector_of(op, d_scale).from(first), vector_of(op, d_shift).from(first),
                         data(factors), op, stream);
  };
  const Tensor z1 = block.expand(nullptr), z2 = block.filter(z1, norms.norm[0], nullptr);
  Tensor z3 = float_map(grad, out_channels);
  TrainingBlock::Partial partial{scale, {}};
  const Map<const void> pulled = read<void>(grad);
  block.project(z2, norms.norm[1], &pulled, write<float>(z3), partial);
  find(2, partial);
  const auto through = [&](int i, TrainingBlock::Partial& sums) -> const float* {
    find(i, sums);
    return data(factors);
  };
  const InputGradient gradient{0, static_cast<int>(x.size(1)), write<void>(d_x), {}};
  block.backward(grad, {read<float>(z3), data(factors)}, z1, z2, norms.norm[0], norms.norm[1], through, gradient,
                 d_weights.mutable_data_ptr());
  return {d_x, d_weights, d_scale, d_shift};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) {
  m.impl("patch_inverted_residual_batch_norm", TORCH_BOX(&patch_inverted_residual_batch_norm));
  m.impl("patch_inverted_residual_batch_norm_backward", TORCH_BOX(&patch_inverted_residual_batch_norm_backward));
}

}  // namespace hyperseg::cuda
