#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "../common/check.h"
#include "level.h"

// From tensors to what the kernels take.
namespace hyperseg::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// body(value of the C++ type) for a tensor's type.
template <typename Body>
void with_type(const Tensor& t, const char* name, Body&& body) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    case ScalarType::Half:
      return body(torch::headeronly::Half{});
    case ScalarType::BFloat16:
      return body(torch::headeronly::BFloat16{});
    default:
      check(false, name, ": takes float16, bfloat16, float32 or float64, got ",
            torch::headeronly::toString(t.scalar_type()));
  }
}

template <typename S, typename P>
Map<S> map_of(const Tensor& t, P* data) {
  return {data, t.size(1), t.size(2), t.size(3), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

template <typename S>
Map<const S> read(const Tensor& t) {
  return map_of<const S>(t, static_cast<const S*>(t.const_data_ptr()));
}

template <typename S>
Map<S> write(Tensor& t) {
  return map_of<S>(t, static_cast<S*>(t.mutable_data_ptr()));
}

// The memory format of an operator's result is that of its map. Strides of sides of 1 do not matter, as in torch.
inline bool channels_last(const Tensor& t) {
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) == 1) continue;
    if (t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return !t.is_contiguous();
}

// [N, channels, H, W] in the memory format of `like`.
inline Tensor new_map(const Tensor& like, int64_t channels) {
  const int64_t n = like.size(0), h = like.size(2), w = like.size(3);
  if (!channels_last(like)) return torch::stable::new_empty(like, {n, channels, h, w});
  const Tensor flat = torch::stable::new_empty(like, {n, h, w, channels});
  return torch::stable::transpose(torch::stable::transpose(flat, 2, 3), 1, 2);
}

template <typename S>
std::vector<acc_t<S>> values(const std::optional<Tensor>& t) {
  if (!t) return {};
  std::vector<acc_t<S>> result(t->size(0));
  const S* data = static_cast<const S*>(t->const_data_ptr());
  for (int64_t i = 0; i < t->size(0); ++i) result[i] = static_cast<acc_t<S>>(data[i * t->stride(0)]);
  return result;
}

template <typename S>
PatchWeights<S> patch_weights(const Tensor& weights) {
  return {static_cast<const S*>(weights.const_data_ptr()),
          weights.stride(0),
          weights.stride(1),
          weights.stride(2),
          weights.stride(3),
          weights.size(3)};
}

template <typename S>
void set_weights(Level<S>& level, const Tensor& weights) {
  level.weights = patch_weights<S>(weights);
  level.grid_h = weights.size(1);
  level.grid_w = weights.size(2);
}

}  // namespace hyperseg::cpu
