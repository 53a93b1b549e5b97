#include "cpu/encoder/mbconv.h"

#include <algorithm>
#include <vector>

#include "cpu/base/buffer.h"
#include "cpu/base/caches.h"
#include "cpu/base/tasks.h"
#include "cpu/base/transpose.h"

// Two passes over the map, because squeeze-excite needs the mean of all of it. The first expands one row at a time, for
// some hidden channels, into a ring of as many rows as the depthwise convolution reads; the expanded map, six times as
// large as the input, is never stored. The second is a GEMM with the projection, whose rows are scaled by the gates.
namespace hyperseg::cpu {
namespace {

// Input columns, about, and hidden channels of a task; 48 divides six times any multiple of 8.
struct Slice {
  int64_t width, channels;
};
constexpr Slice kSlices[] = {{64, 48}, {32, 48}, {32, 32}, {32, 16}};
constexpr int64_t kTasks = 16;                           // minimum, where the map is large enough
constexpr int64_t kMinimumRows = 8;                      // per task: the rows before the first are expanded once more
constexpr int64_t kMaximumSize = 7;                      // of the depthwise convolution
constexpr int64_t kPixelStep = 8;                        // the filter computes so many pixels at once
constexpr int64_t kLeastPixels = 48, kMostPixels = 256;  // per task of the projection

// How a block is divided into tasks, by its sizes and those of the caches.
struct Plan {
  int64_t tile_width, tiles, chunk, chunks, strip_height, strips;  // of the expansion and the depthwise convolution

  template <typename T>
  explicit Plan(const Mbconv<T>& block) {
    for (const Slice& slice : kSlices) {  // the first whose ring fits the L1 cache, besides its other data
      tile_width = std::min(block.out_width, round_up(divide_up(slice.width, block.stride), kPixelStep));
      chunk = std::min(slice.channels, round_up(block.hidden, kPadding));
      const int64_t pixels = block.size * ((tile_width - 1) * block.stride + block.size);
      if (pixels * chunk * int64_t(sizeof(T)) <= caches().l1 * 4 / 5) break;
    }
    tiles = divide_up(block.out_width, tile_width);
    chunks = divide_up(block.hidden, chunk);
    const int64_t needed = divide_up(kTasks, chunks * tiles);
    strip_height = divide_up(block.out_height, std::clamp<int64_t>(block.out_height / kMinimumRows, 1, needed));
    strips = divide_up(block.out_height, strip_height);
  }
};

// The hidden channels [first, first + some) of a part of the map: expanded, filtered, summed.
template <typename T>
class SliceExpansion {
 public:
  SliceExpansion(const Mbconv<T>& block, const Plan& plan, int64_t image, int64_t first)
      : block_(block),
        plan_(plan),
        run_(primitives<T>()),
        image_(image),
        first_(first),
        some_(std::min(plan.chunk, block.hidden - first)),
        padded_(round_up(some_, kPadding)) {
    thread_local Buffer<T> memory;
    const int64_t taps = block.size * block.size, inputs = block.expand.data ? block.in.channels : 0;
    const int64_t total = (inputs + taps + 2) * padded_;
    expand_ = memory.reserve(total);
    depthwise_ = expand_ + inputs * padded_;
    bias_ = depthwise_ + taps * padded_;
    expand_bias_ = bias_ + padded_;
    std::fill(depthwise_, expand_ + total, T(0));
    transpose_padded(some_, taps, block.depthwise + first * taps, taps, depthwise_, padded_);
    std::copy_n(block.depthwise_bias + first, some_, bias_);
    if (!inputs) return;
    run_.pack(block.expand.packing(inputs, first, some_, expand_));
    std::copy_n(block.expand_bias + first, some_, expand_bias_);
  }

