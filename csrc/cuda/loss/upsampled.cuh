#pragma once

#include <type_traits>

#include "common/map.h"
#include "cuda/device/bilinear.cuh"

// Maps that are resized when read: a block computes a tile of output pixels, one per thread.
namespace hyperseg::cuda {

constexpr int kTileHeight = 8, kTileWidth = 32, kTileThreads = kTileHeight * kTileWidth;
constexpr int64_t kMaxStaged = 46 << 10;  // bytes of shared memory that a block can have by default, with some to spare

struct ResizeAxis {
  int64_t in, out;
  float scale;

  ResizeAxis() = default;
  ResizeAxis(int64_t in, int64_t out) : in(in), out(out), scale(static_cast<float>(in) / static_cast<float>(out)) {}

  // Number of values that `tile` adjacent pixels sample.
  int64_t reach(int64_t tile) const {
    const int64_t needed = static_cast<int64_t>(static_cast<float>(tile) * scale) + 3;
    return needed < in ? needed : in;
  }
};

struct Resizing {
  ResizeAxis rows, columns;
  int channels, staged_width;
  bool copy;  // same size: nothing is sampled, so no neighbour's infinity is multiplied by 0

  template <typename S>
  Resizing(const Map<S>& map, int64_t height, int64_t width)
      : rows(map.height, height),
        columns(map.width, width),
        channels(static_cast<int>(map.channels)),
        staged_width(static_cast<int>(columns.reach(kTileWidth))),
        copy(map.height == height && map.width == width) {}

  // Of one image. Tiles are numbered row by row.
  HYPERSEG_HOST_DEVICE unsigned tiles() const {
    return static_cast<unsigned>((rows.out + kTileHeight - 1) / kTileHeight * tiles_across());
  }
  HYPERSEG_HOST_DEVICE unsigned tiles_across() const {
    return static_cast<unsigned>((columns.out + kTileWidth - 1) / kTileWidth);
  }

  // Shared memory for the values that a tile samples; 0 if that is too much and they are read from global memory.
  int64_t staged_bytes() const {
    const int64_t down = rows.reach(kTileHeight), across = columns.reach(kTileWidth);
    if (down >= kMaxStaged || across >= kMaxStaged) return 0;
    const int64_t bytes = 4 * down * across * (channels | 1);
    return bytes <= kMaxStaged ? bytes : 0;
  }
};

// The values at this thread's pixel of a tile; `inside` is false if the pixel is outside the map. STAGED: the samples
// of the block are in shared memory as float, pixel by pixel; an odd number of values per pixel avoids bank conflicts.
template <typename T, bool STAGED>
class Resized {
 public:
  int y, x;  // the nearest pixel inside
  bool inside;

  // For all threads of the block. `image`: an image of the map.
  HYPERSEG_DEVICE Resized(const T* image, const Map<const T>& map, const Resizing& resizing, int tile, float* staged)
      : image_(image), map_(map), resizing_(resizing), staged_(staged) {
    const int height = static_cast<int>(resizing.rows.out), width = static_cast<int>(resizing.columns.out);
    const int h = static_cast<int>(resizing.rows.in), w = static_cast<int>(resizing.columns.in);
    const int thread = threadIdx.x, across = resizing.tiles_across(), channels = resizing.channels;
    const int top = tile / across * kTileHeight, left = tile % across * kTileWidth;
    y = min(top + thread / kTileWidth, height - 1), x = min(left + thread % kTileWidth, width - 1);
    inside = top + thread / kTileWidth < height && left + thread % kTileWidth < width;
    const Sample row(y, resizing.rows.scale, h), column(x, resizing.columns.scale, w);
    row_weight_ = row.weight, column_weight_ = column.weight;
    if constexpr (STAGED) {
      const int first_y = Sample(top, resizing.rows.scale, h).low;
      const int first_x = Sample(left, resizing.columns.scale, w).low;
      const int last_y = Sample(min(top + kTileHeight, height) - 1, resizing.rows.scale, h).high;
      const int last_x = Sample(min(left + kTileWidth, width) - 1, resizing.columns.scale, w).high;
      const int columns = last_x - first_x + 1, values = (last_y - first_y + 1) * columns * channels;
      const int stride = channels | 1;
      const bool by_pixel = map.stride_c == 1;
      for (int i = thread; i < values; i += kTileThreads) {
        const int c = by_pixel ? i % channels : i / columns % channels;
        const int dx = by_pixel ? i / channels % columns : i % columns, dy = i / (columns * channels);
        const T value = image[c * map.stride_c + (first_y + dy) * map.stride_h + (first_x + dx) * map.stride_w];
        staged[(dy * resizing.staged_width + dx) * stride + c] = to_float(value);
      }
      sync_block();
      const auto place = [&](int yy, int xx) {
        return ((yy - first_y) * resizing.staged_width + xx - first_x) * stride;
      };
      at_[0] = place(row.low, column.low), at_[1] = place(row.low, column.high);
      at_[2] = place(row.high, column.low), at_[3] = place(row.high, column.high);
    } else {
      const auto place = [&](int yy, int xx) { return yy * map.stride_h + xx * map.stride_w; };
      at_[0] = place(row.low, column.low), at_[1] = place(row.low, column.high);
      at_[2] = place(row.high, column.low), at_[3] = place(row.high, column.high);
    }
  }

  HYPERSEG_DEVICE float operator()(int c) const {
    if (resizing_.copy) return value(0, c);
    const float upper = between(value(0, c), value(1, c), column_weight_);
    const float lower = between(value(2, c), value(3, c), column_weight_);
    return between(upper, lower, row_weight_);
  }

 private:
  HYPERSEG_DEVICE float value(int corner, int c) const {
    if constexpr (STAGED)
      return staged_[at_[corner] + c];
    else
      return to_float(image_[at_[corner] + c * map_.stride_c]);
  }

  using Offset = std::conditional_t<STAGED, int, int64_t>;
  const T* image_;
  const Map<const T>& map_;
  const Resizing& resizing_;
  const float* staged_;
  Offset at_[4];  // of the upper left, upper right, lower left and lower right value
  float row_weight_, column_weight_;
};

}  // namespace hyperseg::cuda
