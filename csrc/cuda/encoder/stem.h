#pragma once

#include "common/encoder_shapes.h"
#include "common/map.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

// Arguments of stem; see hyperseg/ops/stem.py.
struct Stem : StemShape {
  Type type = Type::kFloat;     // of weight, bias and out
  Map<const uint8_t> frames{};  // as [N, 3, H, W]
  const float *scale = nullptr, *shift = nullptr;
  Map<const void> weight{};  // [channels, 3, size, size]
  const void* bias = nullptr;
  bool constants_ready = false;  // see common/constants.h: of scale, shift, weight and bias
  void* out = nullptr;           // [images, out_height, out_width, channels]
};

void stem(const Stem& stem, Stream stream);

}  // namespace hyperseg::cuda
