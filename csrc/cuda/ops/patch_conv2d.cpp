#include "cuda/conv/patch_conv2d.h"

#include <string>
#include <tuple>

#include "common/contracts/patch_conv2d.h"
#include "cuda/device/tensors.h"

namespace hyperseg::cuda {
namespace {

constexpr char kName[] = "patch_conv2d", kBackward[] = "patch_conv2d_backward";

Padding padding_of(const std::string& mode) {
  return mode == "reflect"     ? Padding::kReflect
         : mode == "replicate" ? Padding::kReplicate
         : mode == "circular"  ? Padding::kCircular
                               : Padding::kZeros;
}

PatchConvolution convolution_of(const char* op, const Tensor& x, const Tensor& weights, int64_t out_channels,
                                const std::vector<int64_t>& kernel_size, int64_t groups,
                                const std::vector<int64_t>& dilation, const std::string& padding_mode) {
  const PatchConvolution convolution{
      .type = type_of(op, x),
      .images = x.size(0),
      .rows = {x.size(2), weights.size(1), kernel_size[0], dilation[0]},
      .columns = {x.size(3), weights.size(2), kernel_size[1], dilation[1]},
      .groups = static_cast<int>(groups),
      .inputs = static_cast<int>(x.size(1) / groups),
      .outputs = static_cast<int>(out_channels / groups),
      .padding = padding_of(padding_mode),
  };
  check(int64_t{convolution.rows.window()} * convolution.columns.window() < int64_t{1} << 31, op,
        ": a patch with its halo may have at most 2^31 pixels; divide the map into more");
  return convolution;
}

Tensor patch_conv2d_op(const Tensor& x, const Tensor& weights, std::optional<Tensor> bias, int64_t out_channels,
                       std::vector<int64_t> kernel_size, int64_t groups, std::vector<int64_t> dilation,
                       std::string padding_mode) {
  check_patch_conv2d(kName, x, weights, bias, out_channels, kernel_size, groups, dilation, padding_mode);
  const PatchConvolution convolution =
      convolution_of(kName, x, weights, out_channels, kernel_size, groups, dilation, padding_mode);
  Tensor out = new_map(x, out_channels);
  const DeviceGuard device(x);
  patch_conv2d(convolution, read<void>(x), read<void>(weights), bias ? bias->const_data_ptr() : nullptr,
               bias ? bias->stride(0) : 0, write<void>(out), device.stream());
  return out;
}

std::tuple<Tensor, Tensor, Tensor> patch_conv2d_backward_op(const Tensor& grad, const Tensor& x, const Tensor& weights,
                                                            std::optional<Tensor> bias, int64_t out_channels,
                                                            std::vector<int64_t> kernel_size, int64_t groups,
                                                            std::vector<int64_t> dilation, std::string padding_mode) {
  check_patch_conv2d(kBackward, x, weights, bias, out_channels, kernel_size, groups, dilation, padding_mode);
  check_gradient(kBackward, grad, x, out_channels);
  const PatchConvolution convolution =
      convolution_of(kBackward, x, weights, out_channels, kernel_size, groups, dilation, padding_mode);
  const auto sizes = x.sizes(), weight_sizes = weights.sizes();
  Tensor d_x = torch::stable::new_empty(x, sizes), d_weights = torch::stable::new_empty(weights, weight_sizes);
  Tensor windows = torch::stable::new_empty(x, {convolution.window_values()}, ScalarType::Float);
  const DeviceGuard device(x);
  patch_conv2d_backward(convolution, read<void>(grad), read<void>(x), read<void>(weights),
                        static_cast<float*>(windows.mutable_data_ptr()), d_x.mutable_data_ptr(),
                        d_weights.mutable_data_ptr(), device.stream());
  if (!bias) return {d_x, d_weights, torch::stable::new_empty(x, {0})};
  const std::vector<int64_t> pixels{0, 2, 3};
  const Tensor d_bias = torch::stable::sum(grad, pixels, false, ScalarType::Float);
  return {d_x, d_weights, torch::stable::to(d_bias, x.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) {
  m.impl("patch_conv2d", TORCH_BOX(&patch_conv2d_op));
  m.impl("patch_conv2d_backward", TORCH_BOX(&patch_conv2d_backward_op));
}

}  // namespace hyperseg::cuda
