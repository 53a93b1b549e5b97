#pragma once

#include "../common/map.h"
#include "activation.cuh"
#include "vectors.cuh"

// The depthwise convolution of a block with SiLU, and what each tile of it adds to the squeezed channels: a mean over
// pixels and a product with `reduce` are sums over both pixels and channels, of which a block has its part.
namespace hyperseg::cuda {

constexpr int kSlice = 32;                     // channels of a block; a thread has two of them
constexpr int kRun = 4;                        // its outputs are kRun x kRun pixels
constexpr int kRunsAcross = 4, kRunsDown = 2;  // so many threads side by side, and below one another, are a tile
constexpr int kDepthwiseThreads = kRunsAcross * kRunsDown * kSlice / 2;

template <typename T>
struct Depthwise {
  Map<const T> in;
  const T *weights, *bias, *reduce;  // [channels, size, size], [channels], [squeezed, channels]
  T* out;                            // [images, height, width, stride of a pixel]; zeros beyond the channels
  float* partials;                   // [images, groups * slices, squeezed]
  int64_t out_stride;
  int height, width, channels, squeezed, size, stride, top, left, tiles_down, tiles, steps, groups, slices;
  int staged;       // rows of `reduce` that are copied to shared memory: all or none
  bool in_vectors;  // eight channels may be copied at once
};

// The input of a tile in shared memory, for a convolution of known size and stride. After the columns that a thread
// begins with, one is left out: the halves of a warp, which have neighbouring runs, are in different banks.
template <int SIZE, int STRIDE>
struct Window {
  static constexpr int kRows = (kRunsDown * kRun - 1) * STRIDE + SIZE,
                       kColumns = (kRunsAcross * kRun - 1) * STRIDE + SIZE;
  HYPERSEG_ANYWHERE static constexpr int slot(int column) { return column + column / (kRun * STRIDE); }
  static constexpr int kPitch = slot(kColumns - 1) + 1;
  static constexpr int kValues = kRows * kPitch * kSlice;
};
template <>
struct Window<0, 0> {
  static constexpr int kValues = 0;
};

template <typename T>
int64_t depthwise_shared_bytes(int64_t size, int64_t window, int64_t staged) {
  return 4 * (size * size + kRunsAcross * kRunsDown) * kSlice + (window + staged * kSlice) * sizeof(T);
}

// Copies the window of a tile whose first value is at (y, x), zeros around the map.
template <typename T, typename W>
HYPERSEG_DEVICE void copy_window(const Map<const T>& in, bool vectors, int64_t n, int first, int y, int x, T* window) {
  constexpr int kVectors = kSlice / kVector<T>;
  const int part = threadIdx.x % kVectors * kVector<T>, c = first + part;
  // Columns by threads and rows by steps: no index is divided.
  for (int column = threadIdx.x / kVectors; column < W::kColumns; column += kDepthwiseThreads / kVectors) {
    const bool inside = x + column >= 0 && x + column < in.width && c < in.channels;
    T* to = window + W::slot(column) * kSlice + part;
    const T* from = in.at(n, c, y, x + column);
#pragma unroll 2
    for (int row = 0; row < W::kRows; ++row, to += W::kPitch * kSlice, from += in.stride_h) {
      const bool valid = inside && y + row >= 0 && y + row < in.height;
      if (vectors) {
        copy_async(to, valid ? from : in.data, valid);
      } else {
#pragma unroll 1
        for (int e = 0; e < kVector<T>; ++e)
          to[e] = valid && c + e < in.channels ? from[e * in.stride_c] : from_float<T>(0.0f);
      }
    }
  }
}

// SIZE and STRIDE 0: whatever the problem says, without a window.
template <typename T, int SIZE, int STRIDE>
HYPERSEG_KERNEL(kDepthwiseThreads, 4)
mbconv_depthwise_kernel(Depthwise<T> problem) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  using W = Window<SIZE, STRIDE>;
  const int size = SIZE ? SIZE : problem.size, stride = SIZE ? STRIDE : problem.stride;
  const int thread = threadIdx.x, pair = thread % (kSlice / 2) * 2, run = thread / (kSlice / 2);
  const int run_y = run / kRunsAcross * kRun, run_x = run % kRunsAcross * kRun;
  const int slice = blockIdx.x % problem.slices, group = blockIdx.x / problem.slices % problem.groups;
  const int64_t n = blockIdx.x / problem.slices / problem.groups;
  const int first = slice * kSlice, c = first + pair;
  float* weights = reinterpret_cast<float*>(shared_memory());  // [size * size, kSlice]
  float* totals = weights + size * size * kSlice;              // [kRunsAcross * kRunsDown, kSlice]
  T* staged_reduce = reinterpret_cast<T*>(totals + kRunsAcross * kRunsDown * kSlice);  // [staged, kSlice]
  T* window = staged_reduce + problem.staged * kSlice;
  const T* bias = problem.bias + c;
  const float2 start{c < problem.channels ? to_float(bias[0]) : 0.0f,
                     c + 1 < problem.channels ? to_float(bias[1]) : 0.0f};
  float2 total{0.0f, 0.0f};

  // What comes of a sum, of a pixel of the map.
  const auto finish = [&](T* to, float2 v) {
    silu2<T>(v.x, v.y);
    total.x += v.x, total.y += v.y;
    store2(to, v);
  };

