#include "cpu/encoder/stem.h"

#include <algorithm>

#include "cpu/base/tasks.h"
#include "cpu/simd/primitives.h"

// Output rows in sequence. The frame rows that an output row reads are normalised into a ring, pixel by pixel, so that
// the values under a row of taps are contiguous and the convolution is one GEMM per row of taps.
namespace hyperseg::cpu {
namespace {

constexpr int64_t kRows = 8;     // per task: the rows before the first are normalised once more
constexpr int64_t kPixels = 48;  // per GEMM, whose sums stay in the L1 cache between rows of taps
constexpr int64_t kMaximumSize = 7;

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
  const Primitives<T>& run = primitives<T>();
  const int64_t size = stem.size, stride = stem.stride, row = 3 * stem.columns();
  thread_local Buffer<T> memory;
  T* const ring = memory.reserve(size * row);
  const auto slot = [&](int64_t y) { return ring + (y + kMaximumSize) % size * row; };
  int64_t next = y0 * stride - stem.top;
  for (int64_t y = y0; y < y1; ++y) {
    const int64_t first = y * stride - stem.top;
    for (next = std::max(next, first); next < first + size; ++next) normalise_row(stem, image, next, slot(next));
    for (int64_t x = 0; x < stem.out_width; x += kPixels) {
      T* to = out + ((image * stem.out_height + y) * stem.out_width + x) * stem.channels;
      for (int64_t ky = 0; ky < size; ++ky)
        run.gemm({.m = std::min(kPixels, stem.out_width - x),
                  .n = stem.channels,
                  .k = 3 * size,
                  .a = slot(first + ky) + 3 * x * stride,
                  .lda = 3 * stride,
                  .b = stem.weights + ky * 3 * size * stem.padded(),
                  .ldb = stem.padded(),
                  .c = to,
                  .ldc = stem.channels,
                  .column_bias = ky ? nullptr : stem.bias,
                  .start = ky ? to : nullptr,
                  .start_stride = stem.channels,
                  .act = ky + 1 == size ? Activation::kSilu : Activation::kNone});
    }
  }
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
