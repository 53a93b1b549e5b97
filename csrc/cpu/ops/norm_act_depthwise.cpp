#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "common/contracts/norm_act.h"
#include "common/encoder_shapes.h"
#include "cpu/training/channels.h"
#include "cpu/training/depthwise.h"

namespace hyperseg::cpu {
namespace {

// Calls body(Depthwise) with tensors as it takes them.
template <typename Body>
void with_depthwise(const Tensor& x, const Tensor& mean, const Tensor& scale, const Tensor& shift, const Tensor& weight,
                    int64_t stride, const std::vector<int64_t>& padding, const std::string& activation,
                    const Body& body) {
  with_precise(x, [&](auto type) {
    using T = decltype(type);
    const PerChannel<T> means(mean, kGroup), scales(scale, kGroup), shifts(shift, kGroup);
    const Tensor dense = precise(x, MemoryFormat::ChannelsLast);
    const int64_t size = weight.size(2);
    const PerChannel<T> weights(torch::stable::transpose(precise(torch::stable::flatten(weight, 1)), 0, 1), kGroup);
    body(Depthwise<T>{.images = x.size(0),
                      .channels = x.size(1),
                      .height = x.size(2),
                      .width = x.size(3),
                      .out_height = convolved_extent(x.size(2), padding[2], padding[3], size, stride),
                      .out_width = convolved_extent(x.size(3), padding[0], padding[1], size, stride),
                      .size = size,
                      .stride = stride,
                      .left = padding[0],
                      .top = padding[2],
                      .x = data<T>(dense),
                      .mean = means.row(),
                      .scale = scales.row(),
                      .shift = shifts.row(),
                      .weights = weights.row(),
                      .act = activation_of(activation)});
  });
}

Tensor norm_act_depthwise(const Tensor& x, const Tensor& scale, const Tensor& shift, const Tensor& weight,
                          int64_t stride, std::vector<int64_t> padding, std::string activation) {
  constexpr char kName[] = "norm_act_depthwise";
  check_norm_act(kName, x, {{"scale", scale}, {"shift", shift}}, activation);
  check_depthwise(kName, x, weight, stride, padding);
  Tensor out = x;
  with_depthwise(x, scale, scale, shift, weight, stride, padding, activation, [&]<typename T>(const Depthwise<T>& d) {
    out = new_pixels(x, d.channels, d.out_height, d.out_width);
    depthwise(d, mutable_data<T>(out));
  });
  return finish(out, x);
}

std::tuple<Tensor, Tensor, Tensor> norm_act_depthwise_gradients(const Tensor& grad, const Tensor& x, const Tensor& mean,
                                                                const Tensor& scale, const Tensor& shift,
                                                                const Tensor& weight, int64_t stride,
                                                                std::vector<int64_t> padding, std::string activation) {
  constexpr char kName[] = "norm_act_depthwise_gradients";
  check_norm_act(kName, x, {{"mean", mean}, {"scale", scale}, {"shift", shift}}, activation);
  check_depthwise(kName, x, weight, stride, padding);
  const ScalarType type = precise_type(x.scalar_type());
  Tensor d_norm = new_pixels(x, x.size(1), x.size(2), x.size(3));
  Tensor d_weight = torch::stable::new_empty(x, weight.sizes(), type);
  Tensor sums = torch::stable::new_empty(x, {2, x.size(1)}, type);
  with_depthwise(x, mean, scale, shift, weight, stride, padding, activation, [&]<typename T>(const Depthwise<T>& d) {
    check_shape(kName, "grad", grad, {d.images, d.channels, d.out_height, d.out_width});
    const Tensor gradient = precise(grad, MemoryFormat::ChannelsLast);
    depthwise_gradients(d, data<T>(gradient), mutable_data<T>(d_norm), mutable_data<T>(d_weight),
                        mutable_data<T>(sums));
  });
  return {finish(d_norm, x), d_weight, sums};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) {
  m.impl("norm_act_depthwise", TORCH_BOX(&norm_act_depthwise));
  m.impl("norm_act_depthwise_gradients", TORCH_BOX(&norm_act_depthwise_gradients));
}

}  // namespace hyperseg::cpu
