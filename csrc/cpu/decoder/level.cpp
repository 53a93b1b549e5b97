#include "cpu/decoder/level.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/base/bilinear.h"
#include "cpu/base/buffer.h"
#include "cpu/base/coordinates.h"
#include "cpu/base/tasks.h"
#include "cpu/base/transpose.h"

namespace hyperseg::cpu {
namespace {

constexpr int64_t kTileRows = 16, kTileColumns = 16;
constexpr int64_t kFewPixels = 3;            // with fewer, a 1x1 level does not transpose its weights
constexpr int64_t kPixels = 1024;            // per task of a 1x1 level
constexpr int64_t kRunWeights = 96 * 1024;   // generated parameters per task
constexpr int64_t kHiddenBytes = 26 * 1024;  // hidden maps between two steps of a tile with halo="neighbour"
constexpr int64_t kPlanesStep = 12;          // hidden channels: rows of whole tiles of the GEMM, their planes in L1
constexpr int64_t kProjectRows = 3;          // of a tile: products of few pixels are slow

int64_t reflect(int64_t i, int64_t size) { return i < 0 ? -i : i >= size ? 2 * (size - 1) - i : i; }

// Scratch memory of a thread, kept between calls.
enum {
  kSignal,
  kGenerated,
  kConverted,
  kTile,
  kPlanes,
  kPacked,
  kHidden,
  kFiltered,
  kResult,
  kNeighbour,
  kCoarse,
  kBuffers
};
template <typename T>
T* scratch(int which, int64_t count) {
  thread_local Buffer<T> buffers[kBuffers];
  return buffers[which].reserve(count);
}

template <typename S>
class LevelWorker {
 public:
  using T = acc_t<S>;

  explicit LevelWorker(const DecoderLevel<S>& level)
      : level_(level),
        run_(primitives<T>()),
        height_(level.skip.height),
        width_(level.skip.width),
        ph_(height_ / level.grid_h),
        pw_(width_ / level.grid_w),
        channels_(2 * level.with_coordinates + level.skip.channels + level.previous.channels),
        parameters_(level.hidden ? (channels_ + 9 + level.out_channels) * level.hidden
                                 : channels_ * level.out_channels),
        copied_(level.previous.height == height_ && level.previous.width == width_),
        axis_y_(std::max<int64_t>(level.previous.height, 1), height_, copied_),
        axis_x_(std::max<int64_t>(level.previous.width, 1), width_, copied_),
        xs_(coordinates<T>(width_)),
        ys_(coordinates<T>(height_)),
        in_planes_(planes_pay()) {
    if (level.bias.empty()) return;
    bias_ = padded_bias_.reserve(level.bias.size() + kPadding);
    std::fill_n(std::copy(level.bias.begin(), level.bias.end(), bias_), kPadding, T(0));
  }

  void all() const {
    const int64_t needed = std::clamp<int64_t>(kRunWeights / parameters_, 1, level_.grid_w);
    const int64_t runs = (level_.grid_w + needed - 1) / needed;
    const int64_t length = (level_.grid_w + runs - 1) / runs;
    const int64_t tasks = level_.images * level_.grid_h * runs;
    for_each_task(tasks, [&](int64_t task) {
      const int64_t first = task % runs * length;
      one_run(task / runs / level_.grid_h, task / runs % level_.grid_h, first, std::min(first + length, level_.grid_w));
    });
  }

 private:
  // Return `count` weights of one patch, as T and contiguous.
  const T* weights_of(int64_t n, int64_t gy, int64_t gx, int64_t first, int64_t count, T* buffer) const {
    if constexpr (std::is_same_v<S, T>) {
      if (level_.weights.stride_p == 1) return level_.weights.at(n, gy, gx) + first;
    }
    level_.weights.read(n, gy, gx, first, count, buffer);
    return buffer;
  }

  // Return the weights of patches [first, last) of a grid row.
  const T* generate(int64_t n, int64_t gy, int64_t first, int64_t last) const {
    const int64_t patches = last - first, channels = level_.generator->channels();
    T* signal = scratch<T>(kSignal, patches * channels);
    T* weights = scratch<T>(kGenerated, patches * parameters_ + kPadding);
    read_signal(level_.signal, level_.signal_offset, channels, n, gy, first, last, signal);
    level_.generator->generate(run_, patches, signal, weights, parameters_);
    return weights;
  }

