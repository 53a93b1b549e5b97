#include "level.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

namespace hyperseg::cpu {
namespace {

constexpr int64_t kTileRows = 16, kTileColumns = 32;
constexpr int64_t kRunWeights = 96 * 1024;  // generated parameters that a task holds at once

int64_t reflect(int64_t i, int64_t size) { return i < 0 ? -i : i >= size ? 2 * (size - 1) - i : i; }

// Scratch memory of a thread, kept from call to call.
template <typename T>
T* scratch(int which, int64_t count) {
  thread_local std::vector<T> buffers[9];
  auto& buffer = buffers[which];
  if (int64_t(buffer.size()) < count) buffer.resize(count);
  return buffer.data();
}

template <typename S>
class Worker {
 public:
  using T = acc_t<S>;

  explicit Worker(const Level<S>& level)
      : level_(level),
        run_(primitives<T>()),
        height_(level.skip.height),
        width_(level.skip.width),
        ph_(height_ / level.grid_h),
        pw_(width_ / level.grid_w),
        channels_(2 * level.with_coordinates + level.skip.channels + level.previous.channels),
        parameters_(level.hidden ? (channels_ + 9 + level.out_channels) * level.hidden
                                 : channels_ * level.out_channels),
        axis_y_(std::max<int64_t>(level.previous.height, 1), height_),
        axis_x_(std::max<int64_t>(level.previous.width, 1), width_),
        xs_(coordinates<T>(width_)),
        ys_(coordinates<T>(height_)) {}

