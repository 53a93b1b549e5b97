#pragma once

#include <torch/csrc/stable/ops.h>

#include "cpu/base/tensors.h"

// Tensors of the encoder's operators: float or double, dense weights, maps in [image, y, x, channel] order.
namespace hyperseg::cpu {

using torch::headeronly::MemoryFormat;

// Contiguous pixels [image, y, x, channel].
template <typename T>
struct NhwcImage {
  T* data;
  int64_t channels, height, width;

  T* at(int64_t n, int64_t y, int64_t x) const { return data + ((n * height + y) * width + x) * channels; }
};

inline ScalarType precise_type(ScalarType type) { return type == ScalarType::Double ? type : ScalarType::Float; }

inline Tensor precise(const Tensor& t, MemoryFormat format = MemoryFormat::Contiguous) {
  const ScalarType type = precise_type(t.scalar_type());
  return torch::stable::contiguous(t.scalar_type() == type ? t : torch::stable::to(t, type), format);
}

inline Tensor new_pixels(const Tensor& like, int64_t channels, int64_t height, int64_t width) {
  return torch::stable::new_empty(like, {like.size(0), height, width, channels}, precise_type(like.scalar_type()));
}

// [n, h, w, c] as [n, c, h, w] in the type and the memory format of `like`.
inline Tensor finish(const Tensor& pixels, const Tensor& like) {
  Tensor map = torch::stable::transpose(torch::stable::transpose(pixels, 2, 3), 1, 2);
  if (like.scalar_type() != pixels.scalar_type()) map = torch::stable::to(map, like.scalar_type());
  return channels_last(like) ? map : torch::stable::contiguous(map);
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <typename T>
T* mutable_data(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

}  // namespace hyperseg::cpu
