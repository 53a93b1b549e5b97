#pragma once

#include "common/map.h"
#include "cuda/device/activation.cuh"
#include "cuda/device/fast_divmod.h"
#include "cuda/device/pipelined_gemm.cuh"
#include "cuda/encoder/mbconv_pointwise.cuh"
#include "cuda/encoder/pointwise_conv.h"

// Independent 1x1 convolutions in one launch. A block finds its convolution in a table among the kernel's arguments,
// and computes one tile of it, of the shape that the host chose for it.
namespace hyperseg::cuda {

constexpr int kConvThreads = 128;  // of every tile
using ConvTall = GemmTile<4, 1, 1>;
using ConvSquare = GemmTile<2, 2, 1>;
using ConvWide = GemmTile<1, 2, 2>;
using ConvSmall = GemmTile<1, 1, 4>;
enum ConvTile { kConvTall, kConvSquare, kConvWide, kConvSmall, kConvDeep, kConvDirect };

// For one convolution of a large depth, where all operands are vectors and the depth is whole chunks, in 16-bit floats:
// more warps, each with 64x32 values and a step of each chunk.
constexpr int kDeepThreads = 256, kDeepChunks = 8;  // of the depth, at least
using ConvDeep = GemmTile<1, 2, 4, 64>;

// Few columns and a small depth: a warp loads the fragments of 32 pixels from global memory, without shared memory.
constexpr int kDirectColumns = 40, kDirectDepth = 64, kMostDirectSteps = 4;

template <typename T>
struct ConvProblem {
  Map<const T> maps[2];
  const T *weights, *bias;
  Map<T> out;
  float* sums;
  FastDivmod width;       // of the pixels
  FastDivmod map_chunks;  // chunks of the depth per tap, or of the first map
  int maps_last;          // index of the last map or tap
  int taps, pixels, depth, columns, images, row_tiles, column_tiles;
  int chunks;              // per part of the depth
  int sums_stride, begin;  // floats per pixel; first block
  int direct_steps;        // times 32 pixels per warp
  ConvTile tile;
  ConvActivation activation;
  bool doubled, vectors, weight_vectors, out_vectors, out_pairs;
};

template <typename T>
struct ConvTable {
  ConvProblem<T> convs[kMaxConvs];
  int count;
};

// Coordinates in map or tap `part` for output pixel `pixel`.
template <typename T>
HYPERSEG_DEVICE const T* conv_input(const ConvProblem<T>& conv, int64_t image, int pixel, int part) {
  const Map<const T>& map = conv.maps[conv.taps == 1 ? part : 0];
  int y = conv.width.quotient(pixel), x = pixel - y * conv.width.value();
  if (conv.taps == 2) {
    y = 2 * y + part / 2;
    x = 2 * x + part % 2;
  } else if (part) {
    y /= 2;
    x /= 2;
  }
  return map.at(image, 0, min(y, static_cast<int>(map.height) - 1), min(x, static_cast<int>(map.width) - 1));
}

// The rows of the left operand, for a thread of a tile.
template <typename T, typename TILE>
struct ConvRows {
  static constexpr int kAtOnce = TILE::kThreads / 8, kCount = TILE::kRows / kAtOnce;
  const ConvProblem<T>& conv;
  int64_t image;
  int first_pixel;
  int part = -1;            // the map or tap that `rows` point into
  const T* rows[kCount]{};  // the thread's first value of each of its rows

  HYPERSEG_DEVICE int pixel(int i) const { return first_pixel + static_cast<int>(threadIdx.x) / 8 + i * kAtOnce; }

  // Start to copy a chunk, if eight channels are contiguous and a chunk is of one map.
  HYPERSEG_DEVICE void vectors(char* stage, int chunk) {
    const int of = min(conv.map_chunks.quotient(chunk), conv.maps_last);
    if (of != part) {
      part = of;
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        rows[i] = conv_input(conv, image, min(pixel(i), conv.pixels - 1), of) + threadIdx.x % 8 * kVector<T>;
    }
    const int lane = threadIdx.x % 8, k = chunk * kChunk<T> + lane * kVector<T>;
    if (k - lane % 2 * kVector<T> >= conv.depth) return;  // nothing is read of a step that begins beyond the depth
    const int offset = (chunk - of * conv.map_chunks.value()) * kChunk<T>;
    char* to = stage + threadIdx.x / 8 * kRowBytes + lane * 16;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const bool here = k < conv.depth && pixel(i) < conv.pixels;
      copy_async(to + i * kAtOnce * kRowBytes, here ? rows[i] + offset : rows[i], here);
    }
  }

