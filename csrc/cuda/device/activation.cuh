#pragma once

#include <cmath>

#include "cuda/device/device.cuh"

namespace hyperseg::cuda {

// For large negative values exp is infinite and the quotient is -0.
HYPERSEG_DEVICE float silu(float v) { return v / (1.0f + expf(-v)); }
HYPERSEG_DEVICE float sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }

// SiLU of both values, with the precision that type T needs. An SM has few units for exponentials and reciprocals, so
// both values share one reciprocal. Below -40 the result is about 1e-17 of the value instead of 0; minus infinity
// stays.
template <typename T>
HYPERSEG_DEVICE void silu2(float& a, float& b) {
  const float p = 1.0f + fast_exp(fminf(-a, 40.0f)), q = 1.0f + fast_exp(fminf(-b, 40.0f));
  const float reciprocal = fast_reciprocal(p * q);
  a *= q * reciprocal;
  b *= p * reciprocal;
}
template <>
HYPERSEG_DEVICE void silu2<float>(float& a, float& b) {
  a = silu(a);
  b = silu(b);
}

}  // namespace hyperseg::cuda
