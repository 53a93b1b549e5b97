#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace hyperseg::cpu {

// Where the pixels along one axis sample a map of another size: half-pixel centres, as
// F.interpolate(align_corners=False).
template <typename T>
struct Axis {
  int64_t in, out;
  std::vector<int32_t> low, high;
  std::vector<T> weight;  // of `high`

  // `copy`: both sides of the map keep their size. Nothing is sampled then: x/2 + x/2 is x, also where x * 0 is NaN.
  Axis(int64_t in, int64_t out, bool copy = false) : in(in), out(out), low(out), high(out), weight(out) {
    const T scale = static_cast<T>(in) / static_cast<T>(out);
    for (int64_t i = 0; i < out; ++i) {
      const T source = std::max((static_cast<T>(i) + T(0.5)) * scale - T(0.5), T(0));
      low[i] = static_cast<int32_t>(std::min(static_cast<int64_t>(source), in - 1));
      high[i] = static_cast<int32_t>(std::min<int64_t>(low[i] + 1, in - 1));
      weight[i] = std::min(source - static_cast<T>(low[i]), T(1));
      if (copy) high[i] = low[i], weight[i] = T(0.5);
    }
  }
};

}  // namespace hyperseg::cpu
