#include "common/contracts/context_head.h"

#include "cuda/device/tensors.h"
#include "cuda/encoder/conv_tensors.h"
#include "cuda/encoder/pointwise_conv.h"

namespace hyperseg::cuda {
namespace {

constexpr const char* kName = "context_head";

// `t` with its channels from `first` on.
Map<void> channels_from(Map<void> map, int64_t first, int64_t count, Type type) {
  map.data = static_cast<char*>(map.data) + first * (type == Type::kFloat ? 4 : 2);
  map.channels = count;
  return map;
}

Map<const void> constant(const Map<void>& map) { return map.of<const void>(); }

// One call: the launches, and the memory between them.
class ContextHead {
 public:
  explicit ContextHead(const Tensor& x) : x_(x), type_(type_of(kName, x)), device_(x), images_(x.size(0)) {}

  DenseTensors dense;

  Map<void> new_map(int64_t channels, int64_t height, int64_t width) {
    held_.push_back(new_pixels(x_, channels, height, width));
    return pixels_of(held_.back());
  }

  Type type() const { return type_; }

  // Run a convolution, in parts of the depth if its tiles do not fill a GPU. Returns its average over all pixels if
  // `averaged`; its output is then written only if it has memory.
  Map<void> run(PointwiseConv conv, bool averaged = false) {
    const bool splittable = averaged || (!conv.doubled && conv.activation == ConvActivation::kRelu);
    if (splittable) conv.splits = conv_splits(type_, images_, conv);
    if (!averaged && (conv.splits == 1 || conv.out.stride_w != conv.columns)) {
      conv.splits = 1;
      pointwise_convs(kName, type_, {images_}, {conv}, device_.stream());
      return {};
    }
    const int64_t pixels = conv.height * conv.width;
    Tensor sums = torch::stable::new_empty(x_, {conv.splits, images_, pixels, conv.sums_stride()}, ScalarType::Float);
    const Map<void> mean = averaged ? new_map(conv.columns, 1, 1) : Map<void>{};
    conv.sums = static_cast<float*>(sums.mutable_data_ptr());
    pointwise_convs(kName, type_, {images_}, {conv}, device_.stream());
    add_conv_sums(kName, type_,
                  {.sums = conv.sums,
                   .bias = conv.bias,
                   .out = conv.out.data,
                   .mean = mean.data,
                   .splits = conv.splits,
                   .images = images_,
                   .pixels = pixels,
                   .columns = conv.columns,
                   .stride = conv.sums_stride()},
                  device_.stream());
    return mean;
  }

 private:
  const Tensor& x_;
  Type type_;
  DeviceGuard device_;
  int64_t images_;
  std::vector<Tensor> held_;
};

Tensor context_head_op(const Tensor& x, std::optional<Tensor> reduce, std::optional<Tensor> reduce_bias,
                       std::vector<Tensor> down, std::vector<Tensor> down_biases, std::vector<Tensor> up,
                       std::vector<Tensor> up_biases) {
  check_context_head(x, reduce, reduce_bias, down, down_biases, up, up_biases);
  check_conv_pixels(kName, x.size(2), x.size(3));
  ContextHead head(x);
  const int64_t height = x.size(2), width = x.size(3), reduced = reduce ? reduce->size(0) : 0;
  Tensor result = new_pixels(x, reduced + up[0].size(0), height, width);
  const Map<void> out = pixels_of(result);
  const auto convolution = [&](const Map<const void>& first, const Tensor& weight, const Tensor& bias) {
    PointwiseConv conv{};
    conv.first = first;
    conv.height = first.height;
    conv.width = first.width;
    conv.weights = head.dense(weight);
    conv.bias = head.dense(bias);
    conv.columns = weight.size(0);
    conv.activation = ConvActivation::kRelu;
    return conv;
  };

  std::vector<Map<const void>> features{read<void>(x)};
  if (reduce) {
    PointwiseConv conv = convolution(features[0], *reduce, *reduce_bias);
    conv.out = channels_from(out, 0, reduced, head.type());
    head.run(conv);
    features[0] = constant(conv.out);
  }
  Map<const void> context{};
  for (size_t i = 0; i < down.size(); ++i) {
    // [out, in, 2, 2] as [out, 2, 2, in]: dense if the weights are in channels-last memory.
    const Tensor taps = torch::stable::transpose(torch::stable::transpose(down[i], 1, 2), 2, 3);
    const bool last = i + 1 == down.size();
    PointwiseConv conv = convolution(features[i], taps, down_biases[i]);
    conv.taps = 2;
    conv.height = (conv.height + 1) / 2;
    conv.width = (conv.width + 1) / 2;
    if (!last || reduce) conv.out = head.new_map(conv.columns, conv.height, conv.width);
    const Map<void> mean = head.run(conv, last);
    if (last) context = constant(mean);
    features.push_back(constant(conv.out));
  }
  for (size_t i = up.size(); i-- > 0;) {
    PointwiseConv conv = convolution(features[reduce ? i + 1 : i], up[i], up_biases[i]);
    conv.second = context;
    conv.doubled = reduce && i == 0;
    conv.out = i              ? head.new_map(conv.columns, conv.height, conv.width)
               : conv.doubled ? channels_from(out, reduced, conv.columns, head.type())
                              : out;
    if (i == 0 && !reduce) conv.activation = ConvActivation::kNone;
    head.run(conv);
    context = constant(conv.out);
  }
  return as_map(result);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) {
  m.impl("context_head", TORCH_BOX(&context_head_op));
}

}  // namespace hyperseg::cuda
