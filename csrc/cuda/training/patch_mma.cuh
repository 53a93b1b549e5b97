#pragma once

#include "cuda/device/vectors.cuh"
#include "cuda/training/patches.cuh"
#include "cuda/training/row_layout.cuh"

// Shared parts of the kernels that compute both gradients of a patch's matrix. A block has a patch, 128 pixels at a
// time, of which a warp has 16 in the GEMM that keeps pixels; in the one that sums them it has some tiles of the
// result.
namespace hyperseg::cuda {

constexpr int kPatchThreads = 128, kTilePixels = 64;
constexpr int kMaxDepth = 80;  // of the GEMM that keeps pixels

// Pixels by channel, [channel][pixel], or by pixel, [pixel][channel]; rows are an odd number of 16 bytes long, so that
// eight of them are in different banks.
HYPERSEG_HOST_DEVICE constexpr int odd_stride(int values) {
  return (values + 7) / 8 % 2 ? (values + 7) / 8 * 8 : (values + 7) / 8 * 8 + 8;
}
HYPERSEG_HOST_DEVICE constexpr int to_16(int n) { return (n + 15) / 16 * 16; }

// Load the 16 x 16 block of an operand from row `row` and depth `depth` on: left operands as mma16 takes them, right
// ones as two pairs of registers. By depth: memory is [depth][row], else [row][depth].
template <bool LEFT, bool BY_DEPTH, typename T>
HYPERSEG_DEVICE void load_block(uint32_t (&r)[4], const T* from, int stride, int row, int depth) {
  const int lane = threadIdx.x % 32, near = lane % 8, odd = lane / 8 % 2 * 8, late = lane / 16 * 8;
  // Left: the upper and the lower eight rows, then eight deeper; right: eight rows, eight deeper, then the next rows.
  const int r0 = row + (LEFT ? odd : late), d0 = depth + (LEFT ? late : odd);
  if constexpr (BY_DEPTH)
    ldmatrix4_transposed(r, from + (d0 + near) * stride + r0);
  else
    ldmatrix4(r, from + (r0 + near) * stride + d0);
}

// The tiles of 16 x 16 sums of a warp, at most UNITS.
template <typename T, int UNITS>
class UnitSums {
 public:
  // `across`: tiles in a row of the matrix.
  HYPERSEG_DEVICE UnitSums(int rows, const FastDivmod& across)
      : across_(across), count_(to_16(rows) / 16 * across.value()) {}

  // Add the products of `depth` pixels, a multiple of 16; operands by depth or by row, see load_block.
  template <bool LEFT_BY_DEPTH, bool RIGHT_BY_DEPTH>
  HYPERSEG_DEVICE void add(const T* left, int left_stride, const T* right, int right_stride, int depth) {
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
      const int unit = warp_index() + u * kPatchThreads / 32;
      if (unit >= count_) break;
      const int down = across_.quotient(unit), row = 16 * down, column = 16 * (unit - down * across_.value());
#pragma unroll 2
      for (int k = 0; k < depth; k += 16) {
        uint32_t a[4], b[4];
        load_block<true, LEFT_BY_DEPTH>(a, left, left_stride, row, k);
        load_block<false, RIGHT_BY_DEPTH>(b, right, right_stride, column, k);
        mma16<T>(sums_[u][0], a, b[0], b[1]);
        mma16<T>(sums_[u][1], a, b[2], b[3]);
      }
    }
  }
  // Write the matrix [rows][columns].
  HYPERSEG_DEVICE void store(T* to, int rows, int columns) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
      const int unit = warp_index() + u * kPatchThreads / 32;
      if (unit >= count_) break;
      const int down = across_.quotient(unit), row = 16 * down + lane / 4;
      const int column = 16 * (unit - down * across_.value()) + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int r = row + i / 2 % 2 * 8, c = column + i / 4 * 8 + i % 2;
        if (r < rows && c < columns) to[r * columns + c] = from_float<T>(sums_[u][i / 4][i % 4]);
      }
    }
  }

 private:
  const FastDivmod& across_;
  int count_;
  float sums_[UNITS][2][4] = {};
};

// Whether a matrix fits UnitSums.
inline bool has_units(int rows, int columns, int units) {
  return to_16(rows) / 16 * (to_16(columns) / 16) <= units * kPatchThreads / 32;
}

