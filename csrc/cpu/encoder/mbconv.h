#pragma once

#include <cstdint>

#include "common/encoder_shapes.h"
#include "cpu/base/buffer.h"
#include "cpu/encoder/nhwc.h"
#include "cpu/simd/primitives.h"

namespace hyperseg::cpu {

template <typename T>
struct Mbconv : MbconvShape {
  Image<const T> in;
  const T *expand, *expand_bias;  // null without an expansion
  const T *depthwise, *depthwise_bias, *reduce, *reduce_bias, *gate, *gate_bias, *project, *project_bias;
  bool residual;

  int64_t filtered_size() const { return out_height * out_width * hidden; }
  int64_t gated_size() const { return hidden * round_up(out_channels, kPadding) + kPadding; }
};

// out: [images, out_height, out_width, out_channels]. Workspaces of one image: `filtered` and `gated`, of
// filtered_size() and gated_size() values.
template <typename T>
void mbconv(const Mbconv<T>& block, T* filtered, T* gated, T* out);

}  // namespace hyperseg::cpu
