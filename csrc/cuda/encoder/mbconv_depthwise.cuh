#pragma once

#include "common/map.h"
#include "cuda/device/activation.cuh"
#include "cuda/device/fast_divmod.h"
#include "cuda/device/grid_barrier.cuh"
#include "cuda/device/vectors.cuh"
#include "cuda/encoder/mbconv_plan.h"

// The depthwise convolution of a block with SiLU, and each tile's contribution to the squeezed channels: the mean over
// pixels and the multiplication with `reduce` are sums over pixels and channels, of which a block computes its share.
namespace hyperseg::cuda {

template <typename T>
struct MbconvDepthwise {
  Map<const T> in;
  const T *weights, *bias, *reduce;  // [channels, size, size], [channels], [squeezed, channels]
  T* out;                            // [images, height, width, stride per pixel]; zero-padded channels
  float* partials;                   // [images, groups * slices, squeezed]
  int64_t out_stride;
  int height, width, channels, squeezed, size, stride, top, left, tiles, steps;
  FastDivmod by_slices, by_groups, by_tiles_down;
  int staged;            // rows of `reduce` in shared memory: all or none
  bool in_vectors;       // whether eight channels can be copied at once
  bool constants_ready;  // see common/constants.h
  unsigned* barrier;     // optional: set to 0, for a kernel that follows
};

// Copy the window of a tile whose first value is at (y, x), with zeros around the map.
template <typename T, typename W>
HYPERSEG_DEVICE void copy_window(const Map<const T>& in, bool vectors, int64_t n, int first, int y, int x, T* window,
                                 int thread) {
  constexpr int kVectors = kSlice / kVector<T>;
  const int part = thread % kVectors * kVector<T>, c = first + part;
  // Threads go along columns and steps along rows, which avoids divisions of indices.
  for (int column = thread / kVectors; column < W::kColumns; column += kDepthwiseThreads / kVectors) {
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

// What a block computes: a slice of the channels of a group of tiles of an image. Tiles go down the map, so that the
// rows that two of them share are still in the cache.
struct BlockTiles {
  int slice, image, first, end;  // first and last tile

  template <typename T>
  HYPERSEG_DEVICE BlockTiles(const MbconvDepthwise<T>& problem, unsigned index) {
    const int group = problem.by_slices.quotient(static_cast<int>(index));
    slice = static_cast<int>(index) - group * problem.by_slices.value();
    image = problem.by_groups.quotient(group);
    first = (group - image * problem.by_groups.value()) * problem.steps;
    end = min(first + problem.steps, problem.tiles);
  }
  // The first output of a tile of ROWS rows.
  template <int ROWS, typename T>
  HYPERSEG_DEVICE static void place(const MbconvDepthwise<T>& problem, int tile, int& top, int& left) {
    const int across = problem.by_tiles_down.quotient(tile);
    top = (tile - across * problem.by_tiles_down.value()) * ROWS, left = across * kTileColumns;
  }
};

// Start to copy the rows of `reduce` that a block keeps in shared memory.
template <typename T, int THREADS>
HYPERSEG_DEVICE void stage_reduce(const MbconvDepthwise<T>& problem, int first, T* reduce, int thread) {
  constexpr int kVectors = kSlice / kVector<T>;
  for (int i = thread; i < problem.staged * kVectors; i += THREADS) {
    const int channel = i % kVectors * kVector<T>;
    const bool valid = first + channel < problem.channels;
    const T* from = problem.reduce + static_cast<int64_t>(i / kVectors) * problem.channels + first + channel;
    copy_async(reduce + i * kVector<T>, valid ? from : problem.reduce, valid);
  }
}

// Write the share of block `index` of the squeezed channels, from the totals of its channels.
template <typename T, int THREADS>
HYPERSEG_DEVICE void squeeze_totals(const MbconvDepthwise<T>& problem, int first, unsigned index, const T* reduce,
                                    const float* totals, int thread) {
  float* partials = problem.partials + static_cast<int64_t>(index) * problem.squeezed;
  const int part = thread % 4 * 8, count = problem.channels - first - part;  // four threads per squeezed channel
  for (int begin = 0; begin < problem.squeezed; begin += THREADS / 4) {
    const int s = begin + thread / 4;
    float dot = 0.0f;
    if (s < problem.squeezed) {
      float factors[8];
      if (problem.staged)
        load8(reduce + s * kSlice + part, factors);
      else
        load8(problem.reduce + static_cast<int64_t>(s) * problem.channels + first + part, 1, count, factors);
#pragma unroll
      for (int e = 0; e < 8; ++e) dot += factors[e] * totals[part + e];
    }
    dot += shuffle_xor(dot, 1);
    dot += shuffle_xor(dot, 2);
    if (part == 0 && s < problem.squeezed) partials[s] = dot;
  }
}

// The work of a block on its slice of the channels, from the window in shared memory on. With SIZE and STRIDE 0 the
// sizes are read from the arguments and there is no window.
template <typename T, int SIZE, int STRIDE>
class Slice {
 public:
  using Share = Runs;
  int thread;
  BlockTiles of;
  int first;  // channel
  T* window;

  HYPERSEG_DEVICE Slice(const MbconvDepthwise<T>& problem, unsigned index, int thread_)
      : thread(thread_),
        of(problem, index),
        first(of.slice * kSlice),
        problem_(problem),
        size_(SIZE ? SIZE : problem.size),
        stride_(SIZE ? STRIDE : problem.stride),
        index_(index) {
    weights_ = reinterpret_cast<float*>(shared_memory());
    bias_ = weights_ + size_ * size_ * kSlice;
    totals_ = bias_ + kSlice;
    reduce_ = reinterpret_cast<T*>(totals_ + Share::kCount * kSlice);
    window = reduce_ + problem.staged * kSlice;
  }

  // Start to stage the operands that do not depend on the tile.
  HYPERSEG_DEVICE void stage() {
    stage_reduce<T, kDepthwiseThreads>(problem_, first, reduce_, thread);
    for (int i = thread; i < size_ * size_ * kSlice; i += kDepthwiseThreads) {
      const int channel = i / (size_ * size_), tap = i % (size_ * size_);
      weights_[tap * kSlice + channel] =
          first + channel < problem_.channels
              ? to_float(problem_.weights[static_cast<int64_t>(first) * size_ * size_ + i])
              : 0.0f;
    }
    const int own = first + thread;
    if (thread < kSlice) bias_[thread] = own < problem_.channels ? to_float(problem_.bias[own]) : 0.0f;
  }

  // Compute the outputs of a tile and add them to the totals.
  HYPERSEG_DEVICE void filter(int top, int left) {
    const int run_y = run() / kRunsAcross * Share::kRows, run_x = run() % kRunsAcross * kRun;
    const int c = first + pair(), y = top + run_y, x = left + run_x;
    if (c >= problem_.out_stride) return;
    T* out = problem_.out +
             ((static_cast<int64_t>(of.image) * problem_.height + y) * problem_.width + x) * problem_.out_stride + c;
    const int64_t next_row = problem_.width * problem_.out_stride;
    const float2 start = load2(bias_ + pair());
    if constexpr (SIZE > 0) {
      using W = DepthwiseWindow<SIZE, STRIDE>;
      float2 taps[SIZE][SIZE], sums[Share::kRows][kRun];
#pragma unroll
      for (int i = 0; i < SIZE * SIZE; ++i) taps[i / SIZE][i % SIZE] = load2(weights_ + i * kSlice + pair());
#pragma unroll
      for (int i = 0; i < Share::kRows * kRun; ++i) sums[i / kRun][i % kRun] = start;
      const T* from = window + (run_y * STRIDE * W::kPitch + W::slot(run_x * STRIDE)) * kSlice + pair();
#pragma unroll
      for (int row = 0; row < (Share::kRows - 1) * STRIDE + SIZE; ++row) {
        float2 values[(kRun - 1) * STRIDE + SIZE];
#pragma unroll
        for (int column = 0; column < (kRun - 1) * STRIDE + SIZE; ++column)
          values[column] = load2(from + (row * W::kPitch + W::slot(column)) * kSlice);
#pragma unroll
        for (int j = 0; j < Share::kRows; ++j) {
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
      for (int j = 0; j < Share::kRows; ++j) {
        if (y + j >= problem_.height) break;
        T* to = out + j * next_row;
#pragma unroll
        for (int i = 0; i < kRun; ++i, to += problem_.out_stride)
          if (x + i < problem_.width) finish(to, sums[j][i]);
      }
    } else {
      const auto value = [&](const T* at, int channel) {
        return channel < problem_.in.channels ? to_float(at[(channel - c) * problem_.in.stride_c]) : 0.0f;
      };
#pragma unroll 1
      for (int i = 0; i < Share::kRows * kRun; ++i) {
        if (y + i / kRun >= problem_.height || x + i % kRun >= problem_.width) continue;
        float2 sum = start;
        for (int tap = 0; tap < size_ * size_; ++tap) {
          const int in_y = (y + i / kRun) * stride_ - problem_.top + tap / size_;
          const int in_x = (x + i % kRun) * stride_ - problem_.left + tap % size_;
          if (in_y < 0 || in_y >= problem_.in.height || in_x < 0 || in_x >= problem_.in.width) continue;
          const T* at = problem_.in.at(of.image, c, in_y, in_x);
          const float2 weight = load2(weights_ + tap * kSlice + pair());
          sum.x += weight.x * value(at, c);
          sum.y += weight.y * value(at, c + 1);
        }
        finish(out + i / kRun * next_row + i % kRun * problem_.out_stride, sum);
      }
    }
  }

  // Write the block's share of the squeezed channels.
  HYPERSEG_DEVICE void squeeze() {
    store2(totals_ + run() * kSlice + pair(), total_);
    sync_block();
    if (thread < kSlice) {
      float sum = 0.0f;
      for (int i = 0; i < Share::kCount; ++i) sum += totals_[i * kSlice + thread];
      totals_[thread] = sum;
    }
    sync_block();
    squeeze_totals<T, kDepthwiseThreads>(problem_, first, index_, reduce_, totals_, thread);
  }

 private:
  HYPERSEG_DEVICE int pair() const { return thread % (kSlice / 2) * 2; }
  HYPERSEG_DEVICE int run() const { return thread / (kSlice / 2); }

  // Apply SiLU to the sums of a pixel, add them to the totals and store them.
  HYPERSEG_DEVICE void finish(T* to, float2 v) {
    silu2<T>(v.x, v.y);
    total_.x += v.x, total_.y += v.y;
    store2(to, v);
  }

  const MbconvDepthwise<T>& problem_;
  int size_, stride_;
  unsigned index_;
  float *weights_, *bias_, *totals_;  // [size * size, kSlice], [kSlice], [runs, kSlice]
  T* reduce_;                         // [staged, kSlice]
  float2 total_{0.0f, 0.0f};
};

template <typename T, int SIZE, int STRIDE>
HYPERSEG_KERNEL(kDepthwiseThreads, 4)
mbconv_depthwise_kernel(MbconvDepthwise<T> problem) {
  Slice<T, SIZE, STRIDE> slice(problem, blockIdx.x, threadIdx.x);
  stage_constants_and_wait(problem.constants_ready, [&] { slice.stage(); });
  clear(problem.barrier);
  for (int tile = slice.of.first; tile < slice.of.end; ++tile) {
    int top, left;
    BlockTiles::place<kTileRows>(problem, tile, top, left);
    if (tile > slice.of.first) sync_block();  // all threads have finished with the window
    if constexpr (SIZE > 0)
      copy_window<T, DepthwiseWindow<SIZE, STRIDE>>(problem.in, problem.in_vectors, slice.of.image, slice.first,
                                                    top * STRIDE - problem.top, left * STRIDE - problem.left,
                                                    slice.window, slice.thread);
    commit_copies();
    wait_for_copies<0>();
    sync_block();
    slice.filter(top, left);
  }
  slice.squeeze();
}

}  // namespace hyperseg::cuda
