#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "check.h"

namespace hyperseg {

inline void check_mbconv(const torch::stable::Tensor& x, const std::optional<torch::stable::Tensor>& expand,
                         const std::optional<torch::stable::Tensor>& expand_bias,
                         const torch::stable::Tensor& depthwise, const torch::stable::Tensor& depthwise_bias,
                         const torch::stable::Tensor& reduce, const torch::stable::Tensor& reduce_bias,
                         const torch::stable::Tensor& gate, const torch::stable::Tensor& gate_bias,
                         const torch::stable::Tensor& project, const torch::stable::Tensor& project_bias,
                         int64_t stride, const std::vector<int64_t>& padding, bool residual) {
  using torch::stable::Tensor;
  const auto expect = [&](const char* name, const Tensor& t, std::vector<int64_t> sizes) {
    check(t.scalar_type() == x.scalar_type() && t.device() == x.device(), "mbconv: ", name,
          " must have the dtype and the device of x");
    bool right = t.dim() == int64_t(sizes.size());
    for (size_t i = 0; right && i < sizes.size(); ++i) right = t.size(i) == sizes[i];
    std::ostringstream wanted;
    for (int64_t size : sizes) wanted << (wanted.tellp() > 0 ? ", " : "") << size;
    check(right, "mbconv: ", name, " must be [", wanted.str(), "]");
  };
  check(x.dim() == 4 && x.numel() > 0, "mbconv: x must be [N, C, H, W] and not empty");
  check(depthwise.dim() == 3, "mbconv: depthwise must be [hidden, size, size]");
  check(reduce.dim() == 2 && project.dim() == 2, "mbconv: reduce must be [squeezed, hidden], project [out, hidden]");
  const int64_t channels = x.size(1), hidden = depthwise.size(0), size = depthwise.size(1), squeezed = reduce.size(0),
                out = project.size(0);
  check(hidden >= 1 && squeezed >= 1 && out >= 1, "mbconv: hidden, squeezed and out must be at least 1");
  check(size >= 1 && size <= 7, "mbconv: the depthwise convolution must have 1x1 to 7x7 taps, got ", size);
  check(expand.has_value() == expand_bias.has_value(), "mbconv: give expand and expand_bias, or neither");
  if (expand) {
    expect("expand", *expand, {hidden, channels});
    expect("expand_bias", *expand_bias, {hidden});
  } else {
    check(hidden == channels, "mbconv: without expand, depthwise must have x's ", channels, " channels, got ", hidden);
  }
  expect("depthwise", depthwise, {hidden, size, size});
  expect("depthwise_bias", depthwise_bias, {hidden});
  expect("reduce", reduce, {squeezed, hidden});
  expect("reduce_bias", reduce_bias, {squeezed});
  expect("gate", gate, {hidden, squeezed});
  expect("gate_bias", gate_bias, {hidden});
  expect("project", project, {out, hidden});
  expect("project_bias", project_bias, {out});
  check(stride >= 1, "mbconv: stride must be at least 1, got ", stride);
  check(padding.size() == 4, "mbconv: padding must be [left, right, top, bottom]");
  for (int64_t p : padding) check(p >= 0 && p < size, "mbconv: padding must be 0 to ", size - 1, ", got ", p);
  check(x.size(2) + padding[2] + padding[3] >= size && x.size(3) + padding[0] + padding[1] >= size, "mbconv: x of ",
        x.size(2), "x", x.size(3), " is smaller than the depthwise convolution");
  if (residual) {
    const bool same =
        stride == 1 && channels == out && padding[0] + padding[1] == size - 1 && padding[2] + padding[3] == size - 1;
    check(same, "mbconv: residual needs a result of the shape of x");
  }
}

}  // namespace hyperseg
