#pragma once

#include <cstdint>

#include "common/encoder_shapes.h"
#include "common/map.h"
#include "cpu/base/buffer.h"
#include "cpu/simd/primitives.h"

namespace hyperseg::cpu {

template <typename T>
struct Stem : StemShape {
  Map<const uint8_t> frames{};
  const T* normalised = nullptr;  // [3, 256]: the normalised value of each byte
  const T* weights = nullptr;     // [size * size * 3, channels], packed
  const T* bias = nullptr;        // [padded channels]

  int64_t columns() const { return (out_width - 1) * stride + size; }
};

// out: [images, out_height, out_width, channels].
template <typename T>
void stem(const Stem<T>& problem, T* out);

}  // namespace hyperseg::cpu