  // Copy it value by value.
  HYPERSEG_DEVICE void values(char* stage, int chunk) const {
    const int lane = threadIdx.x % 8, inputs = static_cast<int>(conv.maps[0].channels);
#pragma unroll 1
    for (int i = 0; i < kCount; ++i) {
      T* to = reinterpret_cast<T*>(stage + (threadIdx.x / 8 + i * kAtOnce) * kRowBytes + lane * 16);
#pragma unroll 1
      for (int e = 0, k = chunk * kChunk<T> + lane * kVector<T>; e < kVector<T>; ++e, ++k) {
        int of = 0, channel = k;
        while (of < conv.maps_last && channel >= inputs) {
          channel -= inputs;
          ++of;
        }
        const int64_t stride = conv.maps[conv.taps == 1 ? of : 0].stride_c;
        const bool here = k < conv.depth && pixel(i) < conv.pixels;
        to[e] = here ? conv_input(conv, image, pixel(i), of)[channel * stride] : from_float<T>(0.0f);
      }
    }
  }
};

template <typename T>
HYPERSEG_DEVICE void activate(ConvActivation activation, float (&v)[8]) {
  if (activation == ConvActivation::kRelu) {
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = max_or_nan(v[e], 0.0f);
  } else if (activation == ConvActivation::kSilu) {
#pragma unroll
    for (int e = 0; e < 8; e += 2) silu2<T>(v[e], v[e + 1]);
  }
}

// Store up to eight channels of a pixel.
template <typename T>
HYPERSEG_DEVICE void store_channels(T* to, bool vectors, int count, const float (&v)[8]) {
  if (vectors) return store8(to, v);
#pragma unroll
  for (int e = 0; e < 8; ++e)
    if (e < count) to[e] = from_float<T>(v[e]);
}

// A tile of a convolution: its pixels, columns and part of the depth.
template <typename T, typename TILE>
struct ConvPlace {
  int first_column, first_pixel;
  unsigned split;
  int64_t image;

  // Tiles of the same pixels are adjacent, so that all but the first find their input in the cache.
  HYPERSEG_DEVICE ConvPlace(const ConvProblem<T>& conv, unsigned block) {
    unsigned tile = block / conv.column_tiles;
    first_column = static_cast<int>(block - tile * conv.column_tiles) * TILE::kColumns;
    unsigned next = tile / conv.row_tiles;
    first_pixel = static_cast<int>(tile - next * conv.row_tiles) * TILE::kRows;
    split = next / conv.images;
    image = next - split * conv.images;
  }
};

// Store a tile from the sums in shared memory.
template <typename T, typename TILE>
HYPERSEG_DEVICE void store_tile(const ConvProblem<T>& conv, const ConvPlace<T, TILE>& place, const float* sums) {
  constexpr int kAcross = TILE::kColumns / 8, kDown = TILE::kThreads / kAcross, kPasses = TILE::kRows / kDown;
  const int inside = threadIdx.x % kAcross * 8, column = place.first_column + inside, count = conv.columns - column;
  const int first_row = TILE::row_of_group(threadIdx.x / kAcross);
  if (count <= 0) return;
  float bias[8];
  if (!conv.sums) load8(conv.bias + column, 1, count, bias);
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int row = first_row + pass * kDown, pixel = place.first_pixel + row;
    if (pixel >= conv.pixels) break;
    float v[8];
    load8(sums + TILE::staged(row, inside), v);
#pragma unroll
    for (int i = 1; i < TILE::kDepthWarps; ++i) {
      float more[8];
      load8(sums + i * TILE::kStaged + TILE::staged(row, inside), more);
#pragma unroll
      for (int e = 0; e < 8; ++e) v[e] += more[e];
    }
    if (conv.sums) {
      store8(conv.sums + ((place.split * conv.images + place.image) * conv.pixels + pixel) * conv.sums_stride + column,
             v);
      continue;
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] += bias[e];
    activate<T>(conv.activation, v);
    const Map<T>& out = conv.out;
    T* to = out.data + place.image * out.stride_n + column;
    if (!conv.doubled) {
      store_channels(to + pixel * out.stride_w, conv.out_vectors, count, v);
      continue;
    }
    const int y = 2 * conv.width.quotient(pixel), x = 2 * pixel - y * conv.width.value();
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (y + i / 2 < out.height && x + i % 2 < out.width)
        store_channels(to + (y + i / 2) * out.stride_h + (x + i % 2) * out.stride_w, conv.out_vectors, count, v);
  }
}

