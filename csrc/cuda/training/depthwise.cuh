#pragma once

#include "cuda/device/vectors.cuh"
#include "cuda/training/channel_sums.cuh"
#include "cuda/training/depthwise.h"
#include "cuda/training/patches.cuh"

// Shared parts of the kernels of the depthwise filter: a block has some rows of a patch and some channels; a thread has
// two channels and slides down its columns.
namespace hyperseg::cuda {

constexpr int kDepthwiseThreads = 256, kPixelsOfBlock = 384;

struct DepthwiseBlocks {
  int groups, pairs;  // channels per block; pairs of channels
  int slots;          // columns that a block processes at once
  int strips, rows;   // strips per patch; rows per strip
  int64_t patches;

  DepthwiseBlocks(const PatchDepthwise& filter, const PatchPixels& pixels, bool whole_patch)
      : patches(filter.grid.patches()) {
    const int all = filter.stored / 2;
    groups = (all + 63) / 64;
    pairs = (all + groups - 1) / groups;
    slots = kDepthwiseThreads / pairs;
    slots = slots < pixels.width ? slots : pixels.width;
    strips = whole_patch ? 1 : pixels.count() / kPixelsOfBlock;
    strips = strips < 1 ? 1 : strips < pixels.height ? strips : pixels.height;
    rows = (pixels.height + strips - 1) / strips;
    strips = (pixels.height + rows - 1) / rows;
  }
  int64_t blocks() const { return patches * strips * groups; }
  unsigned threads() const { return (slots * pairs + 31) / 32 * 32; }
  HYPERSEG_HOST_DEVICE int channels() const { return 2 * pairs; }
};

// The part of a patch that a thread processes.
struct DepthwisePart {
  int strip, first_row, last_row;
  int first_channel, count;  // of the block: stored channels
  int pair, slot, channel;   // of the thread
  bool working;

  HYPERSEG_DEVICE DepthwisePart(const PatchDepthwise& filter, const DepthwiseBlocks& blocks, int height) {
    const int group = static_cast<int>(blockIdx.x % blocks.groups), thread = threadIdx.x;
    strip = static_cast<int>(blockIdx.x / blocks.groups % blocks.strips);
    first_row = strip * blocks.rows, last_row = min(first_row + blocks.rows, height);
    first_channel = group * blocks.channels(), count = min(blocks.channels(), filter.stored - first_channel);
    slot = thread / blocks.pairs, pair = thread - slot * blocks.pairs;
    channel = first_channel + 2 * pair;
    working = slot < blocks.slots && 2 * pair < count;
  }
  HYPERSEG_DEVICE static unsigned patch(const DepthwiseBlocks& blocks) {
    return blockIdx.x / blocks.groups / blocks.strips;
  }
};

HYPERSEG_DEVICE float2 multiply_add(float2 a, float2 b, float2 c) { return {fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y)}; }

// The taps of the block as float in shared memory: [tap][channel].
template <typename T>
HYPERSEG_DEVICE void stage_taps(const PatchDepthwise& filter, const DepthwisePart& part, const Patch& patch,
                                int channels, float* shared) {
  const T* taps = matrix_of<T>(filter.taps, patch) + part.first_channel * 9;
  const int needed = min(channels, filter.hidden - part.first_channel);
  for (int i = threadIdx.x; i < channels * 9; i += blockDim.x) {
    const int channel = i / 9, tap = i - channel * 9;
    shared[tap * channels + channel] = channel < needed ? to_float(taps[i]) : 0.0f;
  }
}

HYPERSEG_DEVICE float2 tap_of(const float* shared, int tap, int channels, int pair) {
  return load2(shared + tap * channels + 2 * pair);
}

// Hidden values around a pixel of a patch, after norm and ReLU6.
template <typename T, bool OWN>
class HiddenMap {
 public:
  HYPERSEG_DEVICE HiddenMap(const PatchDepthwise& filter, const DepthwisePart& part, const Patch& patch,
                            const void* data)
      : filter_(filter),
        patch_(patch),
        image_(static_cast<const T*>(data) + part.channel),
        scale_(of_channels(filter.norm.scale, part.channel, filter.hidden)),
        shift_(of_channels(filter.norm.shift, part.channel, filter.hidden)) {}

  // Value at pixel (y, x) of the patch; both may be one outside.
  HYPERSEG_DEVICE float2 operator()(int y, int x) const {
    const float2 v = multiply_add(load2(image_ + place(y, x) * filter_.stored), scale_, shift_);
    return {relu6(v.x), relu6(v.y)};
  }

 private:
  HYPERSEG_DEVICE int64_t place(int y, int x) const {
    const PatchGrid& grid = filter_.grid;
    if constexpr (OWN)
      return patch_.index * (grid.patch_h + 2) * (grid.patch_w + 2) + (y + 1) * (grid.patch_w + 2) + x + 1;
    const int64_t pixels = grid.patch_h * grid.patch_w;
    if (y >= 0 && y < grid.patch_h && x >= 0 && x < grid.patch_w) return patch_.index * pixels + y * grid.patch_w + x;
    y = reflect(patch_.row * grid.patch_h + y, grid.rows * grid.patch_h);
    x = reflect(patch_.column * grid.patch_w + x, grid.columns * grid.patch_w);
    const int row = grid.by_patch_h.quotient(y), column = grid.by_patch_w.quotient(x);
    return (static_cast<int64_t>(patch_.n * grid.rows + row) * grid.columns + column) * pixels +
           (y - row * grid.patch_h) * grid.patch_w + x - column * grid.patch_w;
  }

  const PatchDepthwise& filter_;
  const Patch& patch_;
  const T* image_;
  float2 scale_, shift_;
};

// Call body(y, values around (y, x)) for rows first to last - 1; load(y, x) is called once per value.
template <typename Load, typename Body>
HYPERSEG_DEVICE void slide(int first, int last, int x, const Load& load, const Body& body) {
  float2 around[3][3];
#pragma unroll
  for (int j = 0; j < 3; ++j) around[1][j] = load(first - 1, x - 1 + j), around[2][j] = load(first, x - 1 + j);
  for (int y = first; y < last; ++y) {
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      around[0][j] = around[1][j], around[1][j] = around[2][j];
      around[2][j] = load(y + 1, x - 1 + j);
    }
    body(y, around);
  }
}

// Write a row of partial sums from each thread's results for its two channels.
template <typename Sums>
HYPERSEG_DEVICE void store_row(const PatchDepthwise& filter, const DepthwiseBlocks& blocks, const DepthwisePart& part,
                               const Patch& patch, const Sums& a, const Sums& b, Sums* shared, float* partial) {
  sync_block();
  const int channels = blocks.channels();
  if (part.slot < blocks.slots) {
    shared[part.slot * channels + 2 * part.pair] = a;
    shared[part.slot * channels + 2 * part.pair + 1] = b;
  }
  float* row = partial + (patch.index * blocks.strips + part.strip) * 2 * filter.stored;
  const int needed = min(channels, filter.hidden - part.first_channel);
  sync_block();
  for (int c = threadIdx.x; c < needed; c += blockDim.x)
    Sums::merge(shared + c, blocks.slots, channels, row[part.first_channel + c],
                row[filter.stored + part.first_channel + c]);
}

}  // namespace hyperseg::cuda
