#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/check.h"

// The argument checks of hyperseg/ops for direct callers of torch.ops.hyperseg_native: no kernel may read outside its
// tensors.
namespace hyperseg {

constexpr int64_t kLargest =
    int64_t{1} << 24;  // largest side or count: exact in float32, and multiplications fit 64 bits

// Prints as [2, 3, 4, 5]; formatted only if a message needs it.
struct ShapeOf {
  const torch::stable::Tensor& tensor;
};
Message& operator<<(Message& message, const ShapeOf& shape);

inline ShapeOf shape_of(const torch::stable::Tensor& t) { return {t}; }

void check_floating(const char* op, const char* name, const torch::stable::Tensor& t);
// Four dimensions, none of them empty.
void check_map(const char* op, const char* name, const torch::stable::Tensor& t, const char* layout = "[N, C, H, W]");
void check_same_device(const char* op, const char* name, const torch::stable::Tensor& t, const char* first_name,
                       const torch::stable::Tensor& first);
void check_same_kind(const char* op, const char* name, const torch::stable::Tensor& t, const char* first_name,
                     const torch::stable::Tensor& first);
void check_shape(const char* op, const char* name, const torch::stable::Tensor& t,
                 const std::vector<int64_t>& expected);
void check_count(const char* op, const char* name, int64_t value, int64_t least = 1);
void check_halo(const char* op, const std::string& halo);
// The map divides into fh x fw patches.
void check_grid(const char* op, int64_t fh, int64_t fw, const torch::stable::Tensor& x);
void check_patch_weights(const char* op, const torch::stable::Tensor& weights, const torch::stable::Tensor& x,
                         int64_t parameters);
// Reflection by `halo` pixels needs a map larger than that.
void check_reflectable(const char* op, const torch::stable::Tensor& x, int64_t halo_h, int64_t halo_w);
// The gradient of an operator's output map.
void check_gradient(const char* op, const torch::stable::Tensor& grad, const torch::stable::Tensor& like,
                    int64_t channels);

}  // namespace hyperseg
