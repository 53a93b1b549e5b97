#pragma once

#include "common/map.h"
#include "cuda/device/activation.cuh"
#include "cuda/device/pipelined_gemm.cuh"
#include "cuda/encoder/mbconv_gate.cuh"
#include "cuda/encoder/mbconv_plan.h"

// The 1x1 convolutions of a block: expand with SiLU, and project the gated channels.
namespace hyperseg::cuda {

// The pixels of a map as the rows of a matrix.
template <typename S>
struct PixelRows {
  S* data = nullptr;
  int64_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0;
  int width = 0;
  bool vectors = false;  // eight channels are contiguous and 16-byte aligned, and stride_w steps through all pixels

  PixelRows() = default;
  explicit PixelRows(const Map<S>& map)
      : data(map.data),
        stride_n(map.stride_n),
        stride_c(map.stride_c),
        stride_h(map.stride_h),
        stride_w(map.stride_w),
        width(static_cast<int>(map.width)),
        vectors(in_vectors(map) && map.stride_h == map.width * map.stride_w) {}

  HYPERSEG_DEVICE S* at(int64_t n, int pixel) const {
    return data + n * stride_n + pixel / width * stride_h + pixel % width * stride_w;
  }
  // The same, for vectorized rows.
  HYPERSEG_DEVICE S* vector_at(int64_t n, int pixel) const { return data + n * stride_n + pixel * stride_w; }
};

template <typename T>
struct MbconvPointwise {
  PixelRows<const T> in;
  const T *weights, *bias;    // [columns, depth], [columns]
  SqueezeExciteGate<T> gate;  // factors of the channels of `in`
  PixelRows<const T> added;   // optional: added to the output
  PixelRows<T> out;           // channels after `columns` get the activation of 0
  int pixels, depth, columns, out_channels, row_tiles, column_tiles, stages_bytes;
  bool weight_vectors;  // whether rows of the weights and the bias are whole vectors
};

// Copy COUNT rows of a chunk of the depth to a stage in shared memory, 16 bytes per thread.
template <typename T, int COUNT, int THREADS>
struct Copier {
  static constexpr int kAtOnce = THREADS / 8;
  int valid, depth;      // number of rows, and of values per row
  const T* first;        // the thread's first value, for vectorized rows
  int64_t stride_bytes;  // between rows, likewise

  HYPERSEG_DEVICE void vectors(char* stage, int chunk) const {
    const int row = threadIdx.x / 8, part = threadIdx.x % 8;
    const int k = chunk * kChunk<T> + part * kVector<T>;
    if (k - part % 2 * kVector<T> >= depth) return;  // nothing is read of a step that begins beyond the depth
    const bool inside = k < depth;
    const char* from = reinterpret_cast<const char*>(first + chunk * kChunk<T>);
    char* to = stage + row * kRowBytes + part * 16;
#pragma unroll
    for (int i = 0; i < COUNT; i += kAtOnce, from += stride_bytes) {
      const bool here = inside && row + i < valid;
      copy_async(to + i * kRowBytes, here ? from : reinterpret_cast<const char*>(first), here);
    }
  }

  // at(row): its first value; the others are `stride` apart.
  template <typename At>
  HYPERSEG_DEVICE void values(char* stage, int chunk, int64_t stride, const At& at) const {
    const int k = chunk * kChunk<T> + threadIdx.x % 8 * kVector<T>;
#pragma unroll 1
    for (int row = threadIdx.x / 8; row < COUNT; row += kAtOnce) {
      T* to = reinterpret_cast<T*>(stage + row * kRowBytes + threadIdx.x % 8 * 16);
      const T* from = row < valid ? at(row) : nullptr;
#pragma unroll 1
      for (int e = 0; e < kVector<T>; ++e) to[e] = from && k + e < depth ? from[(k + e) * stride] : from_float<T>(0.0f);
    }
  }
};

// Shared memory after the stages: gates for whole chunks of the depth, and the workspace to compute them.
template <typename T>
struct Gates {
  HYPERSEG_HOST_DEVICE static int padded(int depth) { return (depth + kChunk<T> - 1) / kChunk<T> * kChunk<T>; }
  HYPERSEG_HOST_DEVICE static size_t bytes(int depth) { return padded(depth) * sizeof(T); }
};

// PROJECT: gated input, no activation, optional residual. Otherwise: SiLU and no residual.
template <typename T, typename TILE, bool PROJECT>
HYPERSEG_KERNEL(TILE::kThreads, 3)
mbconv_pointwise_kernel(MbconvPointwise<T> problem) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int thread = threadIdx.x;
  // Tiles of the same pixels are adjacent, so that all but the first find their input in the cache.
  const unsigned tile = blockIdx.x / problem.column_tiles;
  const int64_t image = tile / problem.row_tiles;
  const int first_column = blockIdx.x % problem.column_tiles * TILE::kColumns;
  const int first_pixel = tile % problem.row_tiles * TILE::kRows;
  const T* weights = problem.weights + static_cast<int64_t>(first_column) * problem.depth;

