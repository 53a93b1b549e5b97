#pragma once

#include <algorithm>
#include <cstdint>

#include "common/map.h"
#include "cuda/device/launch.h"
#include "cuda/encoder/mbconv.h"

// Which kernels, tiles and shared memory a block gets, by times that are estimated from bytes and instructions. Host
// code only: kernels and launchers include this header, it includes none of theirs.
namespace hyperseg::cuda {

constexpr const char* kOp = "mbconv";
constexpr int64_t kProcessors = 132;       // about what a GPU has: tiles become smaller where they are few
constexpr int64_t kResident = 4;           // blocks of the depthwise convolution that one of them runs at once
constexpr int64_t kMostShared = 99 << 10;  // bytes that a block may have on every GPU since sm_80
constexpr int64_t kProcessorShared = 228 << 10, kReservedShared = 1 << 10;  // of a multiprocessor, of them a block
constexpr int64_t kMostStaged = 128;  // squeezed channels whose weights a block keeps in them

constexpr int kSlice = 32;                                  // channels of a block; a thread has two of them
constexpr int kTileRows = 8, kTileColumns = 16;             // outputs of a tile
constexpr int kRun = 4, kRunsAcross = kTileColumns / kRun;  // so many of them side by side are a thread's
constexpr int kDepthwiseThreads = 128;

// How the threads of a block share a tile: each has kRows rows of a run.
template <int THREADS>
struct Runs {
  static constexpr int kDown = THREADS / (kRunsAcross * kSlice / 2), kRows = kTileRows / kDown;
  static constexpr int kCount = kRunsAcross * kDown;
};

// The input of a tile in shared memory, for a convolution of known size and stride. After the columns that a thread
// begins with, one is left out: the halves of a warp, which have neighbouring runs, are in different banks.
template <int SIZE, int STRIDE>
struct Window {
  static constexpr int kRows = (kTileRows - 1) * STRIDE + SIZE, kColumns = (kTileColumns - 1) * STRIDE + SIZE;
  HYPERSEG_ANYWHERE static constexpr int slot(int column) { return column + column / (kRun * STRIDE); }
  static constexpr int kPitch = slot(kColumns - 1) + 1;
  static constexpr int kValues = kRows * kPitch * kSlice;
};
template <>
struct Window<0, 0> {
  static constexpr int kValues = 0;
};

// Shared memory of a block of the depthwise convolution, for values of `value_bytes`.
template <int THREADS>
int64_t depthwise_shared_bytes(int64_t value_bytes, int64_t size, int64_t window, int64_t staged) {
  return 4 * (size * size + 1 + Runs<THREADS>::kCount) * kSlice + (window + staged * kSlice) * value_bytes;
}

constexpr int kExpandingThreads = 256, kExpandingWarps = kExpandingThreads / 32;
constexpr int kStripe = 32;                         // pixels that a warp expands at once
constexpr int kStripeStep = 16, kStripeDepth = 32;  // of the depth: of a product, and of what it copies at once
constexpr int kFewestStages = 2, kMostStages = 4;   // of a warp's ring

// Rows in shared memory are an odd number of 16 bytes: eight of them, or two times four, are in different banks.
constexpr int kPixelBytes = kStripeDepth * 2 + 16, kStripeBytes = kStripe * kPixelBytes;

HYPERSEG_ANYWHERE int padded_depth(int depth) { return (depth + kStripeStep - 1) / kStripeStep * kStripeStep; }
HYPERSEG_ANYWHERE int expansion_weight_bytes(int value_bytes, int depth) {
  return padded_depth(depth) * value_bytes + 16;
}
inline int64_t expansion_shared_bytes(int value_bytes, int depth, int64_t stages) {
  return kSlice * (int64_t{4} + expansion_weight_bytes(value_bytes, depth)) + kExpandingWarps * stages * kStripeBytes;
}

// Tiles of the depthwise convolution, and how many a block of it does one after the other.
struct MbconvTiling {
  int64_t down, tiles, slices, steps, groups;

  // Sums of each image that are added up to the squeezed channels, one a block.
  int64_t sums() const { return groups * slices; }
};

// How a block is computed: with the expansion in a launch of its own or within the depthwise convolution, and what that
// one then has of shared memory.
struct MbconvPlan {
  MbconvTiling tiling;
  bool within = false;
  int64_t stages = 0, staged = 0, shared = 0;
};
// Neither `expanded`, which a plan `within` does not need, nor `partials` need be there yet.
MbconvPlan mbconv_plan(const Mbconv& block);

// What a multiprocessor has to do, in the time that it takes to read a value of an operand: as estimated from bytes and
// instructions on sm_90, a value of the result costs five and a block as many as kBlock beside its own.
template <typename TILE>
int64_t cost(int64_t images, int64_t pixels, int64_t columns, int64_t depth) {
  constexpr int64_t kResult = 5, kBlock = 13000;
  const int64_t blocks = images * blocks_of(pixels, TILE::kRows) * blocks_of(columns, TILE::kColumns);
  const int64_t one = (TILE::kRows + TILE::kColumns) * depth + kResult * TILE::kRows * TILE::kColumns + kBlock;
  return blocks_of(blocks, kProcessors) * one;
}

// Whether all blocks of the projection together compute the gates sooner than a launch takes: rounds of blocks, three a
// multiprocessor, of which each thread reads partial sums, sixteen at a time, and multiplies.
bool computes_gates(int64_t squeezed, int64_t parts, int64_t channels, int64_t threads, int64_t blocks);

inline bool in_vectors(const void* data, int64_t stride) {
  return stride % 8 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// Whether a map has eight contiguous channels at a time, 16-byte aligned, for 16-bit values.
template <typename S>
bool in_vectors(const Map<S>& map) {
  return map.stride_c == 1 && map.channels % 8 == 0 && map.stride_n % 8 == 0 && map.stride_h % 8 == 0 &&
         map.stride_w % 8 == 0 && reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
}

// body<SIZE, STRIDE>(), of the depthwise convolution: 0 for those without a kernel of their own.
template <typename Body>
void with_window(const Mbconv& block, const Body& body) {
  const auto is = [&](int size, int stride) { return block.size == size && block.stride == stride; };
  if (is(3, 1))
    body.template operator()<3, 1>();
  else if (is(3, 2))
    body.template operator()<3, 2>();
  else if (is(5, 1))
    body.template operator()<5, 1>();
  else if (is(5, 2))
    body.template operator()<5, 2>();
  else
    body.template operator()<0, 0>();
}

// Rows of `reduce` that are kept in shared memory, of which a block takes bytes(rows).
template <typename Bytes>
int64_t staged_rows(const Mbconv& block, const Bytes& bytes) {
  const bool fits = block.squeezed <= kMostStaged && bytes(block.squeezed) <= kMostShared;
  return fits && in_vectors(block.reduce, block.hidden) ? block.squeezed : 0;
}

}  // namespace hyperseg::cuda
