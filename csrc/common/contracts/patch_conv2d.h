#pragma once

#include "common/tensor_checks.h"

namespace hyperseg {

inline void check_patch_conv2d(const char* op, const torch::stable::Tensor& x, const torch::stable::Tensor& weights,
                               const std::optional<torch::stable::Tensor>& bias, int64_t out_channels,
                               const std::vector<int64_t>& kernel_size, int64_t groups,
                               const std::vector<int64_t>& dilation, const std::string& padding_mode) {
  check_map(op, "x", x);
  check_count(op, "out_channels", out_channels);
  check_count(op, "groups", groups);
  check(kernel_size.size() == 2 && dilation.size() == 2, op,
        ": kernel_size and dilation need two numbers each, (vertical, horizontal)");
  int64_t halo[2];
  constexpr int64_t kLargestHalo = int64_t{1} << 14;  // larger windows exceed any memory
  for (int i = 0; i < 2; ++i) {
    check_count(op, "kernel_size", kernel_size[i]);
    check_count(op, "dilation", dilation[i]);
    check(kernel_size[i] % 2 == 1, op, ": kernel sizes must be odd, so that the output is as large as the input; got ",
          kernel_size[0], "x", kernel_size[1]);
    halo[i] = dilation[i] * (kernel_size[i] / 2);
    check(halo[i] <= kLargestHalo, op, ": a kernel may reach at most ", kLargestHalo, " pixels, got ", halo[i]);
  }
  check(x.size(1) % groups == 0 && out_channels % groups == 0, op, ": ", x.size(1), " input and ", out_channels,
        " output channels do not both divide into ", groups, " groups");
  check_patch_weights(op, weights, x, out_channels * (x.size(1) / groups) * kernel_size[0] * kernel_size[1]);
  if (bias) {
    check_same_kind(op, "bias", *bias, "x", x);
    check_shape(op, "bias", *bias, {out_channels});
  }
  if (padding_mode == "reflect") {
    check_reflectable(op, x, halo[0], halo[1]);
  } else if (padding_mode == "circular") {
    check(halo[0] <= x.size(2) && halo[1] <= x.size(3), op, ": a map of ", x.size(2), "x", x.size(3),
          " pixels cannot wrap ", halo[0], "x", halo[1], " around its border");
  } else {
    check(padding_mode == "zeros" || padding_mode == "replicate", op,
          ": padding_mode must be 'reflect', 'zeros', 'replicate' or 'circular', got '", padding_mode, "'");
  }
}

}  // namespace hyperseg
