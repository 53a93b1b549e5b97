#include "cuda/decoder/generate_weights.h"

#include "cuda/device/launch.cuh"
#include "cuda/device/vectors.cuh"

// Many small GEMMs in one launch. A block computes 64 consecutive parameters of one group for 64 patches: signal [64,
// width] times generator rows [64, width]. It finds its generator and group in a table that is a kernel argument.
namespace hyperseg::cuda {
namespace {

constexpr int kThreads = 128, kPatches = 64, kRows = 64;
constexpr int kMaxGenerators = 8;  // per launch

// A generator, its first parameter and its first block.
struct GeneratorPart {
  GeneratorArgs generator;
  int begin, tiles;  // parameters per patch; blocks per 64 patches
};

struct Table {
  GeneratorPart parts[kMaxGenerators];
  int count, total;  // number of parts; parameters per patch
  int tiles;         // of all parts
  int aligned;       // parameters written by one store: a power of two
  int64_t patches;
};

// Tiles of a group begin where a store of eight parameters is aligned, so a group may take one tile more than its rows
// fill.
__host__ __device__ inline int tiles_of_group(const GeneratorArgs& generator) {
  return (generator.rows + 7 + kRows - 1) / kRows;
}

// The tile that a block computes.
struct ParameterTile {
  GeneratorArgs generator;
  int begin;              // first parameter of the generator
  int group, first, row;  // first row of the group, and of the tile, which may be before it
  int end;                // end of the rows in use
  int64_t patch;

  HYPERSEG_DEVICE explicit ParameterTile(const Table& table) {
    int tile = blockIdx.x % table.tiles, i = 0;
    while (tile >= table.parts[i].tiles) tile -= table.parts[i++].tiles;
    generator = table.parts[i].generator;
    begin = table.parts[i].begin;
    const int tiles = tiles_of_group(generator), rows = generator.rows;
    group = tile / tiles;
    first = group * rows;
    row = (begin + first) / 8 * 8 - begin + tile % tiles * kRows;
    end = min(first + rows, generator.size);
    patch = static_cast<int64_t>(blockIdx.x / table.tiles) * kPatches;
  }

