#include "cuda/encoder/pointwise_conv.h"

#include "common/contracts/pointwise_conv.h"
#include "cuda/device/tensors.h"
#include "cuda/encoder/conv_tensors.h"

namespace hyperseg::cuda {
namespace {

std::vector<Tensor> pointwise_conv_op(std::vector<Tensor> xs, std::vector<Tensor> weights, std::vector<Tensor> biases,
                                      std::vector<std::string> activations) {
  constexpr const char* op = "pointwise_conv";
  check_pointwise_conv(xs, weights, biases, activations);
  const Type type = type_of(op, xs[0]);
  const DeviceGuard device(xs[0]);
  DenseTensors dense;
  std::vector<Tensor> outs;
  std::vector<int64_t> images;
  std::vector<PointwiseConv> convs;
  for (size_t i = 0; i < xs.size(); ++i) {
    const Tensor& x = xs[i];
    check_conv_pixels(op, x.size(2), x.size(3));
    Tensor out = new_pixels(x, weights[i].size(0), x.size(2), x.size(3));
    PointwiseConv conv{};
    conv.first = read<void>(x);
    conv.height = x.size(2);
    conv.width = x.size(3);
    conv.weights = dense(weights[i]);
    conv.bias = dense(biases[i]);
    conv.columns = weights[i].size(0);
    conv.activation = activations[i] == "relu"   ? ConvActivation::kRelu
                      : activations[i] == "silu" ? ConvActivation::kSilu
                                                 : ConvActivation::kNone;
    conv.out = pixels_of(out);
    outs.push_back(as_map(out));
    images.push_back(x.size(0));
    convs.push_back(conv);
  }
  pointwise_convs(op, type, images, convs, device.stream());
  return outs;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) {
  m.impl("pointwise_conv", TORCH_BOX(&pointwise_conv_op));
}

}  // namespace hyperseg::cuda
