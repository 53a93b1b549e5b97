#pragma once

#include <cstddef>

#include "common/map.h"
#include "cuda/device/device.cuh"
#include "cuda/device/vectors.cuh"

// GEMM: c[r, o] = sum over k of a[r, k] b[o, k]. A block computes a tile of c; chunks of both operands pass through a
// ring of stages in shared memory. 16-bit operands use tensor cores, float32 operands do not; all sums are float32.
namespace hyperseg::cuda {

constexpr int kChunkBytes = 128, kStepBytes = 32;  // bytes of depth: per stage, and per step of a warp
constexpr int kRowBytes = kChunkBytes + 16;        // an odd number of 16 bytes: eight rows are in different banks

template <typename T>
constexpr int kChunk = kChunkBytes / sizeof(T);

// A warp computes WARP_ROWS rows x 32 columns of a tile; several warps split the depth where there are few tiles. A
// chunk has four steps, so with more than four of these warps a stage has several chunks.
template <int ROW_WARPS, int COLUMN_WARPS, int DEPTH_WARPS, int WARP_ROWS = 32>
struct GemmTile {
  static constexpr int kWarpRows = WARP_ROWS, kColumnWarps = COLUMN_WARPS, kDepthWarps = DEPTH_WARPS;
  static constexpr int kRows = WARP_ROWS * ROW_WARPS, kColumns = 32 * COLUMN_WARPS;
  static constexpr int kThreads = 32 * ROW_WARPS * COLUMN_WARPS * DEPTH_WARPS;
  static constexpr int kSteps = kChunkBytes / kStepBytes;
  static constexpr int kStageChunks = (DEPTH_WARPS + kSteps - 1) / kSteps;
  static constexpr int kStages = 512 / (kRows + kColumns) / kStageChunks;  // so that three blocks fit per SM
  static constexpr int kChunkRows = kRows + kColumns, kFilledBytes = kChunkRows * kRowBytes;  // rows of a, then of b
  static constexpr int kStageBytes = kStageChunks * kFilledBytes;

  // Layout of the sums in shared memory, from the warps that accumulated them to the threads that store them. Rows of a
  // warp's fragment are 8 banks apart; every 8 rows and every 32 columns add 4 more, so that 8 threads can read 32
  // bytes each without conflicts.
  static constexpr int kStagedStride = kColumns + 8, kStaged = (kRows / 8) * (8 * kStagedStride + 4);
  static constexpr int kStagedBytes = 4 * DEPTH_WARPS * kStaged;
  HYPERSEG_HOST_DEVICE static constexpr int staged(int row, int column) {
    return row * kStagedStride + row / 8 * 4 + column + column / 32 * 4;
  }
  // The first row that a group of threads reads.
  HYPERSEG_HOST_DEVICE static constexpr int row_of_group(int group) {
    return kColumns == 32 ? group % 2 * 8 + group / 2 % 8 + group / 16 * 16 : group;
  }

  static size_t shared_bytes(int64_t chunks) {
    const int64_t needed = (chunks + kStageChunks - 1) / kStageChunks;
    const size_t stages = (needed < kStages ? needed : kStages) * kStageBytes;
    return stages > kStagedBytes ? stages : kStagedBytes;
  }
};

// Accumulators of a warp. A lane knows the rows of a and b that it loads for the warp, the rows of its own sums, and
// the first of the factors of a.
template <typename T, typename TILE, bool SCALED>
struct Sums {
  static constexpr int kRowTiles = TILE::kWarpRows / 16;
  float values[kRowTiles][4][4] = {};

  HYPERSEG_DEVICE static int row_of_a(int thread) { return thread % 16; }
  HYPERSEG_DEVICE static int row_of_b(int thread) { return thread % 32 / 16 * 8 + thread % 8; }
  HYPERSEG_DEVICE static int byte_of_a(int thread) { return thread % 32 / 16 * 16; }
  HYPERSEG_DEVICE static int byte_of_b(int thread) { return thread / 8 % 2 * 16; }
  HYPERSEG_DEVICE static int byte_of_scale(int thread) { return thread % 4 * 4; }

