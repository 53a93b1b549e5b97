#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "../common/stem.h"
#include "images.h"
#include "operands.h"

// A row of the result after the other: the rows of the frame that it sees lie normalised in a ring, pixel after pixel,
// so that what a tap row sees of a pixel are side by side, and the convolution is a product for each tap row.
namespace hyperseg::cpu {
namespace {

constexpr int64_t kRows = 8;     // of a task: the rows before the first are normalised once more
constexpr int64_t kPixels = 48;  // of a product, whose sums stay in the first cache from tap row to tap row
constexpr int64_t kMaximumSize = 7;

template <typename T>
struct Stem {
  Map<const uint8_t> frames;
  int64_t height, width, size, stride, left, top, channels, out_height, out_width;
  const T* normalised;  // [3, 256]: what a byte becomes
  const T* weights;     // [size, size * 3, padded channels]
  const T* bias;        // [padded channels]

  int64_t padded() const { return round_up(channels, kPadding); }
  int64_t columns() const { return (out_width - 1) * stride + size; }
};

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

// [size, size * 3, padded channels] of [channels, 3, size, size], then the bias likewise.
template <typename T>
void pack(const T* weight, const T* bias, int64_t channels, int64_t size, T* to) {
  const int64_t taps = size * size, padded = round_up(channels, kPadding);
  std::fill_n(to, (3 * taps + 1) * padded, T(0));
  for (int64_t o = 0; o < channels; ++o)
    for (int64_t c = 0; c < 3; ++c)
      for (int64_t tap = 0; tap < taps; ++tap) to[(tap * 3 + c) * padded + o] = weight[(o * 3 + c) * taps + tap];
  std::copy_n(bias, channels, to + 3 * taps * padded);
}

Tensor stem(const Tensor& frames, const Tensor& scale, const Tensor& shift, const Tensor& weight, const Tensor& bias,
            int64_t height, int64_t width, int64_t stride, std::vector<int64_t> padding) {
  check_stem(frames, scale, shift, weight, bias, height, width, stride, padding);
  const int64_t images = frames.size(0), channels = weight.size(0), size = weight.size(2);
  const int64_t out_height = stem_extent(height, padding[2], padding[3], size, stride);
  const int64_t out_width = stem_extent(width, padding[0], padding[1], size, stride);
  const ScalarType type = precise_type(weight.scalar_type());
  Tensor out = torch::stable::new_empty(weight, {images, out_height, out_width, channels}, type);
  with_type(weight, "stem", [&](auto value) {
    using S = decltype(value);
    using T = acc_t<S>;
    const Tensor dense = precise(weight), dense_bias = precise(bias);
    std::vector<T> packed((3 * size * size + 1) * round_up(channels, kPadding)), normalised(3 * 256);
    pack(data<T>(dense), data<T>(dense_bias), channels, size, packed.data());
    const std::vector<T> factor = values<T>(scale), offset = values<T>(shift);
    for (int64_t i = 0; i < 3 * 256; ++i)
      normalised[i] = static_cast<T>(static_cast<S>(static_cast<T>(i % 256) * factor[i / 256] + offset[i / 256]));
    const Stem<T> stem{
        .frames = map_of_frames(frames),
        .height = height,
        .width = width,
        .size = size,
        .stride = stride,
        .left = padding[0],
        .top = padding[2],
        .channels = channels,
        .out_height = out_height,
        .out_width = out_width,
        .normalised = normalised.data(),
        .weights = packed.data(),
        .bias = packed.data() + 3 * size * size * round_up(channels, kPadding),
    };
    T* const to = mutable_data<T>(out);
    const int64_t strips = (out_height + kRows - 1) / kRows;
    for_each_task(images * strips, [&](int64_t task) {
      const int64_t y = task % strips * kRows;
      run_rows(stem, task / strips, y, std::min(y + kRows, out_height), to);
    });
  });
  if (type != weight.scalar_type()) out = torch::stable::to(out, weight.scalar_type());
  return torch::stable::transpose(torch::stable::transpose(out, 2, 3), 1, 2);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) { m.impl("stem", TORCH_BOX(&stem)); }

}  // namespace hyperseg::cpu
