#pragma once

#include <cstdint>
#include <vector>

namespace hyperseg::cpu {

// Sampling positions along one axis for resizing a map: half-pixel centres, as F.interpolate(align_corners=False).
template <typename T>
struct Axis {
  int64_t in, out;
  std::vector<int32_t> low, high;
  std::vector<T> weight;  // of `high`

  // `copy`: both axes keep their size. Nothing is interpolated then: x/2 + x/2 is x, also where x * 0 is NaN.
  Axis(int64_t in, int64_t out, bool copy = false);
};

}  // namespace hyperseg::cpu
