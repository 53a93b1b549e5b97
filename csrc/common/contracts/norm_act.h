#pragma once

#include "common/tensor_checks.h"

namespace hyperseg {

// `vectors`: what has one number per channel, in any floating-point type.
inline void check_norm_act(const char* op, const torch::stable::Tensor& x,
                           const std::vector<std::pair<const char*, torch::stable::Tensor>>& vectors,
                           const std::string& activation) {
  check_map(op, "x", x);
  for (const auto& [name, vector] : vectors) {
    check_floating(op, name, vector);
    check_same_device(op, name, vector, "x", x);
    check_shape(op, name, vector, {x.size(1)});
  }
  const std::string& a = activation;
  check(a == "none" || a == "relu" || a == "relu6" || a == "silu", op,
        ": activation must be 'none', 'relu', 'relu6' or 'silu', got '", a, "'");
}

// One number per image and channel.
inline void check_gate(const char* op, const char* name, const std::optional<torch::stable::Tensor>& gate,
                       const torch::stable::Tensor& x) {
  if (!gate) return;
  check_floating(op, name, *gate);
  check_same_device(op, name, *gate, "x", x);
  check_shape(op, name, *gate, {x.size(0), x.size(1)});
}

inline void check_depthwise(const char* op, const torch::stable::Tensor& x, const torch::stable::Tensor& weight,
                            int64_t stride, const std::vector<int64_t>& padding) {
  check_floating(op, "weight", weight);
  check_same_device(op, "weight", weight, "x", x);
  check(weight.dim() == 4, op, ": weight must be [channels, 1, size, size], got ", shape_of(weight));
  const int64_t size = weight.size(2);
  check_shape(op, "weight", weight, {x.size(1), 1, size, size});
  check((size == 3 || size == 5) && (stride == 1 || stride == 2), op,
        ": takes 3x3 or 5x5 taps with stride 1 or 2, got ", size, "x", size, " with stride ", stride);
  check(padding.size() == 4, op, ": padding must be left, right, top and bottom, got ", padding.size(), " numbers");
  for (int64_t p : padding) check(p >= 0 && p < size, op, ": padding must be 0 to ", size - 1, ", got ", p);
  check(x.size(2) + padding[2] + padding[3] >= size && x.size(3) + padding[0] + padding[1] >= size, op, ": x of ",
        x.size(2), "x", x.size(3), " is smaller than the convolution");
}

}  // namespace hyperseg
