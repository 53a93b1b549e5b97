#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/simd/primitives.h"

namespace hyperseg::cpu {

// Transpose in [rows, columns] to out [columns, rows], the taps of a depthwise filter. Its rows are zero-padded: unused
// lanes are multiplied too, which is a hundred times slower for denormal numbers.
template <typename T>
void transpose_padded(int64_t rows, int64_t columns, const T* in, int64_t in_stride, T* out, int64_t padded) {
  primitives<T>().transpose(rows, columns, in, in_stride, out, padded);
  for (int64_t j = 0; j < columns; ++j) std::fill(out + j * padded + rows, out + (j + 1) * padded, T(0));
}

}  // namespace hyperseg::cpu
