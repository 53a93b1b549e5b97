#include "cpu/encoder/pointwise_conv.h"

#include <algorithm>

#include "cpu/base/buffer.h"
#include "cpu/base/caches.h"
#include "cpu/base/tasks.h"

namespace hyperseg::cpu {
namespace {

constexpr int64_t kColumns = 256;  // per task: a multiple of every panel

}  // namespace

template <typename T>
void pointwise_conv(const PointwiseConv<T>& conv) {
  const Primitives<T>& run = primitives<T>();
  thread_local Buffer<T> memory;
  const int64_t parts = divide_up(conv.columns, kColumns), depth = conv.depth;
  T* const packed = memory.reserve(packed_size(depth + 1, parts * kColumns));
  T* const bias = packed + packed_size(depth, parts * kColumns);
  std::fill(std::copy_n(conv.bias, conv.columns, bias), bias + parts * kColumns, T(0));
  constexpr int64_t rows = 64;
  const int64_t blocks = divide_up(depth, rows);
  for_each_task(parts * blocks, [&](int64_t task) {
    const int64_t column = task / blocks * kColumns, first = task % blocks * rows;
    PackArgs<T> args =
        conv.weights.packing(depth, column, std::min(kColumns, conv.columns - column), packed + column * depth);
    args.b += first * args.stride_k;
    args.first = first;
    args.k = std::min(rows, depth - first);
    run.pack(args);
  });
  // A panel of the weights stays in half of the L1 cache, and pixels in a quarter of the L2 cache for all panels.
  const int64_t step_k = std::max<int64_t>(caches().l1 / 2 / (run.panel_columns * int64_t(sizeof(T))), 64);
  const int64_t pixels = std::clamp<int64_t>(caches().l2 / 4 / (depth * int64_t(sizeof(T))) / 24 * 24, 48, 192);
  const int64_t strips = divide_up(conv.pixels, pixels);
  for_each_task(strips * parts, [&](int64_t task) {
    const int64_t pixel = task % strips * pixels, column = task / strips * kColumns;
    T* const to = conv.out + pixel * conv.columns + column;
    for (int64_t k = 0; k < depth; k += step_k)
      run.gemm({.m = std::min(pixels, conv.pixels - pixel),
                .n = std::min(kColumns, conv.columns - column),
                .k = std::min(step_k, depth - k),
                .a = conv.in + pixel * depth + k,
                .lda = depth,
                .b = packed + column * depth,
                .c = to,
                .ldc = conv.columns,
                .column_bias = k ? nullptr : bias + column,
                .start = k ? to : nullptr,
                .start_stride = conv.columns,
                .act = k + step_k < depth ? Activation::kNone : conv.activation,
                .b_depth = depth,
                .b_first = k});
  });
}

template void pointwise_conv(const PointwiseConv<float>& conv);
template void pointwise_conv(const PointwiseConv<double>& conv);

}  // namespace hyperseg::cpu
