#pragma once

#include <algorithm>
#include <cstdint>

#include "common/map.h"
#include "cuda/device/launch.h"
#include "cuda/encoder/mbconv.h"

// The plan of a block: kernels, tiles and shared memory, chosen by times estimated from bytes and instructions. Host
// code only: kernels and launchers include this header, which includes none of theirs.
namespace hyperseg::cuda {

constexpr const char* kOp = "mbconv";
constexpr int64_t kSms = 132;             // SMs of a typical GPU: tiles become smaller if there are few
constexpr int64_t kResidentBlocks = 4;    // resident blocks per SM of the depthwise convolution
constexpr int64_t kMaxShared = 99 << 10;  // bytes of shared memory per block that every GPU since sm_80 has
constexpr int64_t kSharedPerSm = 228 << 10,
                  kSharedReservedPerBlock = 1 << 10;  // shared memory per SM, of which reserved per block
constexpr int64_t kMaxStaged = 128;                   // squeezed channels whose weights a block keeps in shared memory

constexpr int kSlice = 32;                                  // channels per block; a thread has two of them
constexpr int kTileRows = 8, kTileColumns = 16;             // outputs of a tile
constexpr int kRun = 4, kRunsAcross = kTileColumns / kRun;  // adjacent outputs per thread
constexpr int kDepthwiseThreads = 128;

// Division of a tile among the threads of a block: each has kRows rows of a run.
template <int THREADS>
struct Runs {
  static constexpr int kDown = THREADS / (kRunsAcross * kSlice / 2), kRows = kTileRows / kDown;
  static constexpr int kCount = kRunsAcross * kDown;
};

// The input of a tile in shared memory, for a convolution of known size and stride. One slot is left empty after the
// first columns of each thread, so that half-warps, which have adjacent runs, are in different banks.
template <int SIZE, int STRIDE>
struct DepthwiseWindow {
  static constexpr int kRows = (kTileRows - 1) * STRIDE + SIZE, kColumns = (kTileColumns - 1) * STRIDE + SIZE;
  HYPERSEG_HOST_DEVICE static constexpr int slot(int column) { return column + column / (kRun * STRIDE); }
  static constexpr int kPitch = slot(kColumns - 1) + 1;
  static constexpr int kValues = kRows * kPitch * kSlice;
};
template <>
struct DepthwiseWindow<0, 0> {
  static constexpr int kValues = 0;
};

// Return the shared memory of a block of the depthwise convolution, for values of `value_bytes`.
template <int THREADS>
int64_t depthwise_shared_bytes(int64_t value_bytes, int64_t size, int64_t window, int64_t staged) {
  return 4 * (size * size + 1 + Runs<THREADS>::kCount) * kSlice + (window + staged * kSlice) * value_bytes;
}

constexpr int kExpandingThreads = 256, kExpandingWarps = kExpandingThreads / 32;
constexpr int kStripe = 32;                         // pixels that a warp expands at once
constexpr int kStripeStep = 16, kStripeDepth = 32;  // depth of an MMA, and of a copy
constexpr int kFewestStages = 2, kMaxStages = 4;    // of a warp's ring

// Rows in shared memory are an odd number of 16 bytes: eight of them, or two groups of four, are in different
// banks.
constexpr int kPixelBytes = kStripeDepth * 2 + 16, kStripeBytes = kStripe * kPixelBytes;

HYPERSEG_HOST_DEVICE int padded_depth(int depth) { return (depth + kStripeStep - 1) / kStripeStep * kStripeStep; }
HYPERSEG_HOST_DEVICE int expansion_weight_bytes(int value_bytes, int depth) {
  return padded_depth(depth) * value_bytes + 16;
}
inline int64_t expansion_shared_bytes(int value_bytes, int depth, int64_t stages) {
  return kSlice * (int64_t{4} + expansion_weight_bytes(value_bytes, depth)) + kExpandingWarps * stages * kStripeBytes;
}

// Tiles of the depthwise convolution, and how many of them a block computes in sequence.
struct MbconvTiling {
  int64_t down, tiles, slices, steps, groups;

  // Number of partial sums per image of the squeezed channels, one per block.
  int64_t sums() const { return groups * slices; }
};

// How a block is computed: expanded by a separate launch or within the depthwise convolution, and the shared memory of
// the latter.
struct MbconvPlan {
  MbconvTiling tiling;
  bool within = false;
  int64_t stages = 0, staged = 0, shared = 0;
};
// What estimates depend on: cycles between the end of a step and the start of the next, the least that a step takes
// with them; threads of a depthwise convolution, and the shared memory that they may have.
struct MbconvCosts {
  double between, least;
  int threads;
  int64_t shared;
};
constexpr MbconvCosts kLaunched{2600, 4400, kDepthwiseThreads, kMaxShared};

// `expanded`, which a plan `within` does not need, and `partials` need not be allocated yet.
MbconvPlan mbconv_plan(const Mbconv& block, const MbconvCosts& costs = kLaunched);

// The value of HYPERSEG_MBCONV, which overrides the estimates so that both can be measured: as few launches as the
// kernels allow, or one per step.
enum class MbconvLaunches { kEstimated, kFewest, kMost };
MbconvLaunches requested_launches();

// Estimated work per SM, in units of the time to read one operand value. From bytes and instructions on sm_90, a value
// of the output costs five, and a block kBlock besides its values.
template <typename TILE>
int64_t cost(int64_t images, int64_t pixels, int64_t columns, int64_t depth) {
  constexpr int64_t kResult = 5, kBlock = 13000;
  const int64_t blocks = images * blocks_of(pixels, TILE::kRows) * blocks_of(columns, TILE::kColumns);
  const int64_t one = (TILE::kRows + TILE::kColumns) * depth + kResult * TILE::kRows * TILE::kColumns + kBlock;
  return blocks_of(blocks, kSms) * one;
}

// Estimate whether computing the gates in all blocks of the projection is faster than a launch: rounds of blocks, three
// per SM, in which each thread reads partial sums, sixteen at a time, and multiplies.
bool computes_gates(int64_t squeezed, int64_t parts, int64_t channels, int64_t threads, int64_t blocks,
                    const MbconvCosts& costs = kLaunched);

inline bool in_vectors(const void* data, int64_t stride) {
  return stride % 8 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// Whether eight channels at a time are contiguous and 16-byte aligned, for 16-bit values.
template <typename S>
bool in_vectors(const Map<S>& map) {
  return map.stride_c == 1 && map.channels % 8 == 0 && map.stride_n % 8 == 0 && map.stride_h % 8 == 0 &&
         map.stride_w % 8 == 0 && reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
}

// Call body<SIZE, STRIDE>() of the depthwise convolution; 0 for sizes without a kernel of their own.
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

// Return the rows of `reduce` that a block keeps in shared memory; bytes(rows) is what they take.
template <typename Bytes>
int64_t staged_rows(const Mbconv& block, const Bytes& bytes, int64_t most = kMaxShared) {
  const bool fits = block.squeezed <= kMaxStaged && bytes(block.squeezed) <= most;
  return fits && in_vectors(block.reduce, block.hidden) ? block.squeezed : 0;
}

}  // namespace hyperseg::cuda
