#pragma once

#include <cmath>

#include "cuda/device/device.cuh"

namespace hyperseg::cuda {

// For large negative values exp is infinite and the quotient is -0.
HYPERSEG_DEVICE float silu(float v) { return v / (1.0f + expf(-v)); }
HYPERSEG_DEVICE float sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }

// SiLU of twice the values. With halved weights it is SiLU of the sums, and saves a multiplication.
HYPERSEG_DEVICE void silu2_of_halves(float& a, float& b) { a = fmaf(a, fast_tanh(a), a), b = fmaf(b, fast_tanh(b), b); }

// SiLU of both values, with the precision that type T needs. For 16-bit floats v / 2 (1 + tanh(v / 2)): an SM has few
// units for exponentials and reciprocals. The tanh is off by 2^-11 of itself at most, so the result by 2^-12 |v|, half
// a unit in the last place of a float16 v. That of minus infinity is NaN, as in PyTorch.
template <typename T>
HYPERSEG_DEVICE void silu2(float& a, float& b) {
  a *= 0.5f, b *= 0.5f;
  silu2_of_halves(a, b);
}
template <>
HYPERSEG_DEVICE void silu2<float>(float& a, float& b) {
  a = silu(a);
  b = silu(b);
}

}  // namespace hyperseg::cuda
