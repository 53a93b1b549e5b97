#pragma once

#include "cuda/device/device.cuh"

namespace hyperseg::cuda {

// Where pixel `o` of an axis samples an axis of `size` values: half-pixel centres, as
// F.interpolate(align_corners=False).
struct Sample {
  int low, high;
  float weight;  // of high

  // `copy`: both axes keep their size, so `scale` is 1. Nothing is interpolated then: x/2 + x/2 is x, also where x * 0
  // is NaN.
  HYPERSEG_DEVICE Sample(int o, float scale, int size, bool copy = false) {
    const float source = fmaxf((o + 0.5f) * scale - (copy ? 0.0f : 0.5f), 0.0f);
    low = min(static_cast<int>(source), size - 1);
    high = min(low + (copy ? 0 : 1), size - 1);
    weight = fminf(source - low, 1.0f);
  }
};

// Not a + (b - a) * weight, which is NaN next to an infinity.
HYPERSEG_DEVICE float between(float a, float b, float weight) { return a * (1.0f - weight) + b * weight; }

}  // namespace hyperseg::cuda
