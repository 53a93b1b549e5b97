#include "cpu/encoder/stem.h"

#include <algorithm>

#include "cpu/base/tasks.h"
#include "cpu/simd/primitives.h"

// Strips of output rows. The frame rows that a strip reads are normalised first, pixel by pixel, so that the values
// under a row of taps are contiguous and the convolution is one GEMM, with as many blocks of columns as rows of taps.
namespace hyperseg::cpu {
namespace {

constexpr int64_t kRows = 8;  // per task: the rows before the first are normalised once more

// Row y of the normalised image from column -left on.
template <typename T>
void normalise_row(const Stem<T>& stem, int64_t image, int64_t y, T* to) {
  const int64_t columns = stem.columns();
  if (y < 0 || y >= stem.height) return (void)std::fill_n(to, 3 * columns, T(0));
  const auto& frames = stem.frames;
  const int64_t begin = stem.left, seen = std::min(begin + frames.width, columns);
  const int64_t end = std::min(begin + stem.width, columns);
  std::fill_n(to, 3 * begin, T(0));
  const uint8_t* from = frames.at(image, 0, std::min(y, frames.height - 1), 0);
  const T* const normalised = stem.normalised;
  const int64_t green = frames.stride_c, blue = 2 * frames.stride_c;
  for (int64_t x = begin; x < seen; ++x, from += frames.stride_w) {
    to[3 * x] = normalised[from[0]];
    to[3 * x + 1] = normalised[256 + from[green]];
    to[3 * x + 2] = normalised[512 + from[blue]];
  }
  for (int64_t x = seen; x < end; ++x) std::copy_n(to + 3 * (seen - 1), 3, to + 3 * x);
  std::fill_n(to + 3 * end, 3 * (columns - end), T(0));
}

template <typename T>
void run_rows(const Stem<T>& stem, int64_t image, int64_t y0, int64_t y1, T* out) {
  const int64_t size = stem.size, stride = stem.stride, row = 3 * stem.columns();
  const int64_t top = y0 * stride - stem.top, rows = (y1 - y0 - 1) * stride + size;
  thread_local Buffer<T> memory;
  T* const strip = memory.reserve(rows * row);
  for (int64_t y = 0; y < rows; ++y) normalise_row(stem, image, top + y, strip + y * row);
  for (int64_t y = y0; y < y1; ++y)
    primitives<T>().gemm({.m = stem.out_width,
                          .n = stem.channels,
                          .k = size * size * 3,
                          .a = strip + (y - y0) * stride * row,
                          .lda = 3 * stride,
                          .b = stem.weights,
                          .c = out + (image * stem.out_height + y) * stem.out_width * stem.channels,
                          .ldc = stem.channels,
                          .column_bias = stem.bias,
                          .act = Activation::kSilu,
                          .a_block = 3 * size,
                          .a_stride = row,
                          .b_depth = size * size * 3});
}

}  // namespace

template <typename T>
void stem(const Stem<T>& problem, T* out) {
  const int64_t strips = (problem.out_height + kRows - 1) / kRows;
  for_each_task(problem.images * strips, [&](int64_t task) {
    const int64_t y = task % strips * kRows;
    run_rows(problem, task / strips, y, std::min(y + kRows, problem.out_height), out);
  });
}

template void stem(const Stem<float>& problem, float* out);
template void stem(const Stem<double>& problem, double* out);

}  // namespace hyperseg::cpu
