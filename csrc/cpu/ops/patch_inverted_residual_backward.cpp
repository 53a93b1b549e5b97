#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "common/contracts/patch_inverted_residual.h"
#include "cpu/base/gradients.h"
#include "cpu/base/tensors.h"
#include "cpu/decoder/block_tensors.h"

namespace hyperseg::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor> patch_inverted_residual_backward(const Tensor& grad, const Tensor& x,
                                                                    const Tensor& weights, std::optional<Tensor> bias,
                                                                    int64_t hidden, int64_t out_channels,
                                                                    std::string halo) {
  constexpr char kName[] = "patch_inverted_residual_backward";
  check_patch_inverted_residual(kName, x, weights, bias, hidden, out_channels, halo);
  check_gradient(kName, grad, x, out_channels);
  std::tuple<Tensor, Tensor> gradients;
  Tensor d_bias = empty_tensor(grad);
  with_type(x, kName, [&](auto type) {
    using S = decltype(type);
    gradients = differentiate<S>(
        grad, x, weights, hidden, out_channels, halo,
        [&](InvertedResidualTraining<S>& block) { block.fold_norms(values<S>(bias)); },
        [&](InvertedResidualTraining<S>& block) {
          if (bias) d_bias = vector_like(*bias, block.d_shift);
        });
  });
  return {std::get<0>(gradients), std::get<1>(gradients), d_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) {
  m.impl("patch_inverted_residual_backward", TORCH_BOX(&patch_inverted_residual_backward));
}

}  // namespace hyperseg::cpu
