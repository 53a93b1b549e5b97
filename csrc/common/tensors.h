#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "common/map.h"

namespace hyperseg {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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

// Whether pixels are dense in [image, y, x, channel] order. As in torch, strides of dimensions of size 1 do not matter.
inline bool is_nhwc(const Tensor& t) {
  int64_t expected = 1;
  for (const int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) == 1) continue;
    if (t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// The memory format of an operator's output is that of its map.
inline bool channels_last(const Tensor& t) { return is_nhwc(t) && !t.is_contiguous(); }

// [N, channels, height, width] in the memory format of `like`.
inline Tensor new_map(const Tensor& like, int64_t channels, int64_t height, int64_t width) {
  const int64_t n = like.size(0);
  if (!channels_last(like)) return torch::stable::new_empty(like, {n, channels, height, width});
  const Tensor flat = torch::stable::new_empty(like, {n, height, width, channels});
  return torch::stable::transpose(torch::stable::transpose(flat, 2, 3), 1, 2);
}

inline Tensor new_map(const Tensor& like, int64_t channels) {
  return new_map(like, channels, like.size(2), like.size(3));
}

}  // namespace hyperseg
