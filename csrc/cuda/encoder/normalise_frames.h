#pragma once

#include "common/map.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

// Arguments of normalise_frames; see hyperseg/ops/normalise_frames.py. `out` is [images, height, width, 3].
struct NormaliseFrames {
  Type type = Type::kFloat;
  Map<const uint8_t> frames{};
  const float *scale = nullptr, *shift = nullptr;
  void* out = nullptr;
  int64_t images = 0, height = 0, width = 0;
};

void normalise_frames(const NormaliseFrames& problem, Stream stream);

}  // namespace hyperseg::cuda
