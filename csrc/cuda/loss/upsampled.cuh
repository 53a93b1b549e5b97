#pragma once

#include <optional>
#include <type_traits>

#include "common/map.h"
#include "cuda/device/bilinear.cuh"
#include "cuda/device/fast_divmod.h"
#include "cuda/loss/staged_tile.cuh"

// Maps that are resized when read: a block computes a tile of output pixels, one per thread.
namespace hyperseg::cuda {

constexpr int kTileHeight = 8, kTileWidth = 32, kTileThreads = kTileHeight * kTileWidth;
constexpr int64_t kMaxStaged = 46 << 10;  // bytes of shared memory that a block can have by default, with some to spare

struct ResizeAxis {
  int64_t in, out;
  float scale;

  ResizeAxis() = default;
  ResizeAxis(int64_t in, int64_t out) : in(in), out(out), scale(static_cast<float>(in) / static_cast<float>(out)) {}

  int64_t tiles(int64_t size) const { return (out + size - 1) / size; }
  // Number of values that `tile` adjacent pixels sample.
  int64_t reach(int64_t tile) const {
    const int64_t needed = static_cast<int64_t>(static_cast<float>(tile) * scale) + 3;
    return needed < in ? needed : in;
  }
};

// A block's tile: its image, and its first pixel.
struct Tile {
  int n, top, left;
};

struct Resizing {
  ResizeAxis rows, columns;
  int channels;
  bool copy;                      // same size: nothing is sampled, so no neighbour's infinity is multiplied by 0
  FastDivmod per_image, per_row;  // tiles

  template <typename S>
  Resizing(const Map<S>& map, int64_t height, int64_t width)
      : rows(map.height, height),
        columns(map.width, width),
        channels(static_cast<int>(map.channels)),
        copy(map.height == height && map.width == width),
        per_image(tiles()),
        per_row(columns.tiles(kTileWidth)) {}

  // Of one image.
  int64_t tiles() const { return rows.tiles(kTileHeight) * columns.tiles(kTileWidth); }
  HYPERSEG_DEVICE Tile tile(int block) const {
    const int n = per_image.quotient(block), i = block - n * per_image.value(), row = per_row.quotient(i);
    return {n, row * kTileHeight, (i - row * per_row.value()) * kTileWidth};
  }

  // How to stage the values that a tile samples; nothing if they are too many and are read from global memory.
  template <typename T>
  std::optional<TileStaging> staging(const Map<const T>& map) const {
    const int64_t down = rows.reach(kTileHeight), across = columns.reach(kTileWidth);
    if (down >= kMaxStaged || across * channels >= kMaxStaged) return std::nullopt;
    const TileStaging staging(map, across);
    return staging.bytes(down) <= kMaxStaged ? std::optional(staging) : std::nullopt;
  }
  size_t staged_bytes(const TileStaging& staging) const { return staging.bytes(rows.reach(kTileHeight)); }
};

// The values at this thread's pixel of a tile; `inside` is false if the pixel is outside the map. STAGED: the samples
// of the block are in shared memory; `staging` is not used otherwise.
template <typename T, bool STAGED>
class Resized {
 public:
  int y, x;  // the nearest pixel inside
  bool inside;

  // For all threads of the block. `image`: an image of the map.
  HYPERSEG_DEVICE Resized(const T* image, const Map<const T>& map, const Resizing& resizing, const TileStaging& staging,
                          const Tile& tile, float* staged)
      : image_(image), map_(map), resizing_(resizing) {
    const int height = static_cast<int>(resizing.rows.out), width = static_cast<int>(resizing.columns.out);
    const int h = static_cast<int>(resizing.rows.in), w = static_cast<int>(resizing.columns.in);
    const int top = tile.top, left = tile.left, dy = threadIdx.x / kTileWidth, dx = threadIdx.x % kTileWidth;
    y = min(top + dy, height - 1), x = min(left + dx, width - 1);
    inside = top + dy < height && left + dx < width;
    const Sample row(y, resizing.rows.scale, h), column(x, resizing.columns.scale, w);
    row_weight_ = row.weight, column_weight_ = column.weight;
    if constexpr (STAGED) {
      const int first_y = Sample(top, resizing.rows.scale, h).low;
      const int first_x = Sample(left, resizing.columns.scale, w).low;
      const int last_y = Sample(min(top + kTileHeight, height) - 1, resizing.rows.scale, h).high;
      const int last_x = Sample(min(left + kTileWidth, width) - 1, resizing.columns.scale, w).high;
      staged_ = stage_tile<kTileThreads>(image, map, staging, first_y, first_x, last_y - first_y + 1,
                                         last_x - first_x + 1, staged);
      sync_block();
      const auto place = [&](int yy, int xx) {
        return (yy - first_y) * staging.pitch + (xx - first_x) * staging.pixel;
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
  const float* staged_ = nullptr;
  Offset at_[4];  // of the upper left, upper right, lower left and lower right value
  float row_weight_, column_weight_;
};

}  // namespace hyperseg::cuda