  HYPERSEG_DEVICE void add(const char* a, const char* b, const char* scale) {
    uint32_t fragment_a[kRowTiles][4], fragment_b[2][4];
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      ldmatrix4(fragment_a[i], a + 16 * i * kRowBytes);
      if (i < 2) ldmatrix4(fragment_b[i], b + 16 * i * kRowBytes);
    }
    if constexpr (SCALED) {
      const uint32_t low = *reinterpret_cast<const uint32_t*>(scale);
      const uint32_t high = *reinterpret_cast<const uint32_t*>(scale + 16);
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
        for (int r = 0; r < 4; ++r) fragment_a[i][r] = multiply2<T>(fragment_a[i][r], r < 2 ? low : high);
    }
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        mma16<T>(values[i][j], fragment_a[i], fragment_b[j / 2][j % 2 * 2], fragment_b[j / 2][j % 2 * 2 + 1]);
  }

  HYPERSEG_DEVICE void store(float* to, int thread) const {
    const int lane = thread % 32;
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 4; e += 2)
          store2(to + TILE::staged(16 * i + 4 * e, 0) + lane / 4 * TILE::kStagedStride + 8 * j + 2 * (lane % 4),
                 float2{values[i][j][e], values[i][j][e + 1]});
  }
};

template <typename TILE, bool SCALED>
struct Sums<float, TILE, SCALED> {
  static_assert(TILE::kWarpRows == 32);
  float values[4][8] = {};  // rows 8 apart, columns 4 apart

  HYPERSEG_DEVICE static int row_of_a(int thread) { return thread % 32 / 4; }
  HYPERSEG_DEVICE static int row_of_b(int thread) { return thread % 4; }
  HYPERSEG_DEVICE static int byte_of_a(int) { return 0; }
  HYPERSEG_DEVICE static int byte_of_b(int) { return 0; }
  HYPERSEG_DEVICE static int byte_of_scale(int) { return 0; }

  HYPERSEG_DEVICE void add(const char* a, const char* b, const char* scale) {
#pragma unroll
    for (int part = 0; part < kStepBytes; part += 16) {
      float4 rows[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        rows[i] = *reinterpret_cast<const float4*>(a + 8 * i * kRowBytes + part);
        if constexpr (SCALED) {
          const float4 s = *reinterpret_cast<const float4*>(scale + part);
          rows[i] = float4{rows[i].x * s.x, rows[i].y * s.y, rows[i].z * s.z, rows[i].w * s.w};
        }
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float4 column = *reinterpret_cast<const float4*>(b + 4 * j * kRowBytes + part);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          values[i][j] += rows[i].x * column.x;
          values[i][j] += rows[i].y * column.y;
          values[i][j] += rows[i].z * column.z;
          values[i][j] += rows[i].w * column.w;
        }
      }
    }
  }

  HYPERSEG_DEVICE void store(float* to, int thread) const {
    const int lane = thread % 32;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j)
        to[TILE::staged(8 * i, 0) + lane / 4 * TILE::kStagedStride + 4 * j + lane % 4] = values[i][j];
  }
};

// Call load(chunk, stage) for the chunks of a stage that exist.
template <typename TILE, typename Load>
HYPERSEG_DEVICE void fill_stage(int stage, int chunks, char* to, const Load& load) {
#pragma unroll
  for (int i = 0; i < TILE::kStageChunks; ++i)
    if (stage * TILE::kStageChunks + i < chunks) load(stage * TILE::kStageChunks + i, to + i * TILE::kFilledBytes);
}

// Call load(chunk, stage) for the chunks that multiply_tile loads first.
template <typename T, typename TILE, typename Load>
HYPERSEG_DEVICE void for_each_first_chunk(int depth, const Load& load) {
  const int chunks = (depth + kChunk<T> - 1) / kChunk<T>;
#pragma unroll 1
  for (int stage = 0; stage < TILE::kStages - 1; ++stage)
    fill_stage<TILE>(stage, chunks, shared_memory() + stage * TILE::kStageBytes, load);
}

