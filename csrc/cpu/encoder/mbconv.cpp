#include "cpu/encoder/mbconv.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/base/buffer.h"
#include "cpu/base/tasks.h"
#include "cpu/base/transpose.h"

// Two passes over the map, because squeeze-excite needs the mean of all of it. The first expands one row at a time, for
// some hidden channels, into a ring of as many rows as the depthwise convolution reads; the expanded map, six times as
// large as the input, is never stored. The second is a GEMM with the projection, whose rows are scaled by the gates.
namespace hyperseg::cpu {
namespace {

constexpr int64_t kChannels = 48;    // hidden channels per task: three vectors; they divide six times any multiple of 8
constexpr int64_t kWidth = 32;       // input columns per task, about
constexpr int64_t kTasks = 16;       // minimum, where the map is large enough
constexpr int64_t kMinimumRows = 8;  // per task: the rows before the first are expanded once more
constexpr int64_t kMaximumSize = 7;  // of the depthwise convolution
constexpr int64_t kProjectPixels = 48, kProjectDepth = 64;  // a block of the projection, for the L1 cache

// How the expansion and the depthwise convolution are divided into tasks.
struct Tasks {
  int64_t out_width, out_height, hidden, stride;

  template <typename T>
  explicit Tasks(const Mbconv<T>& block)
      : out_width(block.out_width), out_height(block.out_height), hidden(block.hidden), stride(block.stride) {}

  int64_t tiles() const { return (out_width * stride + kWidth + kWidth / 4 - 1) / (kWidth + kWidth / 4); }
  int64_t tile_width() const { return (out_width + tiles() - 1) / tiles(); }
  int64_t chunks() const { return (hidden + kChannels - 1) / kChannels; }
  int64_t strips() const {
    const int64_t needed = (kTasks + chunks() * tiles() - 1) / (chunks() * tiles());
    return std::clamp<int64_t>(out_height / kMinimumRows, 1, needed);
  }
  int64_t strip_height() const { return (out_height + strips() - 1) / strips(); }
};

// The hidden channels [first, first + some) of a part of the map: expanded, filtered, summed.
template <typename T>
class SliceExpansion {
 public:
  SliceExpansion(const Mbconv<T>& block, int64_t image, int64_t first)
      : block_(block),
        run_(primitives<T>()),
        image_(image),
        first_(first),
        some_(std::min(kChannels, block.hidden - first)),
        padded_(round_up(some_, kPadding)) {
    thread_local Buffer<T> memory;
    const int64_t total = (block.in.channels + block.size * block.size + 2) * padded_;
    T* packed = memory.reserve(total);
    std::fill(packed + total - 2 * padded_, packed + total, T(0));
    expand_ = packed;
    depthwise_ = expand_ + block.in.channels * padded_;
    bias_ = depthwise_ + block.size * block.size * padded_;
    expand_bias_ = bias_ + padded_;
    const int64_t taps = block.size * block.size;
    transpose_padded(some_, taps, block.depthwise + first * taps, taps, depthwise_, padded_);
    std::copy_n(block.depthwise_bias + first, some_, bias_);
    if (block.expand) {
      transpose_padded(some_, block.in.channels, block.expand + first * block.in.channels, block.in.channels, expand_,
                       padded_);
      std::copy_n(block.expand_bias + first, some_, expand_bias_);
    }
  }

  // Compute rows [y0, y1) and columns [x0, x1) of filtered[y, x, hidden], and their sums in sums[first_ .. first_ +
  // some_).
  void run(int64_t y0, int64_t y1, int64_t x0, int64_t x1, T* filtered, T* sums) const {
    std::fill_n(sums + first_, some_, T(0));
    if (y0 >= y1 || x0 >= x1) return;
    const int64_t size = block_.size, stride = block_.stride;
    const int64_t columns = (x1 - x0 - 1) * stride + size, left = x0 * stride - block_.left;
    thread_local Buffer<T> memory;
    T* ring = memory.reserve((size * columns + 1) * padded_);
    T* totals = ring + size * columns * padded_;
    std::fill_n(totals, padded_, T(0));
    const auto slot = [&](int64_t y) { return ring + (y + size * kWidth) % size * columns * padded_; };
    const T* rows[kMaximumSize];
    int64_t next = y0 * stride - block_.top;
    for (int64_t y = y0; y < y1; ++y) {
      const int64_t top = y * stride - block_.top;
      for (; next < top + size; ++next) fill(next, left, columns, slot(next));
      for (int64_t ky = 0; ky < size; ++ky) rows[ky] = slot(top + ky);
      run_.depthwise_row({.channels = some_,
                          .padded = padded_,
                          .pixels = x1 - x0,
                          .size = size,
                          .stride = stride,
                          .rows = rows,
                          .weights = depthwise_,
                          .weights_stride = padded_,
                          .bias = bias_,
                          .out = filtered + (y * block_.out_width + x0) * block_.hidden + first_,
                          .out_stride = block_.hidden,
                          .act = Activation::kSilu,
                          .sums = totals});
    }
    std::copy_n(totals, some_, sums + first_);
  }