template <typename T, typename TILE>
HYPERSEG_DEVICE void convolve_tile(const ConvProblem<T>& conv, unsigned block) {
  static_assert(TILE::kThreads == kConvThreads);
  const ConvPlace<T, TILE> place(conv, block);
  const int first_chunk = place.split * conv.chunks;
  const int depth = min(conv.depth - first_chunk * kChunk<T>, conv.chunks * kChunk<T>);

  ConvRows<T, TILE> rows{conv, place.image, place.first_pixel};
  using Columns = Copier<T, TILE::kColumns, TILE::kThreads>;
  const T* weights = conv.weights + static_cast<int64_t>(place.first_column) * conv.depth;
  const int side = threadIdx.x / 8, lane = threadIdx.x % 8 * kVector<T>;
  const Columns columns{conv.columns - place.first_column, conv.depth,
                        weights + static_cast<int64_t>(side) * conv.depth + lane,
                        static_cast<int64_t>(sizeof(T)) * Columns::kAtOnce * conv.depth};
  const auto load = [&](int chunk, char* stage) {
    chunk += first_chunk;
    if (conv.vectors)
      rows.vectors(stage, chunk);
    else
      rows.values(stage, chunk);
    stage += TILE::kRows * kRowBytes;
    if (conv.weight_vectors)
      columns.vectors(stage, chunk);
    else
      columns.values(stage, chunk, 1, [&](int row) { return weights + static_cast<int64_t>(row) * conv.depth; });
  };
  store_tile(conv, place,
             multiply_tile<T, TILE, false>(depth, conv.pixels - place.first_pixel, conv.columns - place.first_column,
                                           load, nullptr, [] {}));
}

// The same for ConvDeep. Pointers advance from chunk to chunk.
template <typename T>
HYPERSEG_DEVICE void convolve_deep_tile(const ConvProblem<T>& conv, unsigned block) {
  using TILE = ConvDeep;
  using Of = Sums<T, TILE, false>;
  constexpr int kAtOnce = TILE::kThreads / 8, kRows = TILE::kRows / kAtOnce, kColumns = TILE::kColumns / kAtOnce;
  const ConvPlace<T, TILE> place(conv, block);
  const int first_chunk = place.split * conv.chunks;
  const int chunks = min(conv.depth / kChunk<T> - first_chunk, conv.chunks);
  const int thread = threadIdx.x, own = thread / 8, vector = thread % 8 * kVector<T>;
  const T *rows[kRows], *columns[kColumns];
  const auto pixel = [&](int i) { return place.first_pixel + own + i * kAtOnce; };
  const auto column = [&](int i) { return place.first_column + own + i * kAtOnce; };
#pragma unroll
  for (int i = 0; i < kColumns; ++i)
    columns[i] = conv.weights + static_cast<int64_t>(min(column(i), conv.columns - 1)) * conv.depth +
                 first_chunk * kChunk<T> + vector;
  int next = 0, left = 0;  // chunk to load next; chunks until the next map or tap

  char* const memory = shared_memory();
  char* const into = memory + own * kRowBytes + thread % 8 * 16;
  const auto load = [&](int stage) {
    if (left == 0) {
      const int chunk = first_chunk + next, part = min(conv.map_chunks.quotient(chunk), conv.maps_last);
      const int of_part = chunk - part * conv.map_chunks.value();
      left = part < conv.maps_last ? conv.map_chunks.value() - of_part : chunks;
#pragma unroll
      for (int i = 0; i < kRows; ++i)
        rows[i] = conv_input(conv, place.image, min(pixel(i), conv.pixels - 1), part) + of_part * kChunk<T> + vector;
    }
    char* const to = into + stage;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      copy_async(to + i * kAtOnce * kRowBytes, rows[i], pixel(i) < conv.pixels);
      rows[i] += kChunk<T>;
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      copy_async(to + (TILE::kRows + i * kAtOnce) * kRowBytes, columns[i], column(i) < conv.columns);
      columns[i] += kChunk<T>;
    }
    ++next;
    --left;
  };

  const int warp = thread / 32, step = warp % TILE::kDepthWarps * kStepBytes;
  const int first_column = 32 * (warp / TILE::kDepthWarps);
  const int a = Of::row_of_a(thread) * kRowBytes + step + Of::byte_of_a(thread);
  const int b = (TILE::kRows + first_column + Of::row_of_b(thread)) * kRowBytes + step + Of::byte_of_b(thread);
  constexpr int kRing = TILE::kStages * TILE::kStageBytes;
