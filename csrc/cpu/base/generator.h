#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/map.h"
#include "cpu/base/buffer.h"
#include "cpu/base/tasks.h"
#include "cpu/base/transpose.h"
#include "cpu/simd/primitives.h"

namespace hyperseg::cpu {

// Read the signal of patches [first, last) of a grid row as [patches, channels], from channel `offset` on.
template <typename S, typename T>
void read_signal(const Map<const S>& signal, int64_t offset, int64_t channels, int64_t n, int64_t gy, int64_t first,
                 int64_t last, T* to) {
  for (int64_t gx = first; gx < last; ++gx)
    for (int64_t c = 0; c < channels; ++c)
      to[(gx - first) * channels + c] = static_cast<T>(*signal.at(n, offset + c, gy, gx));
}

// A grouped 1x1 convolution, packed: transposed to [K, columns] per group, with columns padded for vector loads.
template <typename T>
struct PackedGenerator {
  Buffer<T> buffer;
  T* weights;
  int64_t groups, depth, rows_per_group, padded, size;  // size <= groups * rows_per_group

  template <typename S>
  PackedGenerator(const S* g, int64_t stride_row, int64_t stride_column, int64_t rows, int64_t depth, int64_t groups,
                  int64_t size)
      : groups(groups),
        depth(depth),
        rows_per_group(rows / groups),
        padded(round_up(rows / groups, kPadding)),
        size(size) {
    weights = buffer.reserve(groups * depth * padded + kPadding);
    for_each_task(groups, [&](int64_t q) {
      const S* from = g + q * rows_per_group * stride_row;
      T* to = weights + q * depth * padded;
      if constexpr (std::is_same_v<S, T>) {
        if (stride_column == 1) return transpose_padded(rows_per_group, depth, from, stride_row, to, padded);
      }
      for (int64_t k = 0; k < depth; ++k) {
        for (int64_t r = 0; r < rows_per_group; ++r)
          to[k * padded + r] = static_cast<T>(from[r * stride_row + k * stride_column]);
        std::fill(to + k * padded + rows_per_group, to + (k + 1) * padded, T(0));
      }
    });
  }

  int64_t channels() const { return groups * depth; }  // of the signal

  // signal [patches, channels()] -> out [patches, stride].
  void generate(const Primitives<T>& run, int64_t patches, const T* signal, T* out, int64_t stride) const {
    for (int64_t q = 0; q < groups && q * rows_per_group < size; ++q)
      run.gemm({.m = patches,
                .n = std::min(rows_per_group, size - q * rows_per_group),
                .k = depth,
                .a = signal + q * depth,
                .lda = channels(),
                .b = weights + q * depth * padded,
                .ldb = padded,
                .c = out + q * rows_per_group,
                .ldc = stride});
  }
};

}  // namespace hyperseg::cpu