  using Pixels = Copier<T, TILE::kRows, TILE::kThreads>;
  using Columns = Copier<T, TILE::kColumns, TILE::kThreads>;
  constexpr int64_t kBytes = sizeof(T) * Pixels::kAtOnce;
  const int side = thread / 8, part = thread % 8 * kVector<T>;
  const Pixels copy_pixels{problem.pixels - first_pixel, problem.depth,
                           problem.in.vector_at(image, first_pixel + side) + part, kBytes * problem.in.stride_w};
  const Columns copy_weights{problem.columns - first_column, problem.depth,
                             weights + static_cast<int64_t>(side) * problem.depth + part, kBytes * problem.depth};
  const auto load = [&](int chunk, char* stage) {
    if (problem.in.vectors)
      copy_pixels.vectors(stage, chunk);
    else
      copy_pixels.values(stage, chunk, problem.in.stride_c,
                         [&](int row) { return problem.in.at(image, first_pixel + row); });
    stage += TILE::kRows * kRowBytes;
    if (problem.weight_vectors)
      copy_weights.vectors(stage, chunk);
    else
      copy_weights.values(stage, chunk, 1,
                          [&](int row) { return weights + static_cast<int64_t>(row) * problem.depth; });
  };
  char* const after_stages = shared_memory() + problem.stages_bytes;
  const auto gates = [&] {
    T* to = reinterpret_cast<T*>(after_stages);
    const int padded = Gates<T>::padded(problem.depth);
    if (!problem.gate.gates)
      return gates_of<TILE::kThreads>(problem.gate, image, to, padded,
                                      reinterpret_cast<float*>(after_stages + Gates<T>::bytes(problem.depth)));
    const T* from = problem.gate.gates + image * problem.gate.stride;
    for (int k = thread; k < padded; k += TILE::kThreads) to[k] = k < problem.depth ? from[k] : from_float<T>(0.0f);
  };

  // Start the loads of the residual, if vectorized, so that they arrive during the GEMM.
  constexpr int kAcross = TILE::kColumns / 8, kDown = TILE::kThreads / kAcross, kPasses = TILE::kRows / kDown;
  const int inside = thread % kAcross * 8, column = first_column + inside, count = problem.out_channels - column;
  const int first_row = TILE::row_of_group(thread / kAcross);
  const bool vector_bias = problem.weight_vectors && column < problem.columns;
  const bool added_vectors = PROJECT && problem.added.vectors && count > 0;
  Packed8<T> packed_bias, added[kPasses];
  if (vector_bias) packed_bias.load(problem.bias + column);
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int pixel = first_pixel + first_row + pass * kDown;
    if (added_vectors && pixel < problem.pixels) added[pass].load(problem.added.vector_at(image, pixel) + column);
  }

  const float* sums = multiply_tile<T, TILE, PROJECT>(problem.depth, problem.pixels - first_pixel,
                                                      problem.columns - first_column, load, after_stages, gates);
  if (count <= 0) return;
  float bias[8];
  if (vector_bias)
    packed_bias.unpack_to(bias);
  else
    load8(problem.bias + column, 1, problem.columns - column, bias);
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int row = first_row + pass * kDown, pixel = first_pixel + row;
    if (pixel >= problem.pixels) break;
    float v[8], more[8];
    load8(sums + TILE::staged(row, inside), v);
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] += bias[e];
#pragma unroll
    for (int i = 1; i < TILE::kDepthWarps; ++i) {
      load8(sums + i * TILE::kStaged + TILE::staged(row, inside), more);
#pragma unroll
      for (int e = 0; e < 8; ++e) v[e] += more[e];
    }
    if (PROJECT && problem.added.data) {
      if (added_vectors)
        added[pass].unpack_to(more);
      else
        load8(problem.added.at(image, pixel) + column * problem.added.stride_c, problem.added.stride_c, count, more);
#pragma unroll
      for (int e = 0; e < 8; ++e) v[e] += more[e];
    }
    if constexpr (!PROJECT) {
#pragma unroll
      for (int e = 0; e < 8; e += 2) silu2<T>(v[e], v[e + 1]);
    }
    if (problem.out.vectors) {
      store8(problem.out.vector_at(image, pixel) + column, v);
    } else {
      T* out = problem.out.at(image, pixel) + column * problem.out.stride_c;
#pragma unroll
      for (int e = 0; e < 8; ++e)
        if (e < count) out[e * problem.out.stride_c] = from_float<T>(v[e]);
    }
  }
}

}  // namespace hyperseg::cuda
