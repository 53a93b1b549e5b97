#pragma once

#include "../common/map.h"
#include "activation.cuh"
#include "matrix.cuh"

// The 1x1 convolutions of a block: expand with SiLU, and project what is gated.
namespace hyperseg::cuda {

// The pixels of a map as the rows of a matrix.
template <typename S>
struct Rows {
  S* data = nullptr;
  int64_t stride_n = 0, stride_c = 0, stride_h = 0, stride_w = 0;
  int width = 0;         // 0: one stride leads through all pixels, and no division is needed
  bool vectors = false;  // eight channels lie side by side, on 16 bytes

  Rows() = default;
  explicit Rows(const Map<S>& map)
      : data(map.data),
        stride_n(map.stride_n),
        stride_c(map.stride_c),
        stride_h(map.stride_h),
        stride_w(map.stride_w),
        width(map.stride_h == map.width * map.stride_w ? 0 : static_cast<int>(map.width)),
        vectors(in_vectors(map)) {}

  static bool in_vectors(const Map<S>& map) {
    return map.stride_c == 1 && map.channels % 8 == 0 && map.stride_n % 8 == 0 && map.stride_h % 8 == 0 &&
           map.stride_w % 8 == 0 && reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
  }

  HYPERSEG_DEVICE S* at(int64_t n, int pixel) const {
    const int64_t inside = width ? pixel / width * stride_h + pixel % width * stride_w : pixel * stride_w;
    return data + n * stride_n + inside;
  }
};

template <typename T>
struct Pointwise {
  Rows<const T> in;
  const T *weights, *bias;  // [columns, depth], [columns]
  const T* gates;           // [images, gates_stride], multiply the channels of `in`
  Rows<const T> added;      // to the result, where there is any
  Rows<T> out;              // of which channels beyond `columns` get the activation of 0
  int pixels, depth, columns, out_channels, row_tiles, column_tiles;
  int64_t gates_stride;
  bool weight_vectors;  // rows of the weights and the bias are whole vectors
};

// PROJECT: the input is gated, and there is no activation. Otherwise SiLU and nothing to add.
template <typename T, typename TILE, bool PROJECT>
HYPERSEG_KERNEL(TILE::kThreads, 3)
mbconv_pointwise_kernel(Pointwise<T> problem) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  constexpr int kSide = TILE::kThreads / 8;  // rows that the threads copy at once, a vector of 16 bytes each
  constexpr int kRows = TILE::kRows / kSide, kColumns = TILE::kColumns / kSide;
  const int thread = threadIdx.x, side = thread / 8, vector = thread % 8 * kVector<T>;
  // Tiles of the same pixels follow one another: what the first of them reads the others find in the cache.
  const unsigned tile = blockIdx.x / problem.column_tiles, image = tile / problem.row_tiles;
  const int first_column = blockIdx.x % problem.column_tiles * TILE::kColumns;
  const int first_pixel = tile % problem.row_tiles * TILE::kRows;

  const T *rows[kRows], *columns[kColumns];  // null where there are none
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int pixel = first_pixel + side + i * kSide;
    rows[i] = pixel < problem.pixels ? problem.in.at(image, pixel) : nullptr;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const int column = first_column + side + i * kSide;
    columns[i] = column < problem.columns ? problem.weights + static_cast<int64_t>(column) * problem.depth : nullptr;
  }
  const auto copy = [&](char* to, const T* from, int64_t stride, bool vectors, int k) {
    const bool valid = from && k < problem.depth;
    if (vectors) {
      copy_async(to, valid ? from + k : problem.in.data, valid);
    } else {
#pragma unroll
      for (int e = 0; e < kVector<T>; ++e)
        reinterpret_cast<T*>(to)[e] = valid && k + e < problem.depth ? from[(k + e) * stride] : from_float<T>(0.0f);
    }
  };
  const auto load = [&](int chunk, char* stage) {
    const int k = chunk * kChunk<T> + vector;
    char* to = stage + side * kRowBytes + thread % 8 * 16;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      copy(to + i * kSide * kRowBytes, rows[i], problem.in.stride_c, problem.in.vectors, k);
#pragma unroll
    for (int i = 0; i < kColumns; ++i)
      copy(to + (TILE::kRows + i * kSide) * kRowBytes, columns[i], 1, problem.weight_vectors, k);
    if (PROJECT && side == 0)
      copy(to + (TILE::kRows + TILE::kColumns) * kRowBytes, problem.gates + image * problem.gates_stride, 1, true, k);
  };
  const float* sums = multiply_tile<T, TILE, PROJECT>(problem.depth, problem.pixels - first_pixel,
                                                      problem.columns - first_column, load);

  constexpr int kAcross = TILE::kColumns / 8;
  const int inside = thread % kAcross * 8, column = first_column + inside;
  if (column >= problem.out_channels) return;
  float bias[8];
  if (problem.weight_vectors && column < problem.columns)
    load8(problem.bias + column, bias);
  else
    load8(problem.bias + column, 1, problem.columns - column, bias);
  for (int row = TILE::row_of_group(thread / kAcross); row < TILE::kRows; row += TILE::kThreads / kAcross) {
    const int pixel = first_pixel + row;
    if (pixel >= problem.pixels) break;
    float values[8], more[8];
    load8(sums + TILE::staged(row, inside), values);
#pragma unroll
    for (int part = 1; part < TILE::kDepthWarps; ++part) {
      load8(sums + part * TILE::kStaged + TILE::staged(row, inside), more);
#pragma unroll
      for (int e = 0; e < 8; ++e) values[e] += more[e];
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) values[e] += bias[e];
    if constexpr (!PROJECT) {
#pragma unroll
      for (int e = 0; e < 8; e += 2) silu2<T>(values[e], values[e + 1]);
    }
    const int count = problem.out_channels - column;
    if (PROJECT && problem.added.data) {
      const T* added = problem.added.at(image, pixel) + column * problem.added.stride_c;
      if (problem.added.vectors)
        load8(added, more);
      else
        load8(added, problem.added.stride_c, count, more);
#pragma unroll
      for (int e = 0; e < 8; ++e) values[e] += more[e];
    }
    T* out = problem.out.at(image, pixel) + column * problem.out.stride_c;
    if (problem.out.vectors) {
      store8(out, values);
    } else {
#pragma unroll
      for (int e = 0; e < 8; ++e)
        if (e < count) out[e * problem.out.stride_c] = from_float<T>(values[e]);
    }
  }
}

}  // namespace hyperseg::cuda