  void one_run(int64_t n, int64_t gy, int64_t first, int64_t last) const {
    const T* generated = level_.generator ? generate(n, gy, first, last) : nullptr;
    T* converted = scratch<T>(kConverted, parameters_);
    for (int64_t gx = first; gx < last; ++gx) {
      const T* weights =
          generated ? generated + (gx - first) * parameters_ : weights_of(n, gy, gx, 0, parameters_, converted);
      if (in_planes_) {
        for_each_tile(gy, gx,
                      [&](int64_t y0, int64_t y1, int64_t x0, int64_t x1) { by_planes(n, y0, y1, x0, x1, weights); });
      } else if (level_.hidden) {
        const PackedWeights packed = pack_patch(weights);
        for_each_tile(gy, gx, [&](int64_t y0, int64_t y1, int64_t x0, int64_t x1) {
          inverted_residual(n, gy, gx, y0, y1, x0, x1, packed);
        });
      } else {
        const int64_t columns = std::min(pw_, kPixels), rows = std::min(ph_, kPixels / columns);
        for (int64_t y = gy * ph_; y < (gy + 1) * ph_; y += rows)
          for (int64_t x = gx * pw_; x < (gx + 1) * pw_; x += columns)
            pointwise(n, y, std::min(y + rows, (gy + 1) * ph_), x, std::min(x + columns, (gx + 1) * pw_), weights);
      }
    }
  }

  // Call body(y0, y1, x0, x1) for each tile of a patch.
  template <typename Body>
  void for_each_tile(int64_t gy, int64_t gx, const Body& body) const {
    for (int64_t y = gy * ph_; y < (gy + 1) * ph_; y += kTileRows)
      for (int64_t x = gx * pw_; x < (gx + 1) * pw_; x += kTileColumns)
        body(y, std::min(y + kTileRows, (gy + 1) * ph_), x, std::min(x + kTileColumns, (gx + 1) * pw_));
  }

  // Pixels are the rows of the GEMM, which suits channels-last memory. The weights must be transposed for it, which
  // pays from a few pixels on.
  void pointwise(int64_t n, int64_t y0, int64_t y1, int64_t x0, int64_t x1, const T* weights) const {
    const int64_t pixels = (y1 - y0) * (x1 - x0), o = level_.out_channels;
    T* tile = scratch<T>(kTile, pixels * channels_);
    T* result = scratch<T>(kResult, pixels * o);
    read_tile(n, y0, y1, x0, x1, tile);
    if (pixels < kFewPixels) {
      for (int64_t p = 0; p < pixels; ++p)
        run_.gemv(o, channels_, weights, channels_, tile + p * channels_, result + p * o, bias(0), level_.last);
    } else {
      T* packed = scratch<T>(kPacked, packed_size(channels_, o));
      pack(weights, o, channels_, packed);
      run_.gemm({.m = pixels,
                 .n = o,
                 .k = channels_,
                 .a = tile,
                 .lda = channels_,
                 .b = packed,
                 .c = result,
                 .ldc = o,
                 .column_bias = bias(0),
                 .act = level_.last,
                 .b_depth = channels_});
    }
    write_tile(n, y0, y1, x0, x1, result);
  }

  // [outputs, inputs] for products with pixels as rows.
  void pack(const T* weights, int64_t outputs, int64_t inputs, T* out) const {
    run_.pack(
        {.k = inputs, .n = outputs, .b = weights, .stride_k = 1, .stride_n = inputs, .out = out, .depth = inputs});
  }

  // A patch's weights, packed: [channels, hidden] in steps of hidden channels, [9, hidden] with rows of `padded`, and
  // [hidden, out].
  struct PackedWeights {
    const T *expand, *depthwise, *project;
    int64_t step, padded;
  };

  // Hidden channels per step: all of them, but with halo="neighbour" as many as stay in the L1 cache for a whole tile.
  int64_t hidden_step() const {
    const int64_t padded = round_up(level_.hidden, kPadding);
    if (level_.own_halo) return padded;
    const int64_t pixels = (std::min(ph_, kTileRows) + 2) * (std::min(pw_, kTileColumns) + 2);
    const int64_t fitting = kHiddenBytes / (pixels * int64_t(sizeof(T)));
    return std::clamp(fitting / kPadding * kPadding, kPadding, std::min(padded, 4 * kPadding));
  }

