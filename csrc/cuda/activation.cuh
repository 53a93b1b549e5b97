#pragma once

#include <cmath>

#include "device.cuh"

namespace hyperseg::cuda {

HYPERSEG_DEVICE float sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }

// As precise as a result of type T needs. For large negative values exp is infinite and the quotient -0.
template <typename T>
HYPERSEG_DEVICE float silu(float v) {
  return fast_divide(v, 1.0f + fast_exp(-v));
}
template <>
HYPERSEG_DEVICE float silu<float>(float v) {
  return v / (1.0f + expf(-v));
}

}  // namespace hyperseg::cuda
