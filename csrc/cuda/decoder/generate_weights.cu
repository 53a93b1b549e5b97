#include "cuda/decoder/generate_weights.h"

#include "cuda/decoder/patch_grid.cuh"
#include "cuda/device/launch.cuh"
#include "cuda/device/vectors.cuh"

// Many small GEMMs in one launch. A block computes 64 consecutive parameters of one group for 128 patches (float32:
// 64): signal [patches, width] times generator rows [64, width]. It finds its generator and group in a table that is a
// kernel argument.
namespace hyperseg::cuda {
namespace {

constexpr int kThreads = 128, kRows = 64;
constexpr int kMaxGenerators = 8;  // per launch

// A generator, its first parameter and its first block.
struct GeneratorPart {
  GeneratorArgs generator;
  int begin, tiles;           // parameters per patch; blocks per tile of patches
  FastDivmod tiles_of_group;  // divides the tiles by those of a group
  int signal_unit, row_unit;  // in which the operands are copied: see load_unit
};

struct Table {
  GeneratorPart parts[kMaxGenerators];
  int count, total;  // number of parts; parameters per patch
  int aligned;       // parameters written by one store: a power of two
  int patches;       // of all images
  FastDivmod tiles;  // divides the blocks by the tiles of all parts
  PatchGrid grid;
};

// Tiles of a group begin where a store of eight parameters is aligned, so a group may take one tile more than its rows
// fill.
int tiles_of_group(const GeneratorArgs& generator) { return (generator.rows + 7 + kRows - 1) / kRows; }

// The tile that a block computes.
struct ParameterTile {
  const GeneratorPart* part;
  int group, first, row;  // first row of the group, and of the tile, which may be before it
  int end;                // end of the rows in use
  int patch;

  HYPERSEG_DEVICE ParameterTile(const Table& table, int patches) : part(table.parts) {
    const int across = table.tiles.quotient(blockIdx.x);
    int tile = static_cast<int>(blockIdx.x) - across * table.tiles.value();
    while (tile >= part->tiles) tile -= part++->tiles;
    const int rows = part->generator.rows;
    group = part->tiles_of_group.quotient(tile);
    tile -= group * part->tiles_of_group.value();
    first = group * rows;
    row = (part->begin + first) / 8 * 8 - part->begin + tile * kRows;
    end = min(first + rows, part->generator.size);
    patch = across * patches;
  }

  HYPERSEG_DEVICE bool needed(int r) const { return r >= first && r < end; }
};

// Of the kernel for tensor cores.
struct MmaTile {
  static constexpr int kPatches = 128, kColumns = 80;
  static constexpr int kStride = kColumns + 8;  // 11 times 16 bytes: eight rows are in different banks
  static constexpr int kBytes = 2 * (kPatches + kRows) * kStride;
};

// A line of an operand in global memory: a row of the generator, or the signal of a patch.
template <typename T>
struct Line {
  const T* from = nullptr;
  int64_t stride = 0;
  int width = 0;  // 0 for a line that is not needed
};

template <typename T>
HYPERSEG_DEVICE Line<T> line_of_row(const ParameterTile& tile, int r) {
  const GeneratorArgs& generator = tile.part->generator;
  r += tile.row;
  if (!tile.needed(r)) return {};
  return {static_cast<const T*>(generator.data) + r * generator.stride_row, generator.stride_column, generator.width};
}

template <typename T>
HYPERSEG_DEVICE Line<T> line_of_patch(const Map<const T>& signal, const Table& table, const ParameterTile& tile,
                                      int p) {
  const GeneratorArgs& generator = tile.part->generator;
  p += tile.patch;
  if (p >= table.patches) return {};
  const T* from = table.grid.signal_of(signal, generator.offset + tile.group * generator.width, p);
  return {from, signal.stride_c, generator.width};
}

// Two threads copy a line; they are adjacent if it is contiguous, otherwise adjacent threads have adjacent lines. So a
// thread's line is known before the loop over its columns.
struct LineThread {
  int line, half;

