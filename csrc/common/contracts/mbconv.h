#pragma once

#include "common/encoder_shapes.h"
#include "common/tensor_checks.h"

namespace hyperseg {

// Arguments of a block besides its input.
struct MbconvTensors {
  std::optional<torch::stable::Tensor> expand, expand_bias;
  torch::stable::Tensor depthwise, depthwise_bias, reduce, reduce_bias, gate, gate_bias, project, project_bias;
  int64_t stride;
  std::vector<int64_t> padding;
  bool residual;
};

inline void check_mbconv(const torch::stable::Tensor& x, const MbconvTensors& block) {
  constexpr const char* op = "mbconv";
  const auto& [expand, expand_bias, depthwise, depthwise_bias, reduce, reduce_bias, gate, gate_bias, project,
               project_bias, stride, padding, residual] = block;
  check_map(op, "x", x);
  check(depthwise.dim() == 3, op, ": depthwise must be [hidden, size, size], got ", shape_of(depthwise));
  check(reduce.dim() == 2, op, ": reduce must be [squeezed, hidden], got ", shape_of(reduce));
  check(project.dim() == 2, op, ": project must be [out, hidden], got ", shape_of(project));
  const int64_t channels = x.size(1), hidden = depthwise.size(0), size = depthwise.size(1), squeezed = reduce.size(0),
                out = project.size(0);
  check_count(op, "the number of hidden channels", hidden);
  check_count(op, "the number of squeezed channels", squeezed);
  check_count(op, "the number of channels that project gives", out);
  check(size >= 1 && size <= 7, op, ": the depthwise convolution must have 1x1 to 7x7 taps, got ", size);
  check(expand.has_value() == expand_bias.has_value(), op, ": give expand and expand_bias, or neither");
  check(expand || hidden == channels, op, ": without expand, depthwise must have as many channels as x, ", channels,
        ", got ", hidden);
  const auto expect = [&](const char* name, const torch::stable::Tensor& t, const std::vector<int64_t>& sizes) {
    check_same_kind(op, name, t, "x", x);
    check_shape(op, name, t, sizes);
  };
  if (expand) {
    expect("expand", *expand, {hidden, channels});
    expect("expand_bias", *expand_bias, {hidden});
  }
  expect("depthwise", depthwise, {hidden, size, size});
  expect("depthwise_bias", depthwise_bias, {hidden});
  expect("reduce", reduce, {squeezed, hidden});
  expect("reduce_bias", reduce_bias, {squeezed});
  expect("gate", gate, {hidden, squeezed});
  expect("gate_bias", gate_bias, {hidden});
  expect("project", project, {out, hidden});
  expect("project_bias", project_bias, {out});
  check_count(op, "stride", stride);
  check(padding.size() == 4, op, ": padding must be left, right, top and bottom, got ", padding.size(), " numbers");
  for (int64_t p : padding) check(p >= 0 && p < size, op, ": padding must be 0 to ", size - 1, ", got ", p);
  const int64_t height = x.size(2) + padding[2] + padding[3] - size, width = x.size(3) + padding[0] + padding[1] - size;
  check(height >= 0 && width >= 0, op, ": x of ", x.size(2), "x", x.size(3),
        " is smaller than the depthwise convolution");
  check(!residual || (out == channels && height / stride + 1 == x.size(2) && width / stride + 1 == x.size(3)), op,
        ": residual adds x to the result, which would have another shape");
}

inline MbconvShape mbconv_shape(const torch::stable::Tensor& x, const MbconvTensors& block) {
  const std::vector<int64_t>& padding = block.padding;
  const int64_t size = block.depthwise.size(1), stride = block.stride;
  return {.images = x.size(0),
          .hidden = block.depthwise.size(0),
          .squeezed = block.reduce.size(0),
          .out_channels = block.project.size(0),
          .size = size,
          .stride = stride,
          .left = padding[0],
          .top = padding[2],
          .out_height = convolved_extent(x.size(2), padding[2], padding[3], size, stride),
          .out_width = convolved_extent(x.size(3), padding[0], padding[1], size, stride)};
}

// Set what every block of a backend has: the vectors and the matrices of squeeze-excite, and whether it adds its input.
// dense(tensor) returns a pointer to its values, one after the other.
template <typename Block, typename Dense>
void set_dense_values(Block& block, const MbconvTensors& tensors, const Dense& dense) {
  block.expand_bias = tensors.expand_bias ? dense(*tensors.expand_bias) : nullptr;
  block.depthwise_bias = dense(tensors.depthwise_bias);
  block.reduce = dense(tensors.reduce);
  block.reduce_bias = dense(tensors.reduce_bias);
  block.gate = dense(tensors.gate);
  block.gate_bias = dense(tensors.gate_bias);
  block.project_bias = dense(tensors.project_bias);
  block.residual = tensors.residual;
}

}  // namespace hyperseg
