#pragma once

#include <cstdint>
#include <vector>

namespace hyperseg::cpu {

// From -1 to 1, computed as by torch.linspace.
template <typename T>
std::vector<T> coordinates(int64_t count) {
  std::vector<T> values(count, T(-1));
  const T step = count > 1 ? T(2) / static_cast<T>(count - 1) : T(0);
  for (int64_t i = 0; i < count; ++i)
    values[i] =
        i < count / 2 || count == 1 ? T(-1) + step * static_cast<T>(i) : T(1) - step * static_cast<T>(count - 1 - i);
  return values;
}

}  // namespace hyperseg::cpu