  PackedWeights pack_patch(const T* weights) const {
    const int64_t h = level_.hidden, o = level_.out_channels, padded = round_up(h, kPadding), step = hidden_step();
    const T *w1 = weights, *w2 = w1 + channels_ * h, *w3 = w2 + 9 * h;
    T* expand = scratch<T>(kPacked, (channels_ + 9) * padded + packed_size(h, o) + kPadding);
    T *depthwise = expand + channels_ * padded, *project = depthwise + 9 * padded;
    for (int64_t first = 0; first < h; first += step)
      pack(w1 + first * channels_, std::min(step, h - first), channels_, expand + first * channels_);
    transpose_padded(h, int64_t{9}, w2, int64_t{9}, depthwise, padded);
    pack(w3, o, h, project);
    return {expand, depthwise, project, step, padded};
  }

  // `pixels` of hidden channels [first, first + some) to rows of `stride`.
  void expand(const PackedWeights& weights, int64_t pixels, const T* input, int64_t first, int64_t some, T* to,
              int64_t stride) const {
    run_.gemm({.m = pixels,
               .n = some,
               .k = channels_,
               .a = input,
               .lda = channels_,
               .b = weights.expand + first * channels_,
               .c = to,
               .ldc = stride,
               .column_bias = bias(first),
               .act = Activation::kRelu6,
               .b_depth = channels_});
  }

  // The filter over three rows of expanded pixels.
  void filter(const PackedWeights& weights, int64_t pixels, const T* const (&rows)[3], int64_t first, int64_t some,
              int64_t stride, T* to) const {
    run_.depthwise_row({.channels = some,
                        .padded = stride,
                        .pixels = pixels,
                        .size = 3,
                        .stride = 1,
                        .rows = rows,
                        .weights = weights.depthwise + first,
                        .weights_stride = weights.padded,
                        .bias = bias(level_.hidden + first),
                        .out = to + first,
                        .out_stride = weights.padded,
                        .act = Activation::kRelu6});
  }

  void project(const PackedWeights& weights, int64_t pixels, const T* filtered, T* to) const {
    run_.gemm({.m = pixels,
               .n = level_.out_channels,
               .k = level_.hidden,
               .a = filtered,
               .lda = weights.padded,
               .b = weights.project,
               .c = to,
               .ldc = level_.out_channels,
               .column_bias = bias(2 * level_.hidden),
               .b_depth = level_.hidden});
  }

  void inverted_residual(int64_t n, int64_t gy, int64_t gx, int64_t y0, int64_t y1, int64_t x0, int64_t x1,
                         const PackedWeights& weights) const {
    T* result = scratch<T>(kResult, (y1 - y0) * (x1 - x0) * level_.out_channels);
    if (level_.own_halo) {
      by_rows(n, y0, y1, x0, x1, weights, result);
    } else {
      by_channels(n, gy, gx, y0, y1, x0, x1, weights, result);
    }
    write_tile(n, y0, y1, x0, x1, result);
  }

  // The three expanded rows that the filter reads are in a ring, which stays in the L1 cache beside the weights.
  void by_rows(int64_t n, int64_t y0, int64_t y1, int64_t x0, int64_t x1, const PackedWeights& weights,
               T* result) const {
    const int64_t rows = y1 - y0, columns = x1 - x0, stride = columns + 2, padded = weights.padded;
    T* tile = scratch<T>(kTile, (rows + 2) * stride * channels_);
    T* ring = scratch<T>(kHidden, 3 * stride * padded);
    T* filtered = scratch<T>(kFiltered, kProjectRows * columns * padded);
    read_tile(n, y0 - 1, y1 + 1, x0 - 1, x1 + 1, tile);
    if (level_.hidden < padded) std::fill_n(ring, 3 * stride * padded, T(0));  // whole vectors are filtered
    const auto slot = [&](int64_t y) { return ring + y % 3 * stride * padded; };
    for (int64_t y = 0; y < rows + 2; ++y) {
      expand(weights, stride, tile + y * stride * channels_, 0, level_.hidden, slot(y), padded);
      if (y < 2) continue;
      const int64_t row = y - 2, pending = row % kProjectRows;
      filter(weights, columns, {slot(y - 2), slot(y - 1), slot(y)}, 0, level_.hidden, padded,
             filtered + pending * columns * padded);
      if (pending + 1 == kProjectRows || row + 1 == rows)
        project(weights, (pending + 1) * columns, filtered, result + (row - pending) * columns * level_.out_channels);
    }
  }