// Stage a matrix [rows][columns], contiguous, in `all_rows` rows of `stride` values, with zeros after it.
template <typename T>
HYPERSEG_DEVICE void stage_matrix(T* shared, const T* matrix, int rows, int columns, int all_rows, int stride,
                                  const FastDivmod& by_column) {
  for (int i = threadIdx.x; i < all_rows * stride / 8; i += kPatchThreads)
    reinterpret_cast<uint4*>(shared)[i] = uint4{};
  sync_block();
#pragma unroll 8
  for (int i = threadIdx.x; i < rows * columns; i += kPatchThreads) {
    const int row = by_column.quotient(i);
    shared[i + row * (stride - columns)] = matrix[i];
  }
}

// The offsets of the pixels of a tile in a map, in shared memory: threads that go along channels read them. For all
// threads, before a barrier.
template <typename S>
HYPERSEG_DEVICE void find_pixels(int64_t* offsets, const PatchedMap<S>& map, const Patch& patch,
                                 const PatchPixels& pixels, int first) {
  const int p = min(first + static_cast<int>(threadIdx.x), pixels.count() - 1), y = pixels.across.quotient(p);
  if (threadIdx.x < kTilePixels) offsets[threadIdx.x] = offset_of(map, patch, y, p - y * pixels.width);
}

// Stage the channels of a tile's pixels, by pixel or by channel; pixels after the last one repeat it. PAIRS: two
// channels are one aligned load. `offsets`: workspace for find_pixels, used by pixel.
template <bool BY_PIXEL, typename T>
HYPERSEG_DEVICE void stage_channels(T* tile, int stride, const PatchedMap<const void>& map, const Patch& patch,
                                    const PatchPixels& pixels, int first, int count, int channels, bool pairs,
                                    int64_t* offsets) {
  const T* data = map.as<const T>();
  const int thread = threadIdx.x;
  if constexpr (BY_PIXEL) {
    find_pixels(offsets, map, patch, pixels, first);
    sync_block();
    const int lane = thread % 32;
    if (pairs) {
      for (int p = warp_index(); p < count; p += kPatchThreads / 32) {
        const uint32_t* from = reinterpret_cast<const uint32_t*>(data + offsets[p]);
        uint32_t* to = reinterpret_cast<uint32_t*>(tile + p * stride);
        for (int c = lane; c < channels / 2; c += 32) to[c] = from[c];
      }
    } else {
      for (int p = warp_index(); p < count; p += kPatchThreads / 32) {
        const T* from = data + offsets[p];
        for (int c = lane; c < channels; c += 32) tile[p * stride + c] = from[c * map.stride_c];
      }
    }
  } else {
    constexpr int kStep = kPatchThreads / kTilePixels;
    const int pixel = thread % kTilePixels, p = min(first + pixel, pixels.count() - 1);
    const int y = pixels.across.quotient(p);
    int c = thread / kTilePixels;
    const T* from = data + offset_of(map, patch, y, p - y * pixels.width) + c * map.stride_c;
    T* to = tile + c * stride + pixel;
#pragma unroll 8  // as many loads in flight
    for (; c < channels; c += kStep, from += kStep * map.stride_c, to += kStep * stride) *to = *from;
  }
}

// Stage eight channels, after norm and ReLU6, of pixels `own`, own + step and so on below `count` of a tile; pixels
// after the last one repeat it. Threads that have none begin at `step`.
template <typename T>
HYPERSEG_DEVICE void stage_normalised(T* tile, int stride, const T* values, int stored, int first, int count,
                                      int pixels, int own, int step, const float (&scale)[8], const float (&shift)[8]) {
  if (own >= step) return;
#pragma unroll 4
  for (int p = own; p < count; p += step) {
    const T* from = values + min(first + p, pixels - 1) * stored;
    store16_shared(tile + p * stride, normalised<T>(*reinterpret_cast<const uint4*>(from), scale, shift));
  }
}

// Whether two channels of every pixel are one aligned load.
template <typename S>
bool in_pairs(const PatchedMap<S>& map, int channels) {
  const int64_t all = map.stride_n | map.stride_row | map.stride_column | map.stride_y | map.stride_x;
  return map.stride_c == 1 && all % 2 == 0 && channels % 2 == 0 && reinterpret_cast<uintptr_t>(map.data) % 4 == 0;
}

// Zeros in the channels from `channels` to `all` of a tile.
template <bool BY_PIXEL, typename T>
HYPERSEG_DEVICE void pad_channels(T* tile, int stride, int channels, int all) {
  const int pixel = threadIdx.x % kTilePixels;
  for (int c = channels + static_cast<int>(threadIdx.x) / kTilePixels; c < all; c += kPatchThreads / kTilePixels)
    tile[BY_PIXEL ? pixel * stride + c : c * stride + pixel] = from_float<T>(0.0f);
}

}  // namespace hyperseg::cuda