  HYPERSEG_DEVICE bool needed(int r) const { return r >= first && r < end; }
};

template <typename T>
HYPERSEG_DEVICE T signal_of(const Map<const T>& signal, int64_t patch, int channel) {
  const int64_t x = patch % signal.width, y = patch / signal.width % signal.height;
  return *signal.at(patch / signal.width / signal.height, channel, y, x);
}

// Stage `columns` columns of the tile's operands, from `k` on, through put_signal(patch, column, value) and
// put_row(row, column, value); 0 outside the operands.
template <typename T, typename PutSignal, typename PutRow>
HYPERSEG_DEVICE void load(const Map<const T>& signal, const Table& table, const ParameterTile& tile, int k, int columns,
                          PutSignal&& put_signal, PutRow&& put_row) {
  const GeneratorArgs& generator = tile.generator;
  const int base = generator.offset + tile.group * generator.width;
  const bool by_channel = signal.stride_c == 1;
  for (int i = threadIdx.x; i < kPatches * columns; i += kThreads) {
    const int p = by_channel ? i / columns : i % kPatches, c = by_channel ? i % columns : i / kPatches;
    const bool there = tile.patch + p < table.patches && k + c < generator.width;
    put_signal(p, c, there ? signal_of(signal, tile.patch + p, base + k + c) : from_float<T>(0.0f));
  }
  const T* rows = static_cast<const T*>(generator.data);
  for (int i = threadIdx.x; i < kRows * columns; i += kThreads) {
    const int r = i / columns, c = i % columns;
    const bool there = tile.needed(tile.row + r) && k + c < generator.width;
    put_row(
        r, c,
        there ? rows[(tile.row + r) * generator.stride_row + (k + c) * generator.stride_column] : from_float<T>(0.0f));
  }
}

// Store eight consecutive parameters of a patch, of which some are outside the tile.
template <typename T>
HYPERSEG_DEVICE void store(T* out, const Table& table, const ParameterTile& tile, int64_t patch, int row,
                           const float (&v)[8]) {
  if (patch >= table.patches) return;
  T* to = out + patch * table.total + tile.begin + row;
  const bool all = tile.needed(row) && tile.needed(row + 7);
  if constexpr (sizeof(T) == 2) {
    if (all && table.aligned >= 2) {
      if (table.aligned >= 8) {
        store8(to, v);
      } else {
#pragma unroll
        for (int i = 0; i < 8; i += 2) store2(to + i, float2{v[i], v[i + 1]});
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (tile.needed(row + i)) to[i] = from_float<T>(v[i]);
}

// float16 and bfloat16, on tensor cores: one warp per 16 patches. Rows are permuted in shared memory, such that the
// columns of four MMAs give a thread eight consecutive rows.
template <typename T>
HYPERSEG_KERNEL(kThreads, 4)
generate_weights_mma_kernel(Map<const T> signal, Table table, T* out) {
  constexpr int kColumns = 64, kStride = kColumns + 8;  // 9 times 16 bytes: eight rows are in different banks
  wait_for_previous_kernel();
  let_next_kernel_start();
  const ParameterTile tile(table);
  T* signals = reinterpret_cast<T*>(shared_memory());
  T* rows = signals + kPatches * kStride;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float sums[kRows / 8][4] = {};
  for (int k = 0; k < tile.generator.width; k += kColumns) {
    const int columns = min(kColumns, (tile.generator.width - k + 15) / 16 * 16);
    if (k) sync_block();
    load(
        signal, table, tile, k, columns, [&](int p, int c, T v) { signals[p * kStride + c] = v; },
        [&](int r, int c, T v) {
          const int place = r / 32 * 32 + r / 2 % 4 * 8 + r % 32 / 8 * 2 + r % 2;
          rows[place * kStride + c] = v;
        });
    sync_block();
    for (int c = 0; c < columns; c += 16) {
      uint32_t a[4];
      ldmatrix4(a, signals + (warp * 16 + lane % 16) * kStride + c + lane / 16 * 8);
#pragma unroll
      for (int j = 0; j < kRows / 8; j += 2) {
        uint32_t b[4];
        ldmatrix4(b, rows + (j * 8 + lane / 16 * 8 + lane % 8) * kStride + c + lane / 8 % 2 * 8);
        mma16<T>(sums[j], a, b[0], b[1]);
        mma16<T>(sums[j + 1], a, b[2], b[3]);
      }
    }
  }
#pragma unroll
  for (int part = 0; part < kRows / 32; ++part)
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      float v[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = sums[part * 4 + i / 2][below * 2 + i % 2];
      store(out, table, tile, tile.patch + warp * 16 + lane / 4 + below * 8, tile.row + part * 32 + lane % 4 * 8, v);
    }
}

// float32, without tensor cores: a thread computes 4 patches x 8 rows.
HYPERSEG_KERNEL(kThreads, 4)
generate_weights_simt_kernel(Map<const float> signal, Table table, float* out) {
  constexpr int kColumns = 32, kStride = kPatches + 4;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const ParameterTile tile(table);
  float* signals = reinterpret_cast<float*>(shared_memory());
  float* rows = signals + kColumns * kStride;
  const int p0 = threadIdx.x / 8 * 4, r0 = threadIdx.x % 8 * 8;
  float sums[4][8] = {};
  for (int k = 0; k < tile.generator.width; k += kColumns) {
    const int columns = min(kColumns, tile.generator.width - k);
    if (k) sync_block();
    load(
        signal, table, tile, k, columns, [&](int p, int c, float v) { signals[c * kStride + p] = v; },
        [&](int r, int c, float v) { rows[c * kStride + r] = v; });
    sync_block();
    for (int c = 0; c < columns; ++c) {
      float s[4], r[8];
#pragma unroll
      for (int i = 0; i < 4; ++i) s[i] = signals[c * kStride + p0 + i];
#pragma unroll
      for (int i = 0; i < 8; ++i) r[i] = rows[c * kStride + r0 + i];
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[i][j] = fmaf(s[i], r[j], sums[i][j]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) store(out, table, tile, tile.patch + p0 + i, tile.row + r0, sums[i]);
}

template <typename T>
void launch_table(const Map<const T>& signal, const Table& table, T* out, Stream stream) {
  const Grid grid = grid_of("generate_weights", int64_t{blocks_of(table.patches, kPatches)} * table.tiles);
  if constexpr (sizeof(T) == 2)
    launch<generate_weights_mma_kernel<T>>("generate_weights", grid, kThreads, (kPatches + kRows) * 72 * sizeof(T),
                                           stream, signal, table, out);
  else
    launch<generate_weights_simt_kernel>("generate_weights", grid, kThreads, 2 * 32 * 68 * sizeof(T), stream, signal,
                                         table, out);
}

}  // namespace

void generate_weights(const Map<const void>& signal, Type type, int64_t images,
                      const std::vector<GeneratorArgs>& generators, void* out, Stream stream) {
  Table table{};
  table.patches = images * signal.height * signal.width;
  for (const GeneratorArgs& generator : generators) table.total += generator.size;
  table.aligned = 8;
  while (table.total % table.aligned) table.aligned /= 2;
  int begin = 0;
  for (size_t i = 0; i < generators.size(); ++i) {
    const int tiles = tiles_of_group(generators[i]) * generators[i].groups;
    table.parts[table.count++] = {generators[i], begin, tiles};
    table.tiles += tiles;
    begin += generators[i].size;
    if (table.count < kMaxGenerators && i + 1 < generators.size()) continue;
    with_type(type, [&](auto value) {
      using T = decltype(value);
      launch_table(signal.of<const T>(), table, static_cast<T*>(out), stream);
    });
    table.count = table.tiles = 0;
  }
}

}  // namespace hyperseg::cuda