  void all() const {
    const int64_t wanted = std::clamp<int64_t>(kRunWeights / parameters_, 1, level_.grid_w);
    const int64_t runs = (level_.grid_w + wanted - 1) / wanted;
    const int64_t length = (level_.grid_w + runs - 1) / runs;
    const int64_t tasks = level_.images * level_.grid_h * runs;
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task % runs * length;
        one_run(task / runs / level_.grid_h, task / runs % level_.grid_h, first,
                std::min(first + length, level_.grid_w));
      }
    });
  }

 private:
  // The weights of one patch, as T and contiguous.
  const T* weights_of(int64_t n, int64_t gy, int64_t gx, int64_t count, T* buffer) const {
    const S* source = level_.weights + n * level_.weights_n + gy * level_.weights_h + gx * level_.weights_w;
    if constexpr (std::is_same_v<S, T>) {
      if (level_.weights_p == 1) return source;
    }
    for (int64_t i = 0; i < count; ++i) buffer[i] = static_cast<T>(source[i * level_.weights_p]);
    return buffer;
  }

  void read_signal(int64_t n, int64_t gy, int64_t first, int64_t last, T* to) const {
    const Map<const S>& signal = level_.signal;
    const int64_t channels = level_.generator->groups * level_.generator->depth;
    for (int64_t gx = first; gx < last; ++gx)
      for (int64_t c = 0; c < channels; ++c)
        to[(gx - first) * channels + c] = static_cast<T>(*signal.at(n, level_.signal_offset + c, gy, gx));
  }

  // The weights of patches [first, last) of a row of the grid.
  const T* generate(int64_t n, int64_t gy, int64_t first, int64_t last) const {
    const int64_t patches = last - first;
    T* signal = scratch<T>(0, patches * level_.generator->groups * level_.generator->depth);
    T* weights = scratch<T>(1, patches * parameters_ + kPadding);
    read_signal(n, gy, first, last, signal);
    level_.generator->generate(run_, patches, signal, weights, parameters_);
    return weights;
  }

  void one_run(int64_t n, int64_t gy, int64_t first, int64_t last) const {
    const T* generated = level_.generator ? generate(n, gy, first, last) : nullptr;
    T* converted = scratch<T>(2, parameters_);
    for (int64_t gx = first; gx < last; ++gx) {
      const T* weights =
          generated ? generated + (gx - first) * parameters_ : weights_of(n, gy, gx, parameters_, converted);
      if (level_.hidden) {
        for (int64_t y = gy * ph_; y < (gy + 1) * ph_; y += kTileRows)
          for (int64_t x = gx * pw_; x < (gx + 1) * pw_; x += kTileColumns)
            inverted_residual(n, gy, gx, y, std::min(y + kTileRows, (gy + 1) * ph_), x,
                              std::min(x + kTileColumns, (gx + 1) * pw_), weights);
      } else {
        const int64_t rows = std::max<int64_t>(1, std::min(ph_, 1024 / std::min<int64_t>(pw_, 1024)));
        for (int64_t y = gy * ph_; y < (gy + 1) * ph_; y += rows)
          for (int64_t x = gx * pw_; x < (gx + 1) * pw_; x += 1024)
            pointwise(n, y, std::min(y + rows, (gy + 1) * ph_), x, std::min<int64_t>(x + 1024, (gx + 1) * pw_),
                      weights);
      }
    }
  }

  void pointwise(int64_t n, int64_t y0, int64_t y1, int64_t x0, int64_t x1, const T* weights) const {
    const int64_t pixels = (y1 - y0) * (x1 - x0), map = round_up(pixels, kPadding);
    T* tile = scratch<T>(3, channels_ * map + kPadding);
    T* result = scratch<T>(4, level_.out_channels * map + kPadding);
    read_tile(n, y0, y1, x0, x1, tile, map);
    const T* bias = level_.bias.empty() ? nullptr : level_.bias.data();
    if (pixels < 8) {
      T* turned = scratch<T>(5, pixels * channels_);
      for (int64_t c = 0; c < channels_; ++c)
        for (int64_t p = 0; p < pixels; ++p) turned[p * channels_ + c] = tile[c * map + p];
      run_.dots(level_.out_channels, pixels, channels_, weights, channels_, turned, channels_, result, map, bias,
                level_.last);
    } else {
      run_.gemm(level_.out_channels, pixels, channels_, weights, channels_, tile, map, result, map, bias, level_.last);
    }
    write_tile(n, y0, y1, x0, x1, result, map, x1 - x0);
  }

  void inverted_residual(int64_t n, int64_t gy, int64_t gx, int64_t y0, int64_t y1, int64_t x0, int64_t x1,
                         const T* weights) const {
    const int64_t h = level_.hidden, o = level_.out_channels;
    const int64_t rows = y1 - y0, stride = x1 - x0 + 2;
    const int64_t whole = (rows + 2) * stride;  // positions of the tile with its halo
    const int64_t count = rows * stride - 2;    // positions of the result, in the same stride
    const int64_t map = round_up(whole, kPadding) + kPadding;
    T* tile = scratch<T>(3, channels_ * map + kPadding);
    T* hidden = scratch<T>(5, h * map + 4 * kPadding);
    T* filtered = scratch<T>(6, h * map + kPadding);
    T* result = scratch<T>(4, o * map + kPadding);
    const T *w1 = weights, *w2 = w1 + channels_ * h, *w3 = w2 + 9 * h;
    const T* bias = level_.bias.empty() ? nullptr : level_.bias.data();

    read_tile(n, y0 - 1, y1 + 1, x0 - 1, x1 + 1, tile, map);
    run_.gemm(h, whole, channels_, w1, channels_, tile, map, hidden, map, bias, Activation::kRelu6);
    if (!level_.own_halo) neighbours(n, gy, gx, y0, y1, x0, x1, tile, hidden, map);
    run_.depthwise(h, count, stride, hidden, map, w2, filtered, map, bias ? bias + h : nullptr);
    run_.gemm(o, count, h, w3, h, filtered, map, result, map, bias ? bias + 2 * h : nullptr, Activation::kNone);
    write_tile(n, y0, y1, x0, x1, result, map, stride);
  }

  // halo="neighbour": replace the hidden values around the tile by those of the patches they belong to.
  void neighbours(int64_t n, int64_t gy, int64_t gx, int64_t y0, int64_t y1, int64_t x0, int64_t x1, const T* tile,
                  T* hidden, int64_t map) const {
    const int64_t rows = y1 - y0 + 2, stride = x1 - x0 + 2;
    const auto owner_y = [&](int64_t y) { return reflect(y, height_) / ph_; };
    const auto owner_x = [&](int64_t x) { return reflect(x, width_) / pw_; };
    const int64_t ends_y[3] = {owner_y(y0 - 1), gy, owner_y(y1)}, ends_x[3] = {owner_x(x0 - 1), gx, owner_x(x1)};
    const int64_t from_y[3] = {0, 1, rows - 1}, size_y[3] = {1, rows - 2, 1};
    const int64_t from_x[3] = {0, 1, stride - 1}, size_x[3] = {1, stride - 2, 1};
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j)
        if (ends_y[i] != gy || ends_x[j] != gx)
          of_neighbour(n, ends_y[i], ends_x[j], from_y[i], size_y[i], from_x[j], size_x[j], stride, tile, hidden, map);
  }

  void of_neighbour(int64_t n, int64_t gy, int64_t gx, int64_t from_y, int64_t rows, int64_t from_x, int64_t columns,
                    int64_t stride, const T* tile, T* hidden, int64_t map) const {
    const int64_t pixels = rows * columns, padded = round_up(pixels, kPadding), count = channels_ * level_.hidden;
    const T* w1 = weights_of(n, gy, gx, count, scratch<T>(7, count));
    T* gathered = scratch<T>(8, (channels_ + level_.hidden) * padded + kPadding);
    T* values = gathered + channels_ * padded;
    for (int64_t c = 0; c < channels_; ++c)
      for (int64_t p = 0; p < pixels; ++p)
        gathered[c * padded + p] = tile[c * map + (from_y + p / columns) * stride + from_x + p % columns];
    run_.gemm(level_.hidden, pixels, channels_, w1, channels_, gathered, padded, values, padded,
              level_.bias.empty() ? nullptr : level_.bias.data(), Activation::kRelu6);
    for (int64_t c = 0; c < level_.hidden; ++c)
      for (int64_t p = 0; p < pixels; ++p)
        hidden[c * map + (from_y + p / columns) * stride + from_x + p % columns] = values[c * padded + p];
  }

  // The level's input in [y0, y1) x [x0, x1), reflected beyond the map, planar: channel c at to + c * map.
  void read_tile(int64_t n, int64_t y0, int64_t y1, int64_t x0, int64_t x1, T* to, int64_t map) const {
    const int64_t columns = x1 - x0;
    int64_t xs[1024 + 2];
    for (int64_t x = x0; x < x1; ++x) xs[x - x0] = reflect(x, width_);
    if (level_.with_coordinates) {
      for (int64_t y = y0; y < y1; ++y) {
        T *row_x = to + (y - y0) * columns, *row_y = row_x + map;
        for (int64_t x = 0; x < columns; ++x) row_x[x] = xs_[xs[x]];
        std::fill_n(row_y, columns, ys_[reflect(y, height_)]);
      }
      to += 2 * map;
    }
    read_skip(n, y0, y1, columns, xs, to, map);
    if (level_.previous) read_previous(n, y0, y1, columns, xs, to + level_.skip.channels * map, map);
  }

  void read_skip(int64_t n, int64_t y0, int64_t y1, int64_t columns, const int64_t* xs, T* to, int64_t map) const {
    const Map<const S>& skip = level_.skip;
    for (int64_t y = y0; y < y1; ++y) {
      const S* row = skip.at(n, 0, reflect(y, height_), 0);
      T* target = to + (y - y0) * columns;
      if (skip.stride_c == 1) {
        for (int64_t x = 0; x < columns; ++x) {
          const S* pixel = row + xs[x] * skip.stride_w;
          for (int64_t c = 0; c < skip.channels; ++c) target[c * map + x] = static_cast<T>(pixel[c]);
        }
      } else {
        for (int64_t c = 0; c < skip.channels; ++c)
          for (int64_t x = 0; x < columns; ++x)
            target[c * map + x] = static_cast<T>(row[c * skip.stride_c + xs[x] * skip.stride_w]);
      }
    }
  }

  void read_previous(int64_t n, int64_t y0, int64_t y1, int64_t columns, const int64_t* xs, T* to, int64_t map) const {
    const Map<const S>& previous = level_.previous;
    // The part of the coarse map that is sampled, planar.
    int64_t top = previous.height, bottom = 0, left = previous.width, right = 0;
    for (int64_t y = y0; y < y1; ++y) {
      top = std::min<int64_t>(top, axis_y_.low[reflect(y, height_)]);
      bottom = std::max<int64_t>(bottom, axis_y_.high[reflect(y, height_)] + 1);
    }
    int32_t low[1024 + 2], high[1024 + 2];
    T weight[1024 + 2];
    for (int64_t x = 0; x < columns; ++x) {
      left = std::min<int64_t>(left, axis_x_.low[xs[x]]);
      right = std::max<int64_t>(right, axis_x_.high[xs[x]] + 1);
    }
    for (int64_t x = 0; x < columns; ++x) {
      low[x] = static_cast<int32_t>(axis_x_.low[xs[x]] - left);
      high[x] = static_cast<int32_t>(axis_x_.high[xs[x]] - left);
      weight[x] = axis_x_.weight[xs[x]];
    }
    const int64_t width = right - left, area = (bottom - top) * width, channels = previous.channels;
    T* coarse = scratch<T>(8, channels * area + width + 2 * kPadding);
    T* blend = coarse + channels * area + kPadding;
    for (int64_t y = top; y < bottom; ++y) {
      const S* row = previous.at(n, 0, y, left);
      T* target = coarse + (y - top) * width;
      if (previous.stride_c == 1) {
        for (int64_t x = 0; x < width; ++x)
          for (int64_t c = 0; c < channels; ++c) target[c * area + x] = static_cast<T>(row[x * previous.stride_w + c]);
      } else {
        for (int64_t c = 0; c < channels; ++c)
          for (int64_t x = 0; x < width; ++x)
            target[c * area + x] = static_cast<T>(row[c * previous.stride_c + x * previous.stride_w]);
      }
    }
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t y = y0; y < y1; ++y) {
        const int64_t mapped = reflect(y, height_);
        const T* upper = coarse + c * area + (axis_y_.low[mapped] - top) * width;
        const T* lower = coarse + c * area + (axis_y_.high[mapped] - top) * width;
        run_.blend(upper, lower, axis_y_.weight[mapped], width, blend);
        run_.widen(blend, low, high, weight, columns, to + c * map + (y - y0) * columns);
      }
  }

  void write_tile(int64_t n, int64_t y0, int64_t y1, int64_t x0, int64_t x1, const T* from, int64_t map,
                  int64_t stride) const {
    const Map<S>& out = level_.out;
    for (int64_t y = y0; y < y1; ++y) {
      S* row = out.at(n, 0, y, x0);
      const T* source = from + (y - y0) * stride;
      if (out.stride_c == 1) {
        for (int64_t x = 0; x < x1 - x0; ++x)
          for (int64_t c = 0; c < out.channels; ++c) row[x * out.stride_w + c] = static_cast<S>(source[c * map + x]);
      } else {
        for (int64_t c = 0; c < out.channels; ++c)
          for (int64_t x = 0; x < x1 - x0; ++x)
            row[c * out.stride_c + x * out.stride_w] = static_cast<S>(source[c * map + x]);
      }
    }
  }

  const Level<S>& level_;
  const Primitives<T>& run_;
  int64_t height_, width_, ph_, pw_, channels_, parameters_;
  Axis<T> axis_y_, axis_x_;
  std::vector<T> xs_, ys_;
};

}  // namespace

template <typename S>
void Level<S>::run() const {
  Worker<S>(*this).all();
}

template void Level<float>::run() const;
template void Level<double>::run() const;
template void Level<torch::headeronly::Half>::run() const;
template void Level<torch::headeronly::BFloat16>::run() const;

}  // namespace hyperseg::cpu
