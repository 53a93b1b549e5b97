#include "cpu/conv/patch_conv2d.h"

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "common/contracts/patch_conv2d.h"
#include "cpu/base/gradients.h"
#include "cpu/base/tasks.h"
#include "cpu/base/tensors.h"
#include "cpu/base/windows.h"
#include "cpu/conv/patch_conv2d_backward.h"
#include "cpu/decoder/level.h"
#include "cpu/decoder/pointwise_backward.h"

namespace hyperseg::cpu {
namespace {

template <typename S>
void pointwise(const Tensor& x, const Tensor& weights, const std::optional<Tensor>& bias, Tensor& out) {
  DecoderLevel<S> level;
  level.skip = read<S>(x);
  level.with_coordinates = false;
  level.images = x.size(0);
  level.out_channels = out.size(1);
  level.bias = values<S>(bias);
  level.set_weights(weights);
  level.out = write<S>(out);
  level.run();
}

Tensor patch_conv2d(const Tensor& x, const Tensor& weights, std::optional<Tensor> bias, int64_t out_channels,
                    std::vector<int64_t> kernel_size, int64_t groups, std::vector<int64_t> dilation,
                    std::string padding_mode) {
  check_patch_conv2d("patch_conv2d", x, weights, bias, out_channels, kernel_size, groups, dilation, padding_mode);
  Tensor out = new_map(x, out_channels);
  with_type(x, "patch_conv2d", [&](auto type) {
    using S = decltype(type);
    if (kernel_size[0] == 1 && kernel_size[1] == 1 && groups == 1) return pointwise<S>(x, weights, bias, out);
    PatchConvolutionForward<S> convolution{
        .x = read<S>(x),
        .out = write<S>(out),
        .weights = patch_weights<S>(weights),
        .bias = values<S>(bias),
        .grid_h = weights.size(1),
        .grid_w = weights.size(2),
        .groups = groups,
        .kernel_h = kernel_size[0],
        .kernel_w = kernel_size[1],
        .dilation_h = dilation[0],
        .dilation_w = dilation[1],
        .ys = padded_axis(x.size(2), dilation[0] * (kernel_size[0] / 2), padding_mode),
        .xs = padded_axis(x.size(3), dilation[1] * (kernel_size[1] / 2), padding_mode),
    };
    const int64_t fh = weights.size(1), fw = weights.size(2);
    for_each_task(x.size(0) * fh * fw, [&](int64_t i) { convolution.patch(i / fw / fh, i / fw % fh, i % fw); });
  });
  return out;
}

template <typename S>
std::vector<double> pointwise_backward(const Tensor& grad, const Tensor& x, const Tensor& weights, int64_t out_channels,
                                       acc_t<S>* d_weights, S* d_x) {
  const LevelInput<S> input(false, read<S>(x), {}, x.size(0));
  const Windows windows(x.size(0), x.size(2), x.size(3), weights.size(1), weights.size(2), 0, 0, "zeros");
  PointwiseBackward<S> block(input, patch_weights<S>(weights), windows, out_channels, {}, false);
  block.backward(read<S>(grad), d_weights);
  const auto plane = [&](int64_t n, int64_t c, auto* buffer) { return block.input_gradient(n, c, buffer); };
  input.scatter(x.size(0), plane, d_x, static_cast<S*>(nullptr));
  return block.d_bias;
}

std::tuple<Tensor, Tensor, Tensor> patch_conv2d_backward(const Tensor& grad, const Tensor& x, const Tensor& weights,
                                                         std::optional<Tensor> bias, int64_t out_channels,
                                                         std::vector<int64_t> kernel_size, int64_t groups,
                                                         std::vector<int64_t> dilation, std::string padding_mode) {
  constexpr char kName[] = "patch_conv2d_backward";
  check_patch_conv2d(kName, x, weights, bias, out_channels, kernel_size, groups, dilation, padding_mode);
  check_gradient(kName, grad, x, out_channels);
  Tensor d_x = dense_like(x), d_weights = dense_like(weights);
  std::vector<double> d_bias;
  with_type(x, "patch_conv2d_backward", [&](auto type) {
    using S = decltype(type);
    using T = acc_t<S>;
    Accumulated<S> gradient(d_weights);
    S* const to = static_cast<S*>(d_x.mutable_data_ptr());
    if (kernel_size[0] == 1 && kernel_size[1] == 1 && groups == 1) {
      d_bias = pointwise_backward<S>(grad, x, weights, out_channels, gradient.data(), to);
    } else {
      const PatchConvolutionBackward<S> convolution{
          .x = read<S>(x),
          .gradient = read<S>(grad),
          .weights = patch_weights<S>(weights),
          .windows = {x.size(0), x.size(2), x.size(3), weights.size(1), weights.size(2),
                      dilation[0] * (kernel_size[0] / 2), dilation[1] * (kernel_size[1] / 2), padding_mode},
          .groups = groups,
          .kernel_h = kernel_size[0],
          .kernel_w = kernel_size[1],
          .dilation_h = dilation[0],
          .dilation_w = dilation[1],
      };
      const Windows& windows = convolution.windows;
      const auto d_windows = uninitialised<T>(windows.patches * x.size(1) * windows.map);
      Partials<T> sums(windows.patches, out_channels);
      convolution.run(gradient.data(), d_windows.get(), sums);
      d_bias = sums.total();
      const LevelInput<S> input(false, convolution.x, {}, x.size(0));
      const auto plane = [&](int64_t n, int64_t c, T* buffer) {
        windows.fold(d_windows.get(), x.size(1), n, c, buffer);
        return buffer;
      };
      input.scatter(x.size(0), plane, to, static_cast<S*>(nullptr));
    }
    gradient.finish();
  });
  return {d_x, d_weights, bias ? vector_like(*bias, d_bias) : empty_tensor(grad)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) {
  m.impl("patch_conv2d", TORCH_BOX(&patch_conv2d));
  m.impl("patch_conv2d_backward", TORCH_BOX(&patch_conv2d_backward));
}

}  // namespace hyperseg::cpu