  // A tile in planes, channel by channel, each with its rows one after the other. Vectors are filled with pixels of
  // several rows, or with parts of a row if that leaves no lane unused.
  struct Planes {
    Planes(int64_t rows, int64_t columns, int64_t lanes)
        : stride(columns + 2),
          haloed((rows + 2) * stride),
          in(round_up(haloed, lanes)),
          out_stride(columns % lanes ? stride : columns),
          out(round_up((rows - 1) * out_stride + columns, lanes)) {}

    int64_t stride, haloed;   // of a row with its halo, pixels with their halo
    int64_t in;               // values of an input plane
    int64_t out_stride, out;  // of a row of outputs, values of an output plane
  };

  // Whether patches are computed in planes: by the number of vectors that are multiplied. Channels along the lanes
  // leave lanes unused after the last channel, and planes after the last pixel. Planes are faster with up to a quarter
  // more multiplications, as they pack no weights.
  bool planes_pay() const {
    if (!level_.hidden || !level_.own_halo) return false;
    const int64_t rows = std::min(ph_, kTileRows), columns = std::min(pw_, kTileColumns), lanes = run_.lanes;
    const Planes planes(rows, columns, lanes);
    const int64_t hidden = level_.hidden, o = level_.out_channels, hidden_vectors = divide_up(hidden, lanes);
    const int64_t by_channels = (planes.haloed * channels_ + 9 * rows * columns) * hidden_vectors +
                                rows * columns * hidden * divide_up(o, lanes);
    const int64_t by_pixels = (planes.in * channels_ + planes.out * (9 + o)) / lanes * hidden;
    return 4 * by_pixels <= 5 * by_channels;
  }

  // A tile in planes: pixels are the columns of the GEMMs, and weights are used as they were generated.
  void by_planes(int64_t n, int64_t y0, int64_t y1, int64_t x0, int64_t x1, const T* weights) const {
    const int64_t rows = y1 - y0, columns = x1 - x0, h = level_.hidden, o = level_.out_channels;
    const Planes planes(rows, columns, run_.lanes);
    const T *depthwise = weights + channels_ * h, *project = depthwise + 9 * h;
    T* tile = scratch<T>(kPlanes, channels_ * planes.in);
    T* hidden = scratch<T>(kHidden, kPlanesStep * planes.in + run_.lanes);
    T* filtered = scratch<T>(kFiltered, h * planes.out);
    T* result = scratch<T>(kResult, o * planes.out);
    read_planes(n, y0 - 1, y1 + 1, x0 - 1, x1 + 1, planes, tile);
    for (int64_t first = 0; first < h; first += kPlanesStep) {
      const int64_t some = std::min(kPlanesStep, h - first);
      run_.gemm({.m = some,
                 .n = planes.in,
                 .k = channels_,
                 .a = weights + first * channels_,
                 .lda = channels_,
                 .b = tile,
                 .ldb = planes.in,
                 .c = hidden,
                 .ldc = planes.in,
                 .row_bias = bias(first),
                 .act = Activation::kRelu6});
      std::fill_n(hidden + some * planes.in, run_.lanes, T(0));  // whole vectors are filtered
      run_.depthwise_planes({.channels = some,
                             .rows = rows,
                             .columns = columns,
                             .in = hidden,
                             .in_stride = planes.stride,
                             .in_plane = planes.in,
                             .weights = depthwise + first * 9,
                             .bias = bias(h + first),
                             .out = filtered + first * planes.out,
                             .out_plane = planes.out,
                             .act = Activation::kRelu6});
    }
    run_.gemm({.m = o,
               .n = planes.out,
               .k = h,
               .a = project,
               .lda = h,
               .b = filtered,
               .ldb = planes.out,
               .c = result,
               .ldc = planes.out,
               .row_bias = bias(2 * h)});
    write_planes(n, y0, y1, x0, x1, planes, result);
  }