 private:
  // Row y of the expanded map from column `left` on; zero outside of the map.
  void fill(int64_t y, int64_t left, int64_t columns, T* to) const {
    const NhwcImage<const T>& in = block_.in;
    const int64_t begin = std::clamp<int64_t>(-left, 0, columns), end = std::clamp(in.width - left, begin, columns);
    const bool outside = y < 0 || y >= in.height || begin == end;
    if (outside || !block_.expand) std::fill_n(to, columns * padded_, T(0));
    if (outside) return;
    const T* pixels = in.at(image_, y, left + begin);
    if (!block_.expand) {
      for (int64_t x = begin; x < end; ++x)
        std::copy_n(pixels + (x - begin) * in.channels + first_, some_, to + x * padded_);
      return;
    }
    std::fill_n(to, begin * padded_, T(0));
    std::fill_n(to + end * padded_, (columns - end) * padded_, T(0));
    run_.gemm({.m = end - begin,
               .n = padded_,  // so that the filter reads initialised values only
               .k = in.channels,
               .a = pixels,
               .lda = in.channels,
               .b = expand_,
               .ldb = padded_,
               .c = to + begin * padded_,
               .ldc = padded_,
               .column_bias = expand_bias_,
               .act = Activation::kSilu});
  }

  const Mbconv<T>& block_;
  const Primitives<T>& run_;
  int64_t image_, first_, some_, padded_;
  T *expand_, *depthwise_, *bias_, *expand_bias_;
};

// Compute filtered[pixels, hidden] and, in the order of the tasks, its sums[hidden].
template <typename T>
void expand_and_filter(const Mbconv<T>& block, int64_t image, T* filtered, T* sums) {
  const Tasks tasks(block);
  const int64_t chunks = tasks.chunks(), strips = tasks.strips(), tiles = tasks.tiles(), parts = strips * tiles;
  std::vector<T> partial(parts * block.hidden);
  for_each_task(chunks * parts, [&](int64_t task) {
    const int64_t part = task % parts, y0 = part / tiles * tasks.strip_height(), x0 = part % tiles * tasks.tile_width();
    const SliceExpansion<T> expansion(block, image, task / parts * kChannels);
    expansion.run(y0, std::min(y0 + tasks.strip_height(), block.out_height), x0,
                  std::min(x0 + tasks.tile_width(), block.out_width), filtered, partial.data() + part * block.hidden);
  });
  std::copy_n(partial.data(), block.hidden, sums);
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t c = 0; c < block.hidden; ++c) sums[c] += partial.data()[part * block.hidden + c];
}

// The projection as [hidden, padded out_channels], with rows scaled by the gates.
template <typename T>
void excite(const Mbconv<T>& block, T* sums, T* projection) {
  const Primitives<T>& run = primitives<T>();
  const int64_t padded = round_up(block.out_channels, kPadding);
  const T pixels = static_cast<T>(block.out_height * block.out_width);
  for (int64_t c = 0; c < block.hidden; ++c) sums[c] /= pixels;
  std::vector<T> squeezed(block.squeezed), gates(block.hidden);
  run.gemv(block.squeezed, block.hidden, block.reduce, block.hidden, sums, squeezed.data(), block.reduce_bias,
           Activation::kSilu);
  run.gemv(block.hidden, block.squeezed, block.gate, block.squeezed, squeezed.data(), gates.data(), block.gate_bias,
           Activation::kNone);
  constexpr int64_t rows = 64;
  for_each_task((block.hidden + rows - 1) / rows, [&](int64_t task) {
    const int64_t begin = task * rows, end = std::min(begin + rows, block.hidden);
    transpose_padded(block.out_channels, end - begin, block.project + begin, block.hidden, projection + begin * padded,
                     padded);
    for (int64_t c = begin; c < end; ++c) {
      const T gate = T(1) / (T(1) + std::exp(-gates[c]));
      for (int64_t o = 0; o < block.out_channels; ++o) projection[c * padded + o] *= gate;
    }
  });
}

template <typename T>
void project(const Mbconv<T>& block, int64_t image, const T* filtered, const T* projection, T* out) {
  const Primitives<T>& run = primitives<T>();
  const int64_t o = block.out_channels, padded = round_up(o, kPadding), pixels = block.out_height * block.out_width;
  std::vector<T> bias(padded);
  std::copy_n(block.project_bias, o, bias.data());
  for_each_task((pixels + kProjectPixels - 1) / kProjectPixels, [&](int64_t task) {
    const int64_t first = task * kProjectPixels;
    T* to = out + (image * pixels + first) * o;
    for (int64_t k = 0; k < block.hidden; k += kProjectDepth) {
      const T* start = k ? to : block.residual ? block.in.data + (image * pixels + first) * o : nullptr;
      run.gemm({.m = std::min(kProjectPixels, pixels - first),
                .n = o,
                .k = std::min(kProjectDepth, block.hidden - k),
                .a = filtered + first * block.hidden + k,
                .lda = block.hidden,
                .b = projection + k * padded,
                .ldb = padded,
                .c = to,
                .ldc = o,
                .column_bias = k ? nullptr : bias.data(),
                .start = start,
                .start_stride = o});
    }
  });
}

}  // namespace

template <typename T>
void mbconv(const Mbconv<T>& block, T* filtered, T* gated, T* out) {
  std::vector<T> sums(block.hidden);
  for (int64_t image = 0; image < block.images; ++image) {
    expand_and_filter(block, image, filtered, sums.data());
    excite(block, sums.data(), gated);
    project(block, image, filtered, gated, out);
  }
}

template void mbconv(const Mbconv<float>& block, float* filtered, float* gated, float* out);
template void mbconv(const Mbconv<double>& block, double* filtered, double* gated, double* out);

}  // namespace hyperseg::cpu
