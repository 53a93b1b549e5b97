#pragma once

#include "common/map.h"
#include "cuda/device/activation.cuh"
#include "cuda/device/grid_barrier.cuh"
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
  bool weight_vectors;   // whether rows of the weights and the bias are whole vectors
  bool constants_ready;  // see common/constants.h
  unsigned* barrier;     // optional: set to 0, for a kernel that follows
};

// Copy COUNT rows of a chunk of the depth to a stage in shared memory, 16 bytes per thread.
template <typename T, int COUNT, int THREADS>
struct Copier {
  static constexpr int kAtOnce = THREADS / 8;
  int valid, depth;      // number of rows, and of values per row
  const T* first;        // the thread's first value, for vectorized rows
  int64_t stride_bytes;  // between rows, likewise
  int thread = threadIdx.x;

  HYPERSEG_DEVICE void vectors(char* stage, int chunk) const {
    const int row = thread / 8, part = thread % 8;
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
    const int k = chunk * kChunk<T> + thread % 8 * kVector<T>;
#pragma unroll 1
    for (int row = thread / 8; row < COUNT; row += kAtOnce) {
      T* to = reinterpret_cast<T*>(stage + row * kRowBytes + thread % 8 * 16);
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

// A tile of a 1x1 convolution. PROJECT: gated input, no activation, optional residual. Otherwise: SiLU and no residual.
template <typename T, typename TILE, bool PROJECT>
class PointwiseTile {
 public:
  // Tiles of the same pixels are adjacent, so that all but the first find their input in the cache.
  HYPERSEG_DEVICE PointwiseTile(const MbconvPointwise<T>& problem, unsigned index, int thread)
      : problem_(problem),
        thread_(thread),
        image_(index / problem.column_tiles / problem.row_tiles),
        first_column_(index % problem.column_tiles * TILE::kColumns),
        first_pixel_(index / problem.column_tiles % problem.row_tiles * TILE::kRows),
        weights_(problem.weights + static_cast<int64_t>(first_column_) * problem.depth) {}

  // Start to copy the weights of the first stages. run() waits for them.
  HYPERSEG_DEVICE void stage_weights() const {
    if (!problem_.weight_vectors) return;
    const auto copy = weight_copier();
    for_each_first_chunk<T, TILE>(
        problem_.depth, [&](int chunk, char* stage) { copy.vectors(stage + TILE::kRows * kRowBytes, chunk); });
  }

  HYPERSEG_DEVICE void run() const {
    constexpr int64_t kBytes = sizeof(T) * Pixels::kAtOnce;
    const int thread = thread_;
    const Pixels copy_pixels{problem_.pixels - first_pixel_, problem_.depth,
                             problem_.in.vector_at(image_, first_pixel_ + thread / 8) + thread % 8 * kVector<T>,
                             kBytes * problem_.in.stride_w, thread};
    const Columns copy_weights = weight_copier();
    const auto load_pixels = [&](int chunk, char* stage) {
      if (problem_.in.vectors)
        copy_pixels.vectors(stage, chunk);
      else
        copy_pixels.values(stage, chunk, problem_.in.stride_c,
                           [&](int row) { return problem_.in.at(image_, first_pixel_ + row); });
    };
    const auto load_first = [&](int chunk, char* stage) {
      load_pixels(chunk, stage);
      if (!problem_.weight_vectors)
        copy_weights.values(stage + TILE::kRows * kRowBytes, chunk, 1,
                            [&](int row) { return weights_ + static_cast<int64_t>(row) * problem_.depth; });
    };
    const auto load = [&](int chunk, char* stage) {
      load_first(chunk, stage);
      if (problem_.weight_vectors) copy_weights.vectors(stage + TILE::kRows * kRowBytes, chunk);
    };
    char* const after_stages = shared_memory() + problem_.stages_bytes;
    const auto gates = [&] {
      T* to = reinterpret_cast<T*>(after_stages);
      const int padded = Gates<T>::padded(problem_.depth);
      if (!problem_.gate.gates)
        return gates_of<TILE::kThreads>(problem_.gate, thread, image_, to, padded,
                                        reinterpret_cast<float*>(after_stages + Gates<T>::bytes(problem_.depth)));
      const T* from = problem_.gate.gates + image_ * problem_.gate.stride;
      for (int k = thread; k < padded; k += TILE::kThreads) to[k] = k < problem_.depth ? from[k] : from_float<T>(0.0f);
    };

    // Start the loads of the residual, if vectorized, so that they arrive during the GEMM.
    constexpr int kAcross = TILE::kColumns / 8, kDown = TILE::kThreads / kAcross;
    constexpr int kPasses = (TILE::kRows + kDown - 1) / kDown;
    const int inside = thread % kAcross * 8, column = first_column_ + inside, count = problem_.out_channels - column;
    const int first_row = TILE::row_of_group(thread / kAcross);
    const bool vector_bias = problem_.weight_vectors && column < problem_.columns;
    const bool added_vectors = PROJECT && problem_.added.vectors && count > 0;
    Packed8<T> packed_bias, added[kPasses];
    if (vector_bias) packed_bias.load(problem_.bias + column);
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int pixel = first_pixel_ + first_row + pass * kDown;
      if (added_vectors && first_row < TILE::kRows && pixel < problem_.pixels)
        added[pass].load(problem_.added.vector_at(image_, pixel) + column);
    }

    const float* sums = multiply_tile<T, TILE, PROJECT>(problem_.depth, problem_.pixels - first_pixel_,
                                                        problem_.columns - first_column_, load_first, load,
                                                        after_stages, gates, thread);
    if (count <= 0 || first_row >= TILE::kRows) return;
    float bias[8];
    if (vector_bias)
      packed_bias.unpack_to(bias);
    else
      load8(problem_.bias + column, 1, problem_.columns - column, bias);
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int row = first_row + pass * kDown, pixel = first_pixel_ + row;
      if (pixel >= problem_.pixels) break;
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
      if (PROJECT && problem_.added.data) {
        if (added_vectors)
          added[pass].unpack_to(more);
        else
          load8(problem_.added.at(image_, pixel) + column * problem_.added.stride_c, problem_.added.stride_c, count,
                more);
#pragma unroll
        for (int e = 0; e < 8; ++e) v[e] += more[e];
      }
      if constexpr (!PROJECT) {
#pragma unroll
        for (int e = 0; e < 8; e += 2) silu2<T>(v[e], v[e + 1]);
      }
      if (problem_.out.vectors) {
        store8(problem_.out.vector_at(image_, pixel) + column, v);
      } else {
        T* out = problem_.out.at(image_, pixel) + column * problem_.out.stride_c;
#pragma unroll
        for (int e = 0; e < 8; ++e)
          if (e < count) out[e * problem_.out.stride_c] = from_float<T>(v[e]);
      }
    }
  }

 private:
  using Pixels = Copier<T, TILE::kRows, TILE::kThreads>;
  using Columns = Copier<T, TILE::kColumns, TILE::kThreads>;

  HYPERSEG_DEVICE Columns weight_copier() const {
    const int side = thread_ / 8, part = thread_ % 8 * kVector<T>;
    return {problem_.columns - first_column_, problem_.depth,
            weights_ + static_cast<int64_t>(side) * problem_.depth + part,
            int64_t{sizeof(T)} * Columns::kAtOnce * problem_.depth, thread_};
  }

  const MbconvPointwise<T>& problem_;
  int thread_;
  int64_t image_;
  int first_column_, first_pixel_;
  const T* weights_;
};

template <typename T, typename TILE, bool PROJECT>
HYPERSEG_KERNEL(TILE::kThreads, 3)
mbconv_pointwise_kernel(MbconvPointwise<T> problem) {
  const PointwiseTile<T, TILE, PROJECT> tile(problem, blockIdx.x, threadIdx.x);
  stage_constants_and_wait(problem.constants_ready, [&] { tile.stage_weights(); });
  if (!PROJECT) clear(problem.barrier);
  tile.run();
}

}  // namespace hyperseg::cuda