  // Compute rows [y0, y1) and columns [x0, x1) of this slice of the filtered map, [pixel, chunk], and their sums in
  // sums[first_ .. first_ + some_).
  void run(int64_t y0, int64_t y1, int64_t x0, int64_t x1, T* filtered, T* sums) const {
    const int64_t size = block_.size, stride = block_.stride, chunk = plan_.chunk;
    const int64_t columns = (x1 - x0 - 1) * stride + size, left = x0 * stride - block_.left;
    thread_local Buffer<T> memory;
    T* ring = memory.reserve((size * columns + 1) * padded_);
    T* totals = ring + size * columns * padded_;
    // Whole vectors are filtered: of initialised values.
    if (some_ < padded_) std::fill_n(ring, size * columns * padded_, T(0));
    std::fill_n(totals, padded_, T(0));
    const auto slot = [&](int64_t y) { return ring + (y + kMaximumSize * size) % size * columns * padded_; };
    const bool direct = is_direct(left, columns);
    const T* rows[kMaximumSize];
    int64_t next = y0 * stride - block_.top;
    for (int64_t y = y0; y < y1; ++y) {
      const int64_t top = y * stride - block_.top;
      for (next = std::max(next, top); next < top + size; ++next)
        if (!direct || is_outside(next)) fill(next, left, columns, slot(next));
      for (int64_t ky = 0; ky < size; ++ky)
        rows[ky] = direct && !is_outside(top + ky) ? block_.in.at(image_, top + ky, left) : slot(top + ky);
      run_.depthwise_row({.channels = some_,
                          .padded = padded_,
                          .pixels = x1 - x0,
                          .size = size,
                          .stride = stride,
                          .rows = rows,
                          .weights = depthwise_,
                          .weights_stride = padded_,
                          .bias = bias_,
                          .out = filtered + (y * block_.out_width + x0) * chunk,
                          .out_stride = chunk,
                          .act = Activation::kSilu,
                          .sums = totals});
    }
    std::copy_n(totals, some_, sums + first_);
  }

 private:
  bool is_outside(int64_t y) const { return y < 0 || y >= block_.in.height; }

  // Without an expansion the filter can read the rows of the input itself, where it reads no padding.
  bool is_direct(int64_t left, int64_t columns) const {
    return !block_.expand.data && padded_ == block_.in.channels && left >= 0 && left + columns <= block_.in.width;
  }

  // Row y of the expanded map from column `left` on; zero outside of the map.
  void fill(int64_t y, int64_t left, int64_t columns, T* to) const {
    const NhwcImage<const T>& in = block_.in;
    const int64_t begin = std::clamp<int64_t>(-left, 0, columns), end = std::clamp(in.width - left, begin, columns);
    if (is_outside(y) || begin == end) return (void)std::fill_n(to, columns * padded_, T(0));
    std::fill_n(to, begin * padded_, T(0));
    std::fill_n(to + end * padded_, (columns - end) * padded_, T(0));
    const T* pixels = in.at(image_, y, left + begin);
    if (block_.expand.data) {
      run_.gemm({.m = end - begin,
                 .n = some_,
                 .k = in.channels,
                 .a = pixels,
                 .lda = in.channels,
                 .b = expand_,
                 .c = to + begin * padded_,
                 .ldc = padded_,
                 .column_bias = expand_bias_,
                 .act = Activation::kSilu,
                 .b_depth = in.channels});
    } else {
      for (int64_t x = begin; x < end; ++x)
        std::copy_n(pixels + (x - begin) * in.channels + first_, some_, to + x * padded_);
    }
  }

