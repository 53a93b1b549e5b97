#pragma once

#include <torch/csrc/stable/ops.h>

#include <string>
#include <vector>

#include "cpu/base/tensors.h"
#include "cpu/simd/primitives.h"

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

// Call body(value of the C++ type) for the type in which a tensor is computed.
template <typename Body>
void with_precise(const Tensor& x, const Body& body) {
  x.scalar_type() == ScalarType::Double ? body(double{}) : body(float{});
}

inline Activation activation_of(const std::string& name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "relu6") return Activation::kRelu6;
  return name == "relu" ? Activation::kRelu : Activation::kNone;
}

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

// A matrix of weights [rows, columns] in memory of either order: one of the strides is 1.
template <typename T>
struct WeightMatrix {
  const T* data = nullptr;
  int64_t stride_row = 0, stride_column = 1;

  // For a product whose columns are rows [first, first + count) of this matrix, which has `columns`.
  PackArgs<T> packing(int64_t columns, int64_t first, int64_t count, T* out) const {
    return {.k = columns,
            .n = count,
            .b = data + first * stride_row,
            .stride_k = stride_column,
            .stride_n = stride_row,
            .out = out,
            .depth = columns};
  }
};

// Weights [rows, ...] with all of the other dimensions dense, in memory of either order; `held` owns the data.
template <typename T>
WeightMatrix<T> weight_matrix(const Tensor& t, std::vector<Tensor>& held) {
  Tensor precise_weights =
      t.scalar_type() == precise_type(t.scalar_type()) ? t : torch::stable::to(t, precise_type(t.scalar_type()));
  const int64_t rows = t.size(0);
  int64_t columns = 1;
  bool transposed = true;
  for (int64_t d = t.dim() - 1; d > 0; --d) {
    transposed = transposed && (t.size(d) == 1 || precise_weights.stride(d) == columns * rows);
    columns *= t.size(d);
  }
  transposed = transposed && precise_weights.stride(0) == 1 && columns > 1 && rows > 1;
  held.push_back(transposed ? precise_weights : torch::stable::contiguous(precise_weights));
  const T* const values = static_cast<const T*>(held.back().const_data_ptr());
  return transposed ? WeightMatrix<T>{values, 1, rows} : WeightMatrix<T>{values, columns, 1};
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