  // halo="neighbour": a whole tile, some hidden channels at a time.
  void by_channels(int64_t n, int64_t gy, int64_t gx, int64_t y0, int64_t y1, int64_t x0, int64_t x1,
                   const PackedWeights& weights, T* result) const {
    const int64_t rows = y1 - y0, columns = x1 - x0, stride = columns + 2, step = weights.step;
    const int64_t haloed = (rows + 2) * stride;  // pixels of the tile with its halo
    T* tile = scratch<T>(kTile, haloed * channels_);
    T* hidden = scratch<T>(kHidden, haloed * step);
    T* filtered = scratch<T>(kFiltered, rows * columns * weights.padded);
    read_tile(n, y0 - 1, y1 + 1, x0 - 1, x1 + 1, tile);
    if (level_.hidden % kPadding) std::fill_n(hidden, haloed * step, T(0));  // whole vectors are filtered
    for (int64_t first = 0; first < level_.hidden; first += step) {
      const int64_t some = std::min(step, level_.hidden - first);
      expand(weights, haloed, tile, first, some, hidden, step);
      neighbours(n, gy, gx, y0, y1, x0, x1, tile, first, some, hidden, step);
      for (int64_t y = 0; y < rows; ++y) {
        const T* const row = hidden + y * stride * step;
        filter(weights, columns, {row, row + stride * step, row + 2 * stride * step}, first, some, step,
               filtered + y * columns * weights.padded);
      }
    }
    project(weights, rows * columns, filtered, result);
  }

  const T* bias(int64_t from) const { return bias_ ? bias_ + from : nullptr; }

  // halo="neighbour": replace the hidden values around the tile by those of the patches they belong to, for `some`
  // channels from `first`.
  void neighbours(int64_t n, int64_t gy, int64_t gx, int64_t y0, int64_t y1, int64_t x0, int64_t x1, const T* tile,
                  int64_t first, int64_t some, T* hidden, int64_t step) const {
    const int64_t rows = y1 - y0 + 2, stride = x1 - x0 + 2;
    const auto owner_y = [&](int64_t y) { return reflect(y, height_) / ph_; };
    const auto owner_x = [&](int64_t x) { return reflect(x, width_) / pw_; };
    const int64_t ends_y[3] = {owner_y(y0 - 1), gy, owner_y(y1)}, ends_x[3] = {owner_x(x0 - 1), gx, owner_x(x1)};
    const int64_t from_y[3] = {0, 1, rows - 1}, size_y[3] = {1, rows - 2, 1};
    const int64_t from_x[3] = {0, 1, stride - 1}, size_x[3] = {1, stride - 2, 1};
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j)
        if (ends_y[i] != gy || ends_x[j] != gx)
          expand_for_neighbour(weights_of(n, ends_y[i], ends_x[j], first * channels_, some * channels_,
                                          scratch<T>(kNeighbour, some * channels_)),
                               first, some, from_y[i], size_y[i], from_x[j], size_x[j], stride, tile, hidden, step);
  }

