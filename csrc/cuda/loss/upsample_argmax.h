#pragma once

#include "common/map.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

// labels [images, height, width] = the first class with the largest resized logit; see hyperseg/ops/upsample_argmax.py.
void upsample_argmax(const Map<const void>& logits, Type type, int64_t images, uint8_t* labels, int64_t height,
                     int64_t width, Stream stream);

}  // namespace hyperseg::cuda
