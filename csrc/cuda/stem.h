#pragma once

#include "../common/map.h"
#include "type.h"

namespace hyperseg::cuda {

// See hyperseg/ops/stem.py.
struct Stem {
  Type type;  // of weight, bias and out
  int64_t images;
  Map<const uint8_t> frames;  // as [N, 3, H, W]
  const float *scale, *shift;
  Map<const void> weight;  // [channels, 3, size, size]
  const void* bias;
  void* out;  // [images, out_height, out_width, channels]
  int64_t height, width, size, stride, left, top, channels, out_height, out_width;
};

void stem(const Stem& stem, Stream stream);

}  // namespace hyperseg::cuda
