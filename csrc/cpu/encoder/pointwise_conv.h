#pragma once

#include <cstdint>

#include "cpu/encoder/nhwc.h"
#include "cpu/simd/primitives.h"

namespace hyperseg::cpu {

// out[pixels, columns] = activation(in[pixels, depth] weights + bias), with dense rows.
template <typename T>
struct PointwiseConv {
  int64_t pixels, depth, columns;
  const T* in;
  WeightMatrix<T> weights;  // [columns, depth]
  const T* bias;
  T* out;
  Activation activation;
};

template <typename T>
void pointwise_conv(const PointwiseConv<T>& conv);

}  // namespace hyperseg::cpu
