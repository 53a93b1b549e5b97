#include "cpu/encoder/pointwise_conv.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/contracts/pointwise_conv.h"
#include "cpu/base/tensors.h"
#include "cpu/encoder/nhwc.h"

namespace hyperseg::cpu {
namespace {

template <typename T>
void run(const Tensor& x, const Tensor& weight, const Tensor& bias, const std::string& activation, Tensor& out) {
  const Tensor input = precise(x, MemoryFormat::ChannelsLast), shift = precise(bias);
  std::vector<Tensor> held;
  pointwise_conv<T>({.pixels = x.size(0) * x.size(2) * x.size(3),
                     .depth = x.size(1),
                     .columns = weight.size(0),
                     .in = data<T>(input),
                     .weights = weight_matrix<T>(weight, held),
                     .bias = data<T>(shift),
                     .out = mutable_data<T>(out),
                     .activation = activation_of(activation)});
}

std::vector<Tensor> pointwise_conv_op(std::vector<Tensor> xs, std::vector<Tensor> weights, std::vector<Tensor> biases,
                                      std::vector<std::string> activations) {
  check_pointwise_conv(xs, weights, biases, activations);
  std::vector<Tensor> outs;
  for (size_t i = 0; i < xs.size(); ++i) {
    const Tensor& x = xs[i];
    Tensor out = new_pixels(x, weights[i].size(0), x.size(2), x.size(3));
    with_precise(out, [&](auto type) { run<decltype(type)>(x, weights[i], biases[i], activations[i], out); });
    if (out.scalar_type() != x.scalar_type()) out = torch::stable::to(out, x.scalar_type());
    outs.push_back(torch::stable::transpose(torch::stable::transpose(out, 2, 3), 1, 2));
  }
  return outs;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) { m.impl("pointwise_conv", TORCH_BOX(&pointwise_conv_op)); }

}  // namespace hyperseg::cpu