  void expand_for_neighbour(const T* w1, int64_t first, int64_t some, int64_t from_y, int64_t rows, int64_t from_x,
                            int64_t columns, int64_t stride, const T* tile, T* hidden, int64_t step) const {
    const int64_t pixels = rows * columns, padded = round_up(pixels, kPadding);
    T* gathered = scratch<T>(kCoarse, (channels_ + some) * padded);
    T* values = gathered + channels_ * padded;
    const auto place = [&](int64_t p) { return (from_y + p / columns) * stride + from_x + p % columns; };
    std::fill_n(gathered, channels_ * padded, T(0));
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t c = 0; c < channels_; ++c) gathered[c * padded + p] = tile[place(p) * channels_ + c];
    run_.gemm({.m = some,
               .n = pixels,
               .k = channels_,
               .a = w1,
               .lda = channels_,
               .b = gathered,
               .ldb = padded,
               .c = values,
               .ldc = padded,
               .row_bias = bias(first),
               .act = Activation::kRelu6});
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t c = 0; c < some; ++c) hidden[place(p) * step + c] = values[c * padded + p];
  }

  // Read the level's input in [y0, y1) x [x0, x1), reflected beyond the map, pixel by pixel.
  void read_tile(int64_t n, int64_t y0, int64_t y1, int64_t x0, int64_t x1, T* to) const {
    const int64_t columns = x1 - x0;
    int64_t xs[kPixels + 2];
    reflect_columns(x0, x1, xs);
    if (level_.with_coordinates) {
      for (int64_t y = y0; y < y1; ++y) {
        T* pixel = to + (y - y0) * columns * channels_;
        const T coordinate = ys_[reflect(y, height_)];
        for (int64_t x = 0; x < columns; ++x, pixel += channels_) {
          pixel[0] = xs_[xs[x]];
          pixel[1] = coordinate;
        }
      }
      to += 2;
    }
    read_skip(n, y0, y1, columns, xs, to, channels_);
    if (level_.previous) read_previous(n, y0, y1, columns, xs, to + level_.skip.channels, channels_);
  }

  void reflect_columns(int64_t x0, int64_t x1, int64_t* xs) const {
    for (int64_t x = x0; x < x1; ++x) xs[x - x0] = reflect(x, width_);
  }

  // The same in planes.
  void read_planes(int64_t n, int64_t y0, int64_t y1, int64_t x0, int64_t x1, const Planes& planes, T* to) const {
    const int64_t columns = x1 - x0;
    int64_t xs[kPixels + 2];
    reflect_columns(x0, x1, xs);
    for (int64_t c = 0; c < channels_; ++c)  // the lanes after the last pixel are multiplied too
      std::fill(to + c * planes.in + planes.haloed, to + (c + 1) * planes.in, T(0));
    if (level_.with_coordinates) {
      for (int64_t y = y0; y < y1; ++y) {
        T* row = to + (y - y0) * columns;
        for (int64_t x = 0; x < columns; ++x) row[x] = xs_[xs[x]];
        std::fill_n(row + planes.in, columns, ys_[reflect(y, height_)]);
      }
      to += 2 * planes.in;
    }
    const int64_t skip = level_.skip.channels, previous = level_.previous.channels;
    T* pixels = scratch<T>(kTile, planes.haloed * std::max(skip, previous));
    read_skip(n, y0, y1, columns, xs, pixels, skip);
    run_.transpose(planes.haloed, skip, pixels, skip, to, planes.in);
    if (!previous) return;
    read_previous(n, y0, y1, columns, xs, pixels, previous);
    run_.transpose(planes.haloed, previous, pixels, previous, to + skip * planes.in, planes.in);
  }

  // To pixels that are `stride` apart.
  void read_skip(int64_t n, int64_t y0, int64_t y1, int64_t columns, const int64_t* xs, T* to, int64_t stride) const {
    for (int64_t y = y0; y < y1; ++y)
      read_pixels(level_.skip, level_.skip.at(n, 0, reflect(y, height_), 0), xs, columns,
                  to + (y - y0) * columns * stride, stride);
  }

  // Read the pixels of a row of a map to to + i * stride.
  void read_pixels(const Map<const S>& map, const S* row, const int64_t* xs, int64_t columns, T* to,
                   int64_t stride) const {
    if constexpr (std::is_same_v<S, T>) {
      if (map.stride_c == 1 && map.stride_w == map.channels && stride == map.channels &&
          xs[columns - 1] - xs[0] + 1 == columns) {
        std::copy_n(row + xs[0] * stride, columns * stride, to);
        return;
      }
      if (map.stride_c == 1) return run_.copy_pixels(map.channels, row, map.stride_w, xs, columns, to, stride);
    }
    if (map.stride_c == 1) {
      for (int64_t x = 0; x < columns; ++x)
        for (int64_t c = 0; c < map.channels; ++c) to[x * stride + c] = static_cast<T>(row[xs[x] * map.stride_w + c]);
    } else {
      for (int64_t c = 0; c < map.channels; ++c)
        for (int64_t x = 0; x < columns; ++x)
          to[x * stride + c] = static_cast<T>(row[c * map.stride_c + xs[x] * map.stride_w]);
    }
  }

  void read_previous(int64_t n, int64_t y0, int64_t y1, int64_t columns, const int64_t* xs, T* to,
                     int64_t stride) const {
    const Map<const S>& previous = level_.previous;
    // The part of the coarse map that is sampled.
    int64_t top = previous.height, bottom = 0, left = previous.width, right = 0;
    for (int64_t y = y0; y < y1; ++y) {
      top = std::min<int64_t>(top, axis_y_.low[reflect(y, height_)]);
      bottom = std::max<int64_t>(bottom, axis_y_.high[reflect(y, height_)] + 1);
    }
    for (int64_t x = 0; x < columns; ++x) {
      left = std::min<int64_t>(left, axis_x_.low[xs[x]]);
      right = std::max<int64_t>(right, axis_x_.high[xs[x]] + 1);
    }
    int32_t low[kPixels + 2], high[kPixels + 2];
    T weight[kPixels + 2];
    for (int64_t x = 0; x < columns; ++x) {
      low[x] = static_cast<int32_t>(axis_x_.low[xs[x]] - left);
      high[x] = static_cast<int32_t>(axis_x_.high[xs[x]] - left);
      weight[x] = axis_x_.weight[xs[x]];
    }
    const int64_t channels = previous.channels, width = right - left, row = width * channels;
    thread_local std::vector<int64_t> coarse_xs;  // as many as previous is wide, which may be more than kPixels
    coarse_xs.resize(width);
    for (int64_t x = 0; x < width; ++x) coarse_xs[x] = left + x;
    T* coarse = scratch<T>(kCoarse, (bottom - top + 1) * row);
    T* blend = coarse + (bottom - top) * row;
    for (int64_t y = top; y < bottom; ++y)
      read_pixels(previous, previous.at(n, 0, y, 0), coarse_xs.data(), width, coarse + (y - top) * row, channels);
    for (int64_t y = y0; y < y1; ++y) {
      const int64_t mapped = reflect(y, height_);
      run_.blend(coarse + (axis_y_.low[mapped] - top) * row, coarse + (axis_y_.high[mapped] - top) * row,
                 axis_y_.weight[mapped], row, blend);
      run_.widen(blend, channels, low, high, weight, columns, to + (y - y0) * columns * stride, stride);
    }
  }

  void write_tile(int64_t n, int64_t y0, int64_t y1, int64_t x0, int64_t x1, const T* from) const {
    const Map<S>& out = level_.out;
    const int64_t columns = x1 - x0, channels = out.channels;
    for (int64_t y = y0; y < y1; ++y, from += columns * channels) {
      S* row = out.at(n, 0, y, x0);
      if constexpr (std::is_same_v<S, T>) {
        if (out.stride_w == 1) {
          run_.transpose(columns, channels, from, channels, row, out.stride_c);
          continue;
        }
        if (out.stride_c == 1 && out.stride_w == channels) {
          std::copy_n(from, columns * channels, row);
          continue;
        }
      }
      for (int64_t x = 0; x < columns; ++x)
        for (int64_t c = 0; c < channels; ++c)
          row[x * out.stride_w + c * out.stride_c] = static_cast<S>(from[x * channels + c]);
    }
  }

  void write_planes(int64_t n, int64_t y0, int64_t y1, int64_t x0, int64_t x1, const Planes& planes,
                    const T* from) const {
    const Map<S>& out = level_.out;
    const int64_t columns = x1 - x0, channels = out.channels;
    for (int64_t y = y0; y < y1; ++y, from += planes.out_stride) {
      S* row = out.at(n, 0, y, x0);
      if constexpr (std::is_same_v<S, T>) {
        if (out.stride_c == 1) {
          run_.transpose(channels, columns, from, planes.out, row, out.stride_w);
          continue;
        }
        if (out.stride_w == 1) {
          for (int64_t c = 0; c < channels; ++c) std::copy_n(from + c * planes.out, columns, row + c * out.stride_c);
          continue;
        }
      }
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t x = 0; x < columns; ++x)
          row[c * out.stride_c + x * out.stride_w] = static_cast<S>(from[c * planes.out + x]);
    }
  }

  const DecoderLevel<S>& level_;
  const Primitives<T>& run_;
  int64_t height_, width_, ph_, pw_, channels_, parameters_;
  bool copied_;  // previous has the size of skip
  Axis<T> axis_y_, axis_x_;
  std::vector<T> xs_, ys_;
  bool in_planes_;
  Buffer<T> padded_bias_;
  T* bias_ = nullptr;
};

}  // namespace

template <typename S>
void DecoderLevel<S>::run() const {
  LevelWorker<S>(*this).all();
}

template void DecoderLevel<float>::run() const;
template void DecoderLevel<double>::run() const;
template void DecoderLevel<torch::headeronly::Half>::run() const;
template void DecoderLevel<torch::headeronly::BFloat16>::run() const;

}  // namespace hyperseg::cpu
