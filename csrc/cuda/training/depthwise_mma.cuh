#pragma once

#include "cuda/device/vectors.cuh"
#include "cuda/training/channel_sums.cuh"
#include "cuda/training/depthwise_mma.h"
#include "cuda/training/patches.cuh"
#include "cuda/training/row_layout.cuh"

// Shared parts of the kernels that filter on tensor cores. A tap is an MMA with a diagonal matrix: its left operand is
// 16 pixels x 8 channels, shifted by another row address.
namespace hyperseg::cuda {

constexpr int kTilePixels = 32;          // two MMAs, for whose left operands one ldmatrix suffices
constexpr int kFilterThreads = 32 * 10;  // maximum

// The part of a block and of a thread.
struct TilePart {
  int chunk, first, groups;  // of the block: first channel; groups
  int warp, lane, group, part;
  bool working;

  HYPERSEG_DEVICE TilePart(const PatchDepthwise& filter, const DepthwiseTiles& tiles)
      : chunk(static_cast<int>(blockIdx.x) - patch(tiles) * tiles.chunks),
        first(chunk * tiles.groups * 8),
        groups(min(tiles.groups, (filter.stored - first) / 8)),
        warp(warp_index()),
        lane(threadIdx.x % 32),
        group(warp - tiles.by_groups.quotient(warp) * tiles.groups),
        part(tiles.by_groups.quotient(warp)),
        working(group < groups) {}

  HYPERSEG_DEVICE static int patch(const DepthwiseTiles& tiles) {
    return tiles.by_chunks.quotient(static_cast<int>(blockIdx.x));
  }
};

// Call body(pixel, index of the first of eight channels in the block) for `count` pixels and the block's channels:
// every thread has the same channels in all calls. begin(first of eight channels) is called once before.
template <typename Begin, typename Body>
HYPERSEG_DEVICE void each_vector(const DepthwiseTiles& tiles, const TilePart& part, int count, const Begin& begin,
                                 const Body& body) {
  const int thread = threadIdx.x, first = tiles.by_groups.quotient(thread), group = thread - first * tiles.groups;
  if (group >= part.groups) return;
  begin(part.first + 8 * group);
#pragma unroll 2
  for (int pixel = first; pixel < count; pixel += 32 * tiles.parts) body(pixel, 8 * group);
}

// A lane's parts of the nine diagonal matrices of a group's taps.
template <typename T>
HYPERSEG_DEVICE void load_diagonals(const PatchDepthwise& filter, const Patch& patch, int channel, int lane,
                                    uint32_t (&weights)[9]) {
  const T* taps = matrix_of<T>(filter.taps, patch) + (channel + lane / 4) * 9;
#pragma unroll
  for (int t = 0; t < 9; ++t) weights[t] = channel + lane / 4 < filter.hidden ? diagonal(taps + t, lane) : 0;
}

// Filter 32 pixels: lane i has the address of pixel i under the first tap; the others follow a row of `row` values and
// pixels of `stride` values later. FLIPPED: the taps in reverse.
template <typename T, bool FLIPPED>
HYPERSEG_DEVICE void filter_tile(const T* at, int row, int stride, const uint32_t (&weights)[9], float (&sums)[2][4]) {
#pragma unroll
  for (int y = 0; y < 3; ++y, at += row) {
    const T* pixel = at;
#pragma unroll
    for (int x = 0; x < 3; ++x, pixel += stride) {
      const uint32_t weight = weights[FLIPPED ? 8 - 3 * y - x : 3 * y + x];
      uint32_t values[4];
      ldmatrix4(values, pixel);
      mma8<T>(sums[0], values[0], values[1], weight);
      mma8<T>(sums[1], values[2], values[3], weight);
    }
  }
}

// Write a row of sums: the first four lanes of a warp have the results of their two channels. For all threads of the
// block; `shared` holds channels x parts elements and may be in the memory of the pixels.
template <typename Sums>
HYPERSEG_DEVICE void store_row(const PatchDepthwise& filter, const DepthwiseTiles& tiles, const TilePart& part,
                               const Patch& patch, const Sums& a, const Sums& b, Sums* shared, float* partial) {
  sync_block();
  const int channels = 8 * tiles.groups;
  if (part.working && part.lane < 4) {
    Sums* own = shared + part.part * channels + 8 * part.group + 2 * part.lane;
    own[0] = a, own[1] = b;
  }
  store_row(shared, tiles.parts, channels, min(8 * part.groups, filter.hidden - part.first),
            partial + patch.index * 2 * filter.stored, part.first, filter.stored);
}

}  // namespace hyperseg::cuda