  HYPERSEG_DEVICE explicit LineThread(bool contiguous)
      : line(contiguous ? threadIdx.x / 2 : threadIdx.x % 64), half(contiguous ? threadIdx.x % 2 : threadIdx.x / 64) {}
};

// Start to copy COLUMNS columns of a line from column k on, UNIT bytes at a time; zeros after the last.
template <int UNIT, int COLUMNS, typename T>
HYPERSEG_DEVICE void copy_units(T* to, const Line<T>& line, int k, int half) {
  constexpr int kValues = UNIT / sizeof(T);
  const T* from = line.from + k + half * kValues;
  const int left = line.width - k - half * kValues;
  to += half * kValues;
#pragma unroll
  for (int c = 0; c < COLUMNS; c += 2 * kValues) copy_async<UNIT>(to + c, from + c, c < left);
}
// The same, and without a condition per copy, for at least `padded` columns.
template <int UNIT, typename T>
HYPERSEG_DEVICE void copy_units(T* to, const Line<T>& line, int k, int padded, int half) {
  padded <= 16 ? copy_units<UNIT, 16>(to, line, k, half) : copy_units<UNIT, MmaTile::kColumns>(to, line, k, half);
}
// `unit`: bytes that are copied at once; 0: value by value.
template <typename T>
HYPERSEG_DEVICE void copy_line(int unit, T* to, const Line<T>& line, int k, int padded, int half) {
  if (unit == 16) return copy_units<16>(to, line, k, padded, half);
  if (unit == 8) return copy_units<8>(to, line, k, padded, half);
  if (unit == 4) return copy_units<4>(to, line, k, padded, half);
  for (int first = half; first < padded; first += 16) {
    T values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int c = k + first + 2 * i;
      values[i] = c < line.width ? line.from[c * line.stride] : from_float<T>(0.0f);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) to[first + 2 * i] = values[i];
  }
}

// Which of eight consecutive parameters are in the tile.
HYPERSEG_DEVICE uint32_t needed_of_eight(const ParameterTile& tile, int row) {
  const int begin = min(max(tile.first - row, 0), 8), end = min(max(tile.end - row, 0), 8);
  return ((1u << end) - 1) & ~((1u << begin) - 1);
}

// Store them.
template <typename T>
HYPERSEG_DEVICE void store(T* to, int aligned, uint32_t needed, const float (&v)[8]) {
  if (needed == 255 && aligned >= 2) {
    if (aligned >= kVector<T>) return store8(to, v);
#pragma unroll
    for (int i = 0; i < 8; i += 2) store2(to + i, float2{v[i], v[i + 1]});
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (needed >> i & 1) to[i] = from_float<T>(v[i]);
}

// float16 and bfloat16, on tensor cores: one warp per 32 patches. Rows are permuted in shared memory, such that the
// columns of four MMAs give a thread eight consecutive rows.
template <typename T>
HYPERSEG_KERNEL(kThreads, 4)
generate_weights_mma_kernel(Map<const T> signal, Table table, T* out) {
  constexpr int kStride = MmaTile::kStride;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const ParameterTile tile(table, MmaTile::kPatches);
  const GeneratorPart& part = *tile.part;
  const int width = part.generator.width;
  T* const rows = reinterpret_cast<T*>(shared_memory());
  T* const signals = rows + kRows * kStride;
  const LineThread of_row(part.generator.stride_column == 1), of_patch(signal.stride_c == 1);
  const Line<T> row = line_of_row<T>(tile, of_row.line);
  const int r = of_row.line, place = r / 32 * 32 + r / 2 % 4 * 8 + r % 32 / 8 * 2 + r % 2;
  Line<T> patches[2];

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const T* const a_line = signals + (warp * 32 + lane % 16) * kStride + lane / 16 * 8;
  const T* const b_line = rows + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8;
  float sums[2][kRows / 8][4] = {};
  for (int k = 0; k < width; k += MmaTile::kColumns) {
    const int padded = min(MmaTile::kColumns, (width - k + 15) / 16 * 16);
    if (k) sync_block();
    copy_line(part.row_unit, rows + place * kStride, row, k, padded, of_row.half);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!k) patches[i] = line_of_patch(signal, table, tile, of_patch.line + i * 64);
      copy_line(part.signal_unit, signals + (of_patch.line + i * 64) * kStride, patches[i], k, padded, of_patch.half);
    }
    commit_copies();
    wait_for_copies<0>();
    sync_block();
    for (int c = 0; c < padded; c += 16) {
      uint32_t a[2][4];
      ldmatrix4(a[0], a_line + c);
      ldmatrix4(a[1], a_line + 16 * kStride + c);
#pragma unroll
      for (int j = 0; j < kRows / 8; j += 2) {
        uint32_t b[4];
        ldmatrix4(b, b_line + j * 8 * kStride + c);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          mma16<T>(sums[i][j], a[i], b[0], b[1]);
          mma16<T>(sums[i][j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }
  const int patch = tile.patch + warp * 32 + lane / 4, parameter = tile.row + lane % 4 * 8;
  T* to = out + static_cast<int64_t>(patch) * table.total + part.begin + parameter;
  const uint32_t needed[2] = {needed_of_eight(tile, parameter), needed_of_eight(tile, parameter + 32)};
#pragma unroll
  for (int below = 0; below < 4; ++below) {
    if (patch + below * 8 >= table.patches) return;
#pragma unroll
    for (int right = 0; right < 2; ++right) {
      float v[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = sums[below / 2][right * 4 + i / 2][below % 2 * 2 + i % 2];
      store(to + right * 32, table.aligned, needed[right], v);
    }
    to += 8 * table.total;
  }
}

// float32, without tensor cores: a thread computes 4 patches x 8 rows.
struct SimtTile {
  static constexpr int kPatches = 64, kColumns = 32;
  static constexpr int kStride = kPatches + 4;
  static constexpr int kBytes = 4 * 2 * kColumns * kStride;
};

// Load columns [k, k + kColumns) of a line, VALUES at a time, those of this thread.
template <int VALUES>
HYPERSEG_DEVICE void load_units(float (&values)[16], const Line<float>& line, int k, int half) {
#pragma unroll
  for (int i = 0; i < 16; i += VALUES) {
    const int c = k + 2 * i + half * VALUES;
    if (c >= line.width) break;
    if constexpr (VALUES == 4) {
      const float4 v = *reinterpret_cast<const float4*>(line.from + c);
      values[i] = v.x, values[i + 1] = v.y, values[i + 2] = v.z, values[i + 3] = v.w;
    } else {
      values[i] = line.from[c * line.stride];
    }
  }
}
// Store them at [column][line].
template <int VALUES>
HYPERSEG_DEVICE void put_units(float* to, const float (&values)[16], int columns, int half) {
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int c = i / VALUES * 2 * VALUES + half * VALUES + i % VALUES;
    if (c < columns) to[c * SimtTile::kStride] = values[i];
  }
}

HYPERSEG_KERNEL(kThreads, 4)
generate_weights_simt_kernel(Map<const float> signal, Table table, float* out) {
  constexpr int kStride = SimtTile::kStride;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const ParameterTile tile(table, SimtTile::kPatches);
  const GeneratorPart& part = *tile.part;
  const int width = part.generator.width;
  float* const rows = reinterpret_cast<float*>(shared_memory());
  float* const signals = rows + SimtTile::kColumns * kStride;
  const LineThread of_row(part.generator.stride_column == 1), of_patch(signal.stride_c == 1);
  const Line<float> row = line_of_row<float>(tile, of_row.line);
  const Line<float> patch = line_of_patch(signal, table, tile, of_patch.line);
  const int p0 = threadIdx.x / 8 * 4, r0 = threadIdx.x % 8 * 8;
  float sums[4][8] = {};
  for (int k = 0; k < width; k += SimtTile::kColumns) {
    const int columns = min(SimtTile::kColumns, width - k);
    float row_values[16], signal_values[16];
    const auto load = [&](int unit, float (&values)[16], const Line<float>& line, int half) {
      unit == 16 ? load_units<4>(values, line, k, half) : load_units<1>(values, line, k, half);
    };
    const auto put = [&](int unit, float* to, const float (&values)[16], int half) {
      unit == 16 ? put_units<4>(to, values, columns, half) : put_units<1>(to, values, columns, half);
    };
    load(part.row_unit, row_values, row, of_row.half);
    load(part.signal_unit, signal_values, patch, of_patch.half);
    if (k) sync_block();
    put(part.row_unit, rows + of_row.line, row_values, of_row.half);
    put(part.signal_unit, signals + of_patch.line, signal_values, of_patch.half);
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
  const int first = tile.patch + p0;
  const uint32_t needed = needed_of_eight(tile, tile.row + r0);
  float* to = out + static_cast<int64_t>(first) * table.total + part.begin + tile.row + r0;
#pragma unroll
  for (int i = 0; i < 4; ++i, to += table.total)
    if (first + i < table.patches) store(to, table.aligned, needed, sums[i]);
}

template <typename T>
void launch_table(const Map<const T>& signal, const Table& table, T* out, Stream stream) {
  const auto grid = [&](int patches) {
    return grid_of("generate_weights", int64_t{blocks_of(table.patches, patches)} * table.tiles.value());
  };
  if constexpr (sizeof(T) == 2)
    launch<generate_weights_mma_kernel<T>>("generate_weights", grid(MmaTile::kPatches), kThreads, MmaTile::kBytes,
                                           stream, signal, table, out);
  else
    launch<generate_weights_simt_kernel>("generate_weights", grid(SimtTile::kPatches), kThreads, SimtTile::kBytes,
                                         stream, signal, table, out);
}

}  // namespace

void generate_weights(const Map<const void>& signal, Type type, int64_t images,
                      const std::vector<GeneratorArgs>& generators, void* out, Stream stream) {
  const int64_t patches = images * signal.height * signal.width, size = type == Type::kFloat ? 4 : 2;
  check(patches < int64_t{1} << 31, "generate_weights: too large for a GPU, the signal has ", patches, " patches");
  Table table{};
  table.patches = static_cast<int>(patches);
  table.grid = PatchGrid(signal, images);
  for (const GeneratorArgs& generator : generators) table.total += generator.size;
  table.aligned = 8;
  while (table.total % table.aligned) table.aligned /= 2;
  int begin = 0, tiles = 0;
  for (size_t i = 0; i < generators.size(); ++i) {
    const GeneratorArgs& generator = generators[i];
    const int of_group = tiles_of_group(generator);
    GeneratorPart& part = table.parts[table.count++];
    part = {generator, begin, of_group * generator.groups, FastDivmod(of_group)};
    part.row_unit = load_unit(generator.data, generator.stride_column, {generator.stride_row, generator.width}, size);
    part.signal_unit =
        load_unit(signal.data, signal.stride_c,
                  {signal.stride_n, signal.stride_h, signal.stride_w, generator.offset, generator.width}, size);
    tiles += part.tiles;
    begin += generator.size;
    if (table.count < kMaxGenerators && i + 1 < generators.size()) continue;
    table.tiles = FastDivmod(tiles);
    with_type(type, [&](auto value) {
      using T = decltype(value);
      launch_table(signal.of<const T>(), table, static_cast<T*>(out), stream);
    });
    table.count = tiles = 0;
  }
}

}  // namespace hyperseg::cuda
