#pragma once

#include <cstdint>

#include "common/encoder_shapes.h"
#include "cpu/base/buffer.h"
#include "cpu/encoder/nhwc.h"
#include "cpu/simd/primitives.h"

namespace hyperseg::cpu {

template <typename T>
struct Mbconv : MbconvShape {
  NhwcImage<const T> in{};
  WeightMatrix<T> expand{}, project{};  // expand.data is null without an expansion
  const T *expand_bias = nullptr, *depthwise = nullptr, *depthwise_bias = nullptr, *reduce = nullptr,
          *reduce_bias = nullptr;
  const T *gate = nullptr, *gate_bias = nullptr, *project_bias = nullptr;
  bool residual = false;

  int64_t filtered_size() const;
  int64_t gated_size() const { return packed_size(hidden, out_channels); }
};

// out: [images, out_height, out_width, out_channels]. Workspaces of one image: `filtered` and `gated`, of
// filtered_size() and gated_size() values.
template <typename T>
void mbconv(const Mbconv<T>& block, T* filtered, T* gated, T* out);

}  // namespace hyperseg::cpu