  for (int step = 0; step < problem.steps; ++step) {
    // Down the map: the rows that two tiles share are still in the cache.
    const int tile = group * problem.steps + step;
    if (tile >= problem.tiles) break;
    const int top = tile % problem.tiles_down * kRunsDown * kRun, left = tile / problem.tiles_down * kRunsAcross * kRun;
    if (step) sync_block();  // everybody is done with the window
    if constexpr (SIZE > 0)
      copy_window<T, W>(problem.in, problem.in_vectors, n, first, top * STRIDE - problem.top,
                        left * STRIDE - problem.left, window);
    if (!step) {
      constexpr int kVectors = kSlice / kVector<T>;
      for (int i = thread; i < problem.staged * kVectors; i += kDepthwiseThreads) {
        const int channel = i % kVectors * kVector<T>;
        const bool valid = first + channel < problem.channels;
        const T* from = problem.reduce + static_cast<int64_t>(i / kVectors) * problem.channels + first + channel;
        copy_async(staged_reduce + i * kVector<T>, valid ? from : problem.reduce, valid);
      }
      for (int i = thread; i < size * size * kSlice; i += kDepthwiseThreads) {
        const int channel = i / (size * size), tap = i % (size * size);
        weights[tap * kSlice + channel] = first + channel < problem.channels
                                              ? to_float(problem.weights[static_cast<int64_t>(first) * size * size + i])
                                              : 0.0f;
      }
    }
    close_copies();
    wait_for_copies<0>();
    sync_block();

    if (c >= problem.out_stride) continue;
    const int y = top + run_y, x = left + run_x;
    T* out = problem.out + ((n * problem.height + y) * problem.width + x) * problem.out_stride + c;
    const int64_t next_row = problem.width * problem.out_stride;
    if constexpr (SIZE > 0) {
      float2 taps[SIZE][SIZE], sums[kRun][kRun];
#pragma unroll
      for (int i = 0; i < SIZE * SIZE; ++i) taps[i / SIZE][i % SIZE] = load2(weights + i * kSlice + pair);
#pragma unroll
      for (int i = 0; i < kRun * kRun; ++i) sums[i / kRun][i % kRun] = start;
      const T* from = window + (run_y * STRIDE * W::kPitch + W::slot(run_x * STRIDE)) * kSlice + pair;
#pragma unroll
      for (int row = 0; row < (kRun - 1) * STRIDE + SIZE; ++row) {
        float2 values[(kRun - 1) * STRIDE + SIZE];
#pragma unroll
        for (int column = 0; column < (kRun - 1) * STRIDE + SIZE; ++column)
          values[column] = load2(from + (row * W::kPitch + W::slot(column)) * kSlice);
#pragma unroll
        for (int j = 0; j < kRun; ++j) {
          const int dy = row - j * STRIDE;
          if (dy < 0 || dy >= SIZE) continue;
#pragma unroll
          for (int i = 0; i < kRun; ++i)
#pragma unroll
            for (int dx = 0; dx < SIZE; ++dx) {
              sums[j][i].x += taps[dy][dx].x * values[i * STRIDE + dx].x;
              sums[j][i].y += taps[dy][dx].y * values[i * STRIDE + dx].y;
            }
        }
      }
#pragma unroll
      for (int j = 0; j < kRun; ++j) {
        if (y + j >= problem.height) break;
        T* to = out + j * next_row;
#pragma unroll
        for (int i = 0; i < kRun; ++i, to += problem.out_stride)
          if (x + i < problem.width) finish(to, sums[j][i]);
      }
    } else {
      const auto value = [&](const T* at, int channel) {
        return channel < problem.in.channels ? to_float(at[(channel - c) * problem.in.stride_c]) : 0.0f;
      };
#pragma unroll 1
      for (int i = 0; i < kRun * kRun; ++i) {
        if (y + i / kRun >= problem.height || x + i % kRun >= problem.width) continue;
        float2 sum = start;
        for (int tap = 0; tap < size * size; ++tap) {
          const int in_y = (y + i / kRun) * stride - problem.top + tap / size;
          const int in_x = (x + i % kRun) * stride - problem.left + tap % size;
          if (in_y < 0 || in_y >= problem.in.height || in_x < 0 || in_x >= problem.in.width) continue;
          const T* at = problem.in.at(n, c, in_y, in_x);
          const float2 weight = load2(weights + tap * kSlice + pair);
          sum.x += weight.x * value(at, c);
          sum.y += weight.y * value(at, c + 1);
        }
        finish(out + i / kRun * next_row + i % kRun * problem.out_stride, sum);
      }
    }
  }

  store2(totals + run * kSlice + pair, total);
  sync_block();
  if (thread < kSlice) {
    float sum = 0.0f;
    for (int i = 0; i < kRunsAcross * kRunsDown; ++i) sum += totals[i * kSlice + thread];
    totals[thread] = sum;
  }
  sync_block();
  float* partials = problem.partials + ((n * problem.groups + group) * problem.slices + slice) * problem.squeezed;
  const int part = thread % 4 * 8, count = problem.channels - first - part;  // four threads a squeezed channel
  for (int begin = 0; begin < problem.squeezed; begin += kDepthwiseThreads / 4) {
    const int s = begin + thread / 4;
    float product = 0.0f;
    if (s < problem.squeezed) {
      float reduce[8];
      if (problem.staged)
        load8(staged_reduce + s * kSlice + part, reduce);
      else
        load8(problem.reduce + static_cast<int64_t>(s) * problem.channels + first + part, 1, count, reduce);
#pragma unroll
      for (int e = 0; e < 8; ++e) product += reduce[e] * totals[part + e];
    }
    product += shuffle_xor(product, 1);
    product += shuffle_xor(product, 2);
    if (part == 0 && s < problem.squeezed) partials[s] = product;
  }
}

}  // namespace hyperseg::cuda
