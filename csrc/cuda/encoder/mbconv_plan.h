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
constexpr int64_t kMaxShared = 99 << 10;  // bytes of shared memory per block that every GPU since sm_80 has
constexpr int64_t kMaxStaged = 128;       // squeezed channels whose weights a block keeps in shared memory

constexpr int kSlice = 32;                       // channels of a block of the depthwise convolution
constexpr int kTileRows = 8, kTileColumns = 16;  // outputs of a tile
constexpr int kTallRows = 16;                    // rows of a tile on tensor cores at stride 1, if there are many tiles

// The depthwise convolution on SIMT cores: a thread has two channels, and kRows rows of a run of adjacent outputs.
constexpr int kDepthwiseThreads = 128;
constexpr int kRun = 4, kRunsAcross = kTileColumns / kRun;
struct Runs {
  static constexpr int kDown = kDepthwiseThreads / (kRunsAcross * kSlice / 2), kRows = kTileRows / kDown;
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

// The shared memory of a block, for values of `value_bytes`.
inline int64_t depthwise_shared_bytes(int64_t value_bytes, int64_t size, int64_t window, int64_t staged) {
  return 4 * (size * size + 1 + Runs::kCount) * kSlice + (window + staged * kSlice) * value_bytes;
}

// The depthwise convolution on tensor cores.
constexpr int kMmaThreads = 256, kMmaWarps = kMmaThreads / 32;

// The input of a tile of ROWS rows of outputs in shared memory, a plane per channel. A warp fills it sixteen pixels at
// a time; the columns after the last sixteen of each row come last. Columns from kColumns on are zero.
template <int SIZE, int STRIDE, int ROWS>
struct PlanarWindow {
  static constexpr int kRows = (ROWS - 1) * STRIDE + SIZE, kMain = kTileColumns * STRIDE;
  static constexpr int kExtra = (SIZE - STRIDE + 1) / 2 * 2, kColumns = kMain + kExtra;
  static constexpr int kUnitsAcross = kMain / 16, kEdgeUnits = (kRows * kExtra + 15) / 16;
  static constexpr int kTapWords = kSlice * SIZE * (SIZE + 2);
  // A multiple of 16 bytes. Lines are an odd number of them, and with a stride of 2 even rows lie before odd ones, so
  // that eight rows are in different banks; planes are 4 words, or 12, 20, 28, after a multiple of all banks.
  static constexpr int kPitch = kMain + 8;
  static constexpr int kPlane = kRows * kPitch + (kRows * kPitch / 2 % 8 == 4 ? 0 : 8);
  static_assert(kPlane / 2 % 8 == 4);
  // Of a channel's outputs in shared memory: eight are in different banks.
  static constexpr int kStagingPitch = ROWS * kTileColumns + 8;

  HYPERSEG_HOST_DEVICE static constexpr int line(int row) {
    return STRIDE == 1 ? row : row / 2 + row % 2 * ((kRows + 1) / 2);
  }
  // The shared memory of a block; `depth` is 0 without an expansion.
  static int64_t shared_bytes(int64_t staged, int64_t depth) {
    return 4 * (kTapWords + 4 * kSlice) + 2 * kSlice * (kPlane + kStagingPitch + staged) + 1024 * blocks_of(depth, 16);
  }
};

// Tiles of the depthwise convolution, of `rows` rows, and how many of them a block computes in sequence.
struct MbconvTiling {
  int64_t rows, down, tiles, slices, steps, groups;

  // Number of partial sums per image of the squeezed channels, one per block.
  int64_t sums() const { return groups * slices; }
};

// How a block is computed: whether the depthwise convolution uses tensor cores, and expands its windows itself; its
// rows of `reduce` in shared memory, and all of that.
struct MbconvPlan {
  MbconvTiling tiling;
  bool mma = false, within = false;
  int64_t staged = 0, shared = 0;
};

// A block of the depthwise convolution may have `shared` bytes. `chained`: for a chain, whose tiles have kTileRows
// rows. `expanded`, which a plan `within` does not need, and `partials` need not be allocated yet.
MbconvPlan mbconv_plan(const Mbconv& block, int64_t shared = kMaxShared, bool chained = false);

// Cycles between the end of a launch and the start of the next one.
constexpr double kBetweenLaunches = 2600;

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
                    double between = kBetweenLaunches);

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

}  // namespace hyperseg::cuda
