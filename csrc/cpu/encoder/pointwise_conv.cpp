#include "cpu/encoder/pointwise_conv.h"

#include <algorithm>

#include "cpu/base/buffer.h"
#include "cpu/base/tasks.h"
#include "cpu/base/transpose.h"

namespace hyperseg::cpu {
namespace {

constexpr int64_t kPixels = 48, kDepth = 128;  // a block of the GEMM, for the L1 cache
constexpr int64_t kColumns = 256;              // columns per task: their weights stay in the L2 cache

}  // namespace

template <typename T>
void pointwise_conv(const PointwiseConv<T>& conv) {
  const Primitives<T>& run = primitives<T>();
  const int64_t padded = round_up(conv.columns, kPadding);
  thread_local Buffer<T> memory;
  T* const packed = memory.reserve((conv.depth + 1) * padded);
  T* const bias = packed + conv.depth * padded;
  constexpr int64_t rows = 64;
  for_each_task((conv.depth + rows - 1) / rows, [&](int64_t task) {
    const int64_t begin = task * rows, count = std::min(rows, conv.depth - begin);
    transpose_padded(conv.columns, count, conv.weights + begin, conv.depth, packed + begin * padded, padded);
  });
  std::fill(std::copy_n(conv.bias, conv.columns, bias), bias + padded, T(0));
  const int64_t strips = (conv.pixels + kPixels - 1) / kPixels, parts = (conv.columns + kColumns - 1) / kColumns;
  for_each_task(strips * parts, [&](int64_t task) {
    const int64_t pixel = task % strips * kPixels, column = task / strips * kColumns;
    T* const to = conv.out + pixel * conv.columns + column;
    for (int64_t k = 0; k < conv.depth; k += kDepth)
      run.gemm({.m = std::min(kPixels, conv.pixels - pixel),
                .n = std::min(kColumns, conv.columns - column),
                .k = std::min(kDepth, conv.depth - k),
                .a = conv.in + pixel * conv.depth + k,
                .lda = conv.depth,
                .b = packed + k * padded + column,
                .ldb = padded,
                .c = to,
                .ldc = conv.columns,
                .column_bias = k ? nullptr : bias + column,
                .start = k ? to : nullptr,
                .start_stride = conv.columns,
                .act = k + kDepth < conv.depth ? Activation::kNone : conv.activation});
  });
}

template void pointwise_conv(const PointwiseConv<float>& conv);
template void pointwise_conv(const PointwiseConv<double>& conv);

}  // namespace hyperseg::cpu
