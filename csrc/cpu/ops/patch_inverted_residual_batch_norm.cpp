#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <tuple>

#include "common/all_reduce.h"
#include "common/contracts/patch_inverted_residual.h"
#include "cpu/base/gradients.h"
#include "cpu/base/tensors.h"
#include "cpu/decoder/block_tensors.h"

namespace hyperseg::cpu {
namespace {

// How a norm adds its sums over the processes of a group; empty for the group "", this process alone.
AddProcesses adding_processes(const Tensor& like, const std::string& group) {
  if (group.empty()) return {};
  return [&like, &group](std::vector<double>& sums) {
    const auto count = static_cast<int64_t>(sums.size());
    Tensor local = torch::stable::new_empty(like, {count}, ScalarType::Double);
    std::copy(sums.begin(), sums.end(), static_cast<double*>(local.mutable_data_ptr()));
    const Tensor total = all_reduce(local, group);
    std::copy_n(static_cast<const double*>(total.const_data_ptr()), count, sums.begin());
  };
}

std::tuple<Tensor, Tensor, Tensor> patch_inverted_residual_batch_norm(const Tensor& x, const Tensor& weights,
                                                                      const Tensor& scale, const Tensor& shift,
                                                                      int64_t hidden, int64_t out_channels,
                                                                      std::string halo, double eps, std::string group) {
  constexpr char kName[] = "patch_inverted_residual_batch_norm";
  check_patch_inverted_residual_batch_norm(kName, x, weights, hidden, out_channels, halo,
                                           {{"scale", scale}, {"shift", shift}});
  Tensor y = new_map(x, out_channels);
  std::vector<double> mean(scale.size(0)), variance(scale.size(0));
  with_type(x, kName, [&](auto type) {
    using S = decltype(type);
    using T = acc_t<S>;
    const LevelInput<S> input(false, read<S>(x), {}, x.size(0));
    InvertedResidualTraining<S> block = block_of(input, x, weights, hidden, out_channels, halo);
    block.synchronise(adding_processes(x, group));
    block.forward(vector_of<T>(scale, "scale"), vector_of<T>(shift, "shift"), eps, write<S>(y), mean, variance);
  });
  return {y, vector_like(scale, mean), vector_like(scale, variance)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> patch_inverted_residual_batch_norm_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weights, const Tensor& scale, const Tensor& shift,
    int64_t hidden, int64_t out_channels, std::string halo, double eps, std::string group, const Tensor& mean,
    const Tensor& variance) {
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
        [&](InvertedResidualTraining<S>& block) {
          block.synchronise(adding_processes(x, group));
          block.normalise(vector_of<T>(scale, "scale"), vector_of<T>(shift, "shift"), vector_of<T>(mean, "mean"),
                          vector_of<T>(variance, "variance"), eps);
        },
        [&](InvertedResidualTraining<S>& block) {
          d_scale = vector_like(scale, block.d_scale);
          d_shift = vector_like(shift, block.d_shift);
        });
  });
  return {std::get<0>(gradients), std::get<1>(gradients), d_scale, d_shift};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) {
  m.impl("patch_inverted_residual_batch_norm", TORCH_BOX(&patch_inverted_residual_batch_norm));
  m.impl("patch_inverted_residual_batch_norm_backward", TORCH_BOX(&patch_inverted_residual_batch_norm_backward));
}

}  // namespace hyperseg::cpu
