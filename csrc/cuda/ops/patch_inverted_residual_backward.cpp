#include "common/contracts/patch_inverted_residual.h"

#include <tuple>

#include "cuda/training/folded_norm_backward.h"

namespace hyperseg::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> patch_inverted_residual_backward(const Tensor& grad, const Tensor& x,
                                                                    const Tensor& weights, std::optional<Tensor> bias,
                                                                    int64_t hidden, int64_t out_channels,
                                                                    std::string halo) {
  constexpr const char* op = "patch_inverted_residual_backward";
  check_patch_inverted_residual(op, x, weights, bias, hidden, out_channels, halo);
  check_gradient(op, grad, x, out_channels);
  const auto sizes = x.sizes(), weight_sizes = weights.sizes();
  Tensor d_x = torch::stable::new_empty(x, sizes), d_weights = torch::stable::new_empty(weights, weight_sizes);
  const DeviceGuard device(x);
  const Tensor parameters = contiguous_along(weights, 3);
  const TrainingBlock block(op, x, read<void>(x), parameters, hidden, out_channels, halo, device.stream());
  const InputGradient gradient{0, static_cast<int>(x.size(1)), write<void>(d_x), {}};
  Tensor d_bias = folded_backward(op, block, grad, bias, gradient, d_weights.mutable_data_ptr(), device.stream());
  return {d_x, d_weights, d_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) {
  m.impl("patch_inverted_residual_backward", TORCH_BOX(&patch_inverted_residual_backward));
}

}  // namespace hyperseg::cuda