#pragma unroll 1
  for (int stage = 0; stage < TILE::kStages - 1; ++stage) {
    if (stage < chunks) load(stage * TILE::kStageBytes);
    commit_copies();
  }
  Of sums;
  int current = 0, free = kRing - TILE::kStageBytes;
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; ++chunk) {
    wait_for_copies<TILE::kStages - 2>();
    sync_block();  // and all threads have finished with the stage that is filled next
    if (next < chunks) load(free);
    commit_copies();
    sums.add(memory + current + a, memory + current + b, nullptr);
    free = current;
    current = current + TILE::kStageBytes == kRing ? 0 : current + TILE::kStageBytes;
  }
  sync_block();
  float* staged = reinterpret_cast<float*>(memory);
  sums.store(staged + warp % TILE::kDepthWarps * TILE::kStaged + TILE::staged(0, first_column), thread);
  sync_block();
  store_tile(conv, place, staged);
}

// All columns of 32 pixels per warp and step, in 16-bit floats; the depth is a multiple of 8.
template <typename T>
HYPERSEG_DEVICE void convolve_directly(const ConvProblem<T>& conv, unsigned block) {
  constexpr int kTiles = kDirectColumns / 8;
  const unsigned image = block / conv.row_tiles;
  const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4 * 2;
  const int columns = conv.columns, depth = conv.depth, pixels = conv.pixels;
  int first = (static_cast<int>(block - image * conv.row_tiles) * conv.direct_steps * kConvThreads) +
              static_cast<int>(threadIdx.x) / 32 * 32 + group;
  const T* const weights = conv.weights + group * depth + pair;
  const T* const in = conv.maps[0].data + image * conv.maps[0].stride_n;
  T* const out = conv.out.data + image * conv.out.stride_n;
  const int64_t stride = conv.maps[0].stride_w, out_stride = conv.out.stride_w;
  const auto load = [](const T* from, bool here) { return here ? *reinterpret_cast<const uint32_t*>(from) : 0u; };
#pragma unroll 1
  for (int step = 0; step < conv.direct_steps && first - group < pixels; ++step, first += kConvThreads) {
    const T* rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[i] = in + min(first + 8 * i, pixels - 1) * stride + pair;
    float sums[2][kTiles][4] = {};
#pragma unroll 2
    for (int k = 0; k < depth; k += 16) {
      const bool more = k + 8 < depth;
      uint32_t a[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i / 2][i % 2] = load(rows[i] + k, true);
        a[i / 2][i % 2 + 2] = load(rows[i] + k + 8, more);
      }
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        if (8 * j >= columns) break;
        const bool here = 8 * j + group < columns;
        const T* from = weights + 8 * j * depth + k;
        const uint32_t low = load(from, here), high = load(from + 8, here && more);
#pragma unroll
        for (int i = 0; i < 2; ++i) mma16<T>(sums[i][j], a[i], low, high);
      }
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const int column = 8 * j + pair;
      if (column >= columns) break;
      const bool both = column + 1 < columns;
      const float bias = to_float(conv.bias[column]), next = both ? to_float(conv.bias[column + 1]) : 0.0f;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int pixel = first + 8 * i;
        if (pixel >= pixels) break;
        float2 v{sums[i / 2][j][i % 2 * 2] + bias, sums[i / 2][j][i % 2 * 2 + 1] + next};
        if (conv.activation == ConvActivation::kRelu) v = float2{max_or_nan(v.x, 0.0f), max_or_nan(v.y, 0.0f)};
        if (conv.activation == ConvActivation::kSilu) silu2<T>(v.x, v.y);
        T* const to = out + pixel * out_stride + column;
        if (conv.out_pairs) {
          store2(to, v);
        } else {
          to[0] = from_float<T>(v.x);
          if (both) to[1] = from_float<T>(v.y);
        }
      }
    }
  }
}