  const Mbconv<T>& block_;
  const Plan& plan_;
  const Primitives<T>& run_;
  int64_t image_, first_, some_, padded_;
  T *expand_, *depthwise_, *bias_, *expand_bias_;
};

// Compute filtered[chunk of channels, pixel, channel] and, in the order of the tasks, its sums[hidden]. A chunk is
// written in one stream: caches cannot foresee short pieces of the rows of a large map.
template <typename T>
void expand_and_filter(const Mbconv<T>& block, const Plan& plan, int64_t image, T* filtered, T* sums) {
  const int64_t parts = plan.strips * plan.tiles, pixels = block.out_height * block.out_width;
  std::vector<T> partial(parts * block.hidden);
  for_each_task(plan.chunks * parts, [&](int64_t task) {
    const int64_t chunk = task / parts, part = task % parts;
    const int64_t y0 = part / plan.tiles * plan.strip_height, x0 = part % plan.tiles * plan.tile_width;
    const SliceExpansion<T> expansion(block, plan, image, chunk * plan.chunk);
    expansion.run(y0, std::min(y0 + plan.strip_height, block.out_height), x0,
                  std::min(x0 + plan.tile_width, block.out_width), filtered + chunk * pixels * plan.chunk,
                  partial.data() + part * block.hidden);
  });
  std::copy_n(partial.data(), block.hidden, sums);
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t c = 0; c < block.hidden; ++c) sums[c] += partial.data()[part * block.hidden + c];
}

// The projection, packed, with rows scaled by the gates.
template <typename T>
void excite(const Mbconv<T>& block, T* sums, T* projection) {
  const Primitives<T>& run = primitives<T>();
  const T pixels = static_cast<T>(block.out_height * block.out_width);
  for (int64_t c = 0; c < block.hidden; ++c) sums[c] /= pixels;
  std::vector<T> squeezed(block.squeezed), gates(block.hidden);
  run.gemv(block.squeezed, block.hidden, block.reduce, block.hidden, sums, squeezed.data(), block.reduce_bias,
           Activation::kSilu);
  run.gemv(block.hidden, block.squeezed, block.gate, block.squeezed, squeezed.data(), gates.data(), block.gate_bias,
           Activation::kSigmoid);
  constexpr int64_t rows = 64;
  for_each_task(divide_up(block.hidden, rows), [&](int64_t task) {
    const int64_t first = task * rows;
    PackArgs<T> args = block.project.packing(block.hidden, 0, block.out_channels, projection);
    args.b += first * args.stride_k;
    args.first = first;
    args.k = std::min(rows, block.hidden - first);
    args.scale = gates.data() + first;
    run.pack(args);
  });
}

template <typename T>
void project(const Mbconv<T>& block, const Plan& plan, int64_t image, const T* filtered, const T* projection, T* out) {
  const Primitives<T>& run = primitives<T>();
  const int64_t o = block.out_channels, pixels = block.out_height * block.out_width, chunk = plan.chunk;
  std::vector<T> bias(round_up(o, kPadding));
  std::copy_n(block.project_bias, o, bias.data());
  // A panel of the projection stays in half of the L1 cache, and pixels in half of the L2 cache for all panels.
  const int64_t row = std::min(round_up(o, kPadding), run.panel_columns) * int64_t(sizeof(T));
  const int64_t depth = std::max<int64_t>(caches().l1 / 2 / row / chunk, 1) * chunk;
  const int64_t fitting = caches().l2 / 2 / (plan.chunks * chunk * int64_t(sizeof(T)));
  const int64_t tasks = std::max(divide_up(pixels, std::clamp(fitting, kLeastPixels, kMostPixels)), kTasks / 2);
  const int64_t step = round_up(divide_up(pixels, tasks), kPixelStep);
  for_each_task(divide_up(pixels, step), [&](int64_t task) {
    const int64_t first = task * step;
    T* to = out + (image * pixels + first) * o;
    for (int64_t k = 0; k < block.hidden; k += depth)
      run.gemm({.m = std::min(step, pixels - first),
                .n = o,
                .k = std::min(depth, block.hidden - k),
                .a = filtered + k * pixels + first * chunk,
                .lda = chunk,
                .b = projection,
                .c = to,
                .ldc = o,
                .column_bias = k ? nullptr : bias.data(),
                .start = k                ? to
                         : block.residual ? block.in.data + (image * pixels + first) * o
                                          : nullptr,
                .start_stride = o,
                .a_block = chunk,
                .a_stride = pixels * chunk,
                .prefetch = true,
                .b_depth = block.hidden,
                .b_first = k});
  });
}

}  // namespace

template <typename T>
int64_t Mbconv<T>::filtered_size() const {
  const Plan plan(*this);
  return out_height * out_width * plan.chunks * plan.chunk;
}

template <typename T>
void mbconv(const Mbconv<T>& block, T* filtered, T* gated, T* out) {
  const Plan plan(block);
  std::vector<T> sums(block.hidden);
  for (int64_t image = 0; image < block.images; ++image) {
    expand_and_filter(block, plan, image, filtered, sums.data());
    excite(block, sums.data(), gated);
    project(block, plan, image, filtered, gated, out);
  }
}

template struct Mbconv<float>;
template struct Mbconv<double>;
template void mbconv(const Mbconv<float>& block, float* filtered, float* gated, float* out);
template void mbconv(const Mbconv<double>& block, double* filtered, double* gated, double* out);

}  // namespace hyperseg::cpu
