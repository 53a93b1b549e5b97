#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/map.h"
#include "cpu/base/buffer.h"
#include "cpu/base/tasks.h"
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

// A grouped 1x1 convolution of which `size` output channels are read, with the weights of each group packed.
template <typename T>
struct PackedGenerator {
  Buffer<T> buffer;
  T* weights;
  int64_t groups, depth, rows_per_group, size;  // size <= groups * rows_per_group

  template <typename S>
  PackedGenerator(const S* g, int64_t stride_row, int64_t stride_column, int64_t rows, int64_t depth, int64_t groups,
                  int64_t size)
      : groups(groups), depth(depth), rows_per_group(rows / groups), size(size) {
    weights = buffer.reserve(groups * packed_size(depth, rows_per_group) + kPadding);
    constexpr int64_t kRows = 16;
    const int64_t parts = divide_up(depth, kRows);
    for_each_task(groups * parts, [&](int64_t task) {
      const int64_t q = task / parts, first = task % parts * kRows;
      PackArgs<T> args{.k = std::min(kRows, depth - first),
                       .n = used(q),
                       .b = nullptr,
                       .stride_k = 1,
                       .stride_n = kRows,
                       .out = weights + q * packed_size(depth, rows_per_group),
                       .depth = depth,
                       .first = first};
      if (args.n <= 0) return;
      const S* from = g + q * rows_per_group * stride_row + first * stride_column;
      if constexpr (std::is_same_v<S, T>) {
        if (stride_column == 1 || stride_row == 1) {
          args.b = from;
          args.stride_k = stride_column;
          args.stride_n = stride_row;
          return primitives<T>().pack(args);
        }
      }
      thread_local Buffer<T> memory;
      T* const converted = memory.reserve(args.n * kRows);
      for (int64_t r = 0; r < args.n; ++r)
        for (int64_t k = 0; k < args.k; ++k)
          converted[r * kRows + k] = static_cast<T>(from[r * stride_row + k * stride_column]);
      args.b = converted;
      primitives<T>().pack(args);
    });
  }

  int64_t channels() const { return groups * depth; }  // of the signal
  // Output channels of group q that are read.
  int64_t used(int64_t q) const { return std::min(rows_per_group, size - q * rows_per_group); }

  // signal [patches, channels()] -> out [patches, stride].
  void generate(const Primitives<T>& run, int64_t patches, const T* signal, T* out, int64_t stride) const {
    for (int64_t q = 0; q < groups && used(q) > 0; ++q)
      run.gemm({.m = patches,
                .n = used(q),
                .k = depth,
                .a = signal + q * depth,
                .lda = channels(),
                .b = weights + q * packed_size(depth, rows_per_group),
                .c = out + q * rows_per_group,
                .ldc = stride,
                .b_depth = depth});
  }
};

}  // namespace hyperseg::cpu
