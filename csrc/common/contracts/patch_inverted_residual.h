#pragma once

#include <utility>

#include "common/tensor_checks.h"

namespace hyperseg {

// Requirements on map and weights, for folded norms and batch norms.
inline void check_block(const char* op, const torch::stable::Tensor& x, const torch::stable::Tensor& weights,
                        int64_t hidden, int64_t out_channels, const std::string& halo) {
  check_map(op, "x", x);
  check_count(op, "hidden", hidden);
  check_count(op, "out_channels", out_channels);
  check_halo(op, halo);
  check_patch_weights(op, weights, x, (x.size(1) + 9 + out_channels) * hidden);
  check_reflectable(op, x, 1, 1);
}

inline void check_patch_inverted_residual(const char* op, const torch::stable::Tensor& x,
                                          const torch::stable::Tensor& weights,
                                          const std::optional<torch::stable::Tensor>& bias, int64_t hidden,
                                          int64_t out_channels, const std::string& halo) {
  check_block(op, x, weights, hidden, out_channels, halo);
  if (!bias) return;
  check_same_kind(op, "bias", *bias, "x", x);
  check_shape(op, "bias", *bias, {2 * hidden + out_channels});
}

// `vectors`: scale, shift and others with one number per channel of the norms, in any floating-point type.
inline void check_patch_inverted_residual_batch_norm(
    const char* op, const torch::stable::Tensor& x, const torch::stable::Tensor& weights, int64_t hidden,
    int64_t out_channels, const std::string& halo,
    const std::vector<std::pair<const char*, torch::stable::Tensor>>& vectors) {
  check_block(op, x, weights, hidden, out_channels, halo);
  for (const auto& [name, vector] : vectors) {
    check_floating(op, name, vector);
    check_same_device(op, name, vector, "x", x);
    check_shape(op, name, vector, {2 * hidden + out_channels});
  }
}

}  // namespace hyperseg
