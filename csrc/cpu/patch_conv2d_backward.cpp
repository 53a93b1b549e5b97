#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "../common/patch_conv2d.h"
#include "gradients.h"
#include "pointwise.h"
#include "primitives_backward.h"

// A patch at a time: the pixels under each tap, [C / groups * kh * kw, positions] as they lie in the patch's window,
// and the gradient in the window's stride with zeros between its rows, so that whole windows are shifted against each
// other.
namespace hyperseg::cpu {
namespace {

template <typename S>
struct ConvolutionBackward {
  using T = acc_t<S>;

  Map<const S> x, gradient;
  PatchWeights<S> weights;
  Windows windows;
  int64_t groups, kernel_h, kernel_w, dilation_h, dilation_w;

  // d_weights: [patches, P]; d_windows: [patches, C, map]; sums: [outputs] a patch.
  void run(T* d_weights, T* d_windows, Partials<T>& sums) const {
    const Primitives<T>& forward = primitives<T>();
    const PrimitivesBackward<T>& back = primitives_backward<T>();
    const int64_t channels = x.channels, outputs = gradient.channels, map = windows.map;
    const int64_t inputs = channels / groups, results = outputs / groups, taps = kernel_h * kernel_w;
    const int64_t depth = inputs * taps, inner = round_up(windows.ph * windows.stride, kPadding);
    const int64_t reach = shift(taps - 1) + kPadding;  // beyond the last window
    torch::stable::parallel_for(0, windows.patches, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> window(channels * map + reach), d(outputs * inner + 4 * kPadding), w(weights.parameters),
          w_turned(weights.parameters), columns(depth * inner + 4 * kPadding), d_window(channels * map + reach);
      for (int64_t patch = begin; patch < end; ++patch) {
        const Windows::Place at = windows.place(patch);
        windows.read(x, at, window.data());
        windows.read_results(gradient, at, inner, d.data(), inner);
        weights.read(at.n, at.gy, at.gx, 0, weights.parameters, w.data());
        back.gradient_sums(outputs, inner, d.data(), inner, nullptr, 0, nullptr, sums.of(patch), nullptr);
        std::fill(d_window.begin(), d_window.end(), T(0));
        for (int64_t g = 0; g < groups; ++g) {
          const T *own = w.data() + g * results * depth, *pulled = d.data() + g * results * inner;
          const auto each_column = [&](const auto& body) {
            for (int64_t i = 0; i < depth; ++i)
              body(columns.data() + i * inner, (g * inputs + i / taps) * map + shift(i % taps));
          };
          each_column([&](T* column, int64_t from) { std::copy_n(window.data() + from, inner, column); });
          back.products(results, depth, inner, pulled, inner, columns.data(), inner,
                        d_weights + patch * weights.parameters + g * results * depth, depth);
          forward.transpose(results, depth, own, depth, w_turned.data(), results);
          forward.gemm({.m = depth,
                        .n = inner,
                        .k = results,
                        .a = w_turned.data(),
                        .lda = results,
                        .b = pulled,
                        .ldb = inner,
                        .c = columns.data(),
                        .ldc = inner});
          each_column([&](const T* column, int64_t to) {
            for (int64_t p = 0; p < inner; ++p) d_window[to + p] += column[p];
          });
        }
        std::copy_n(d_window.data(), channels * map, d_windows + patch * channels * map);
      }
    });
  }

  // How far a tap's pixels lie behind those of the first.
  int64_t shift(int64_t tap) const {
    return tap / kernel_w * dilation_h * windows.stride + tap % kernel_w * dilation_w;
  }
};

template <typename S>
std::vector<double> pointwise(const Tensor& grad, const Tensor& x, const Tensor& weights, int64_t out_channels,
                              acc_t<S>* d_weights, S* d_x) {
  const LevelInput<S> input(false, read<S>(x), {}, x.size(0));
  const Windows windows(x.size(0), x.size(2), x.size(3), weights.size(1), weights.size(2), 0, 0, "zeros");
  Pointwise<S> block(input, patch_weights<S>(weights), windows, out_channels, {}, false);
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
      d_bias = pointwise<S>(grad, x, weights, out_channels, gradient.data(), to);
    } else {
      const ConvolutionBackward<S> convolution{
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
  return {d_x, d_weights, bias ? vector_like(*bias, d_bias) : nothing(grad)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) {
  m.impl("patch_conv2d_backward", TORCH_BOX(&patch_conv2d_backward));
}

}  // namespace hyperseg::cpu