// Compute a tile, of which `rows` and `columns` are needed. load(chunk, stage) starts to copy a chunk of the operands:
// rows of kRowBytes, zeros in a step of kStepBytes beyond the depth. load_first(chunk, stage) is called instead for the
// chunks of for_each_first_chunk, of which some copies may have been started before. SCALED: the rows of a are
// multiplied by `scales` in shared memory, after the stages, which prepare() fills while the first copies are in
// flight; zeros beyond the depth. Returns kDepthWarps partial sums of kStaged values each, which all threads may read.
template <typename T, typename TILE, bool SCALED, typename LoadFirst, typename Load, typename Prepare>
HYPERSEG_DEVICE const float* multiply_tile(int depth, int rows, int columns, const LoadFirst& load_first,
                                           const Load& load, const char* scales, const Prepare& prepare,
                                           int thread = threadIdx.x) {
  const int warp = thread / 32, chunks = (depth + kChunk<T> - 1) / kChunk<T>;
  const int stages = (chunks + TILE::kStageChunks - 1) / TILE::kStageChunks;
  const int part = warp % TILE::kDepthWarps, tile = warp / TILE::kDepthWarps;
  const int own_chunk = part / TILE::kSteps;
  const int row = TILE::kWarpRows * (tile / TILE::kColumnWarps), column = 32 * (tile % TILE::kColumnWarps);
  char* memory = shared_memory();
  using Of = Sums<T, TILE, SCALED>;
  Of sums;
  const bool needed = row < rows && column < columns;
  const int first_byte = part % TILE::kSteps * kStepBytes, chunk_bytes = own_chunk * TILE::kFilledBytes;
  const int a = chunk_bytes + (row + Of::row_of_a(thread)) * kRowBytes + first_byte + Of::byte_of_a(thread);
  const int b =
      chunk_bytes + (TILE::kRows + column + Of::row_of_b(thread)) * kRowBytes + first_byte + Of::byte_of_b(thread);
  const char* scale = scales + own_chunk * kChunkBytes + first_byte + Of::byte_of_scale(thread);
#pragma unroll 1
  for (int stage = 0; stage < TILE::kStages - 1; ++stage) {
    fill_stage<TILE>(stage, chunks, memory + stage * TILE::kStageBytes, load_first);
    commit_copies();
  }
  if constexpr (SCALED) prepare();
  int current = 0, next = TILE::kStages - 1;
#pragma unroll 1
  for (int stage = 0; stage < stages; ++stage) {
    wait_for_copies<TILE::kStages - 2>();
    sync_block();  // and all threads have finished with the stage that is filled next
    fill_stage<TILE>(stage + TILE::kStages - 1, chunks, memory + next * TILE::kStageBytes, load);
    commit_copies();
    const char* filled = memory + current * TILE::kStageBytes;
    const int chunk = stage * TILE::kStageChunks + own_chunk;
    const int bytes = needed ? (depth - chunk * kChunk<T>)*static_cast<int>(sizeof(T)) : 0;
#pragma unroll
    for (int step = 0; step < kChunkBytes; step += TILE::kDepthWarps * kStepBytes)
      if (step + first_byte < bytes) sums.add(filled + a + step, filled + b + step, scale + step);
    scale += TILE::kStageChunks * kChunkBytes;
    current = current + 1 == TILE::kStages ? 0 : current + 1;
    next = next + 1 == TILE::kStages ? 0 : next + 1;
  }
  sync_block();
  float* staged = reinterpret_cast<float*>(memory);
  sums.store(staged + part * TILE::kStaged + TILE::staged(row, column), thread);
  sync_block();
  return staged;
}

template <typename T, typename TILE, bool SCALED, typename Load, typename Prepare>
HYPERSEG_DEVICE const float* multiply_tile(int depth, int rows, int columns, const Load& load, const char* scales,
                                           const Prepare& prepare) {
  return multiply_tile<T, TILE, SCALED>(depth, rows, columns, load, load, scales, prepare);
}

}  // namespace hyperseg::cuda
