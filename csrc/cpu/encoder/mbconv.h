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
  const T *expand = nullptr, *expand_bias = nullptr;  // null without an expansion
  const T *depthwise = nullptr, *depthwise_bias = nullptr, *reduce = nullptr, *reduce_bias = nullptr;
  const T *gate = nullptr, *gate_bias = nullptr, *project = nullptr, *project_bias = nullptr;
  bool residual = false;

  int64_t filtered_size() const { return out_height * out_width * hidden; }
  int64_t gated_size() const { return hidden * round_up(out_channels, kPadding) + kPadding; }
};

// out: [images, out_height, out_width, out_channels]. Workspaces of one image: `filtered` and `gated`, of
// filtered_size() and gated_size() values.
template <typename T>
void mbconv(const Mbconv<T>& block, T* filtered, T* gated, T* out);

}  // namespace hyperseg::cpu