template <typename T>
HYPERSEG_KERNEL(kConvThreads, 3)
pointwise_conv_kernel(ConvTable<T> table) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  int i = table.count - 1;
  while (i && static_cast<int>(blockIdx.x) < table.convs[i].begin) --i;
  const ConvProblem<T>& conv = table.convs[i];
  const unsigned block = blockIdx.x - conv.begin;
  if (conv.tile == kConvSmall) return convolve_tile<T, ConvSmall>(conv, block);
  if constexpr (sizeof(T) == 2) {
    if (conv.tile == kConvDirect) return convolve_directly<T>(conv, block);
    if (conv.tile == kConvTall) return convolve_tile<T, ConvTall>(conv, block);
    if (conv.tile == kConvWide) return convolve_tile<T, ConvWide>(conv, block);
  }
  convolve_tile<T, ConvSquare>(conv, block);
}

template <typename T>
HYPERSEG_KERNEL(kDeepThreads, 2)
deep_pointwise_conv_kernel(ConvProblem<T> conv) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  convolve_deep_tile<T>(conv, blockIdx.x);
}

// From the sums of parts of the depth to a map and its average: a block computes 32 channels of an image, of all pixels
// if there is an average, else of kSumsPixels.
constexpr int kSumsThreads = 256, kSumsLanes = 4, kSumsPixels = kSumsThreads / kSumsLanes;
constexpr int kSumsChannels = kSumsLanes * 8;

template <typename T>
struct ConvSumsProblem {
  const float* sums;
  const T* bias;
  T *out, *mean;
  int64_t split_stride;  // floats between two parts of the depth
  int splits, pixels, columns, stride, slices, groups;
  bool vectors;
};

template <typename T>
HYPERSEG_KERNEL(kSumsThreads, 4)
conv_sums_kernel(ConvSumsProblem<T> problem) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const unsigned rest = blockIdx.x / problem.slices;
  const int slice = blockIdx.x - rest * problem.slices;
  const int64_t image = rest / problem.groups;
  const int group = rest - static_cast<unsigned>(image) * problem.groups;
  const int lane = threadIdx.x % kSumsLanes, row = threadIdx.x / kSumsLanes;
  const int column = slice * kSumsChannels + lane * 8, count = problem.columns - column;
  const int end = problem.mean ? problem.pixels : min((group + 1) * kSumsPixels, problem.pixels);
  float bias[8], total[8] = {};
  load8(problem.bias + column, 1, count, bias);
  for (int pixel = group * kSumsPixels + row; pixel < end && count > 0; pixel += kSumsPixels) {
    const float* from = problem.sums + (image * problem.pixels + pixel) * problem.stride + column;
    float v[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = bias[e];
#pragma unroll 4
    for (int split = 0; split < problem.splits; ++split, from += problem.split_stride) {
      float part[8];
      load8(from, part);
#pragma unroll
      for (int e = 0; e < 8; ++e) v[e] += part[e];
    }
    activate<T>(ConvActivation::kRelu, v);
#pragma unroll
    for (int e = 0; e < 8; ++e) total[e] += v[e];
    if (problem.out)
      store_channels(problem.out + (image * problem.pixels + pixel) * problem.columns + column, problem.vectors, count,
                     v);
  }
  if (!problem.mean) return;
  float* shared = reinterpret_cast<float*>(shared_memory());
#pragma unroll
  for (int e = 0; e < 8; ++e) shared[row * (kSumsChannels + 1) + lane * 8 + e] = total[e];
  sync_block();
  const int channel = slice * kSumsChannels + threadIdx.x;
  if (threadIdx.x >= kSumsChannels || channel >= problem.columns) return;
  float sum = 0.0f;
#pragma unroll 16
  for (int i = 0; i < kSumsPixels; ++i) sum += shared[i * (kSumsChannels + 1) + threadIdx.x];
  problem.mean[image * problem.columns + channel] = from_float<T>(sum / problem.pixels);
}

}  // namespace hyperseg::cuda
