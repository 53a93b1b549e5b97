#pragma once

#include "cuda/device/pipelined_gemm.cuh"
#include "cuda/encoder/mbconv_depthwise.cuh"

// Expansion and depthwise convolution in one kernel: the window of a tile is computed from the block's input by MMA, so
// the expanded map is never stored in global memory. Pixels shared by neighbouring tiles are expanded by each of them.
namespace hyperseg::cuda {

template <typename T>
struct Expansion {
  const T *weights, *bias;  // [channels, depth], [channels]
  int depth, stride_n, stride_h, stride_w, stages;

  HYPERSEG_HOST_DEVICE static int padded(int depth) { return padded_depth(depth); }
  HYPERSEG_HOST_DEVICE static int weight_bytes(int depth) { return expansion_weight_bytes(sizeof(T), depth); }
};

// wait_for_copies for a count known at run time, at most 2.
HYPERSEG_DEVICE void wait_for_all_copies_but(int count) {
  if (count == 0)
    wait_for_copies<0>();
  else if (count == 1)
    wait_for_copies<1>();
  else
    wait_for_copies<2>();
}

// Map column n of MMA part j to a channel of the slice, such that a lane has eight contiguous channels of a pixel.
HYPERSEG_DEVICE int channel_of_column(int column) { return column % 8 / 2 * 8 + column / 8 * 2 + column % 2; }

// Expand the window of a tile whose first pixel is at (y, x), with zeros around the map. Each warp computes stripes of
// the window's pixels inside the map; chunks of their depth pass through a ring of the warp's own. The copies of `bias`
// and `weights` may be in flight, but the thread must have closed them.
template <typename T, typename W>
HYPERSEG_DEVICE void expand_window(const Map<const T>& in, const Expansion<T>& expansion, int n, int y, int x,
                                   const float* bias, const char* weights, char* rings, T* window, int thread) {
  const int warp = warp_index(), lane = thread % 32, depth = expansion.depth, stages = expansion.stages;
  const int height = static_cast<int>(in.height), width = static_cast<int>(in.width);
  const int steps = (depth + kStripeStep - 1) / kStripeStep, chunks = (depth + kStripeDepth - 1) / kStripeDepth;
  const int top = max(-y, 0), rows = min(W::kRows, height - y) - top;
  const int left = max(-x, 0), columns = min(W::kColumns, width - x) - left;
  const int pixels = rows * columns, stripes = (pixels + kStripe - 1) / kStripe;
  const int items = (stripes - warp + kExpandingWarps - 1) / kExpandingWarps * chunks;
  static_assert(W::kRows * W::kColumns * W::kColumns < 1 << 16);  // so that the quotient is exact
  const int reciprocal = (1 << 16) / columns + 1;
  const int weight_pitch = Expansion<T>::weight_bytes(depth), ring_bytes = stages * kStripeBytes;
  char* const ring = rings + warp * ring_bytes;

  // A lane copies 16 bytes of every eighth pixel. The two pixels that eight lanes fill at once are four apart, in
  // different banks.
  const int part = lane % 4, copied_row = lane / 8 + lane / 4 % 2 * 4;
  const int origin = n * expansion.stride_n + (y + top) * expansion.stride_h + (x + left) * expansion.stride_w;
  int from[kStripe / 8];
  int next_depth = 0, next_stripe = warp * kStripe, filled_bytes = 0;
  const auto copy = [&] {
    if (next_depth == 0) {
#pragma unroll
      for (int i = 0; i < kStripe / 8; ++i) {
        // After the last pixel repeat it: its sums are not used.
        const int pixel = min(next_stripe + copied_row + 8 * i, pixels - 1);
        const int row = pixel * reciprocal >> 16, column = pixel - row * columns;
        from[i] = origin + row * expansion.stride_h + column * expansion.stride_w;
      }
      next_stripe += kExpandingWarps * kStripe;
    }
    char* to = ring + filled_bytes + copied_row * kPixelBytes + part * 16;
    const int k = next_depth + part * 8;
    const bool inside = k < depth;
    if (k - part % 2 * 8 < depth) {  // nothing is read of a step that begins beyond the depth
#pragma unroll
      for (int i = 0; i < kStripe / 8; ++i)
        copy_async(to + 8 * i * kPixelBytes, in.data + (from[i] + (inside ? k : 0)), inside);
    }
    filled_bytes = filled_bytes + kStripeBytes == ring_bytes ? 0 : filled_bytes + kStripeBytes;
    next_depth = next_depth + kStripeDepth < depth ? next_depth + kStripeDepth : 0;
  };

  const char* const a = ring + lane % 16 * kPixelBytes + lane / 16 * 16;
  const char* const b = weights + (lane / 16 * 8 + lane % 8) * weight_pitch + lane / 8 % 2 * 16;
  int chunk = 0, stage = 0, stripe = warp * kStripe;
  float sums[2][4][4] = {};
#pragma unroll 1
  for (int item = 1 - stages; item < max(items, 1); ++item) {
    if (item >= 0) wait_for_all_copies_but(stages - 2);
    if (item == 0)
      sync_block();  // the weights have arrived, and all threads have finished with the window
    else if (item > 0)
      sync_warp();
    if (item + stages - 1 < items) copy();
    commit_copies();
    if (item < 0 || item >= items) continue;
#pragma unroll
    for (int step = 0; step < kStripeDepth / kStripeStep; ++step) {
      const int done = chunk * (kStripeDepth / kStripeStep) + step;
      if (done >= steps) break;
      constexpr int kBytes = kStripeStep * sizeof(T);
      uint32_t left_operand[2][4], right_operand[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ldmatrix4(left_operand[i], a + stage + 16 * i * kPixelBytes + step * kBytes);
        ldmatrix4(right_operand[i], b + 16 * i * weight_pitch + done * kBytes);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          mma16<T>(sums[i][j], left_operand[i], right_operand[j / 2][j % 2 * 2], right_operand[j / 2][j % 2 * 2 + 1]);
    }
    stage = stage + kStripeBytes == ring_bytes ? 0 : stage + kStripeBytes;
    if (++chunk < chunks) continue;

    const int first = lane % 4 * 8;
    float biases[8];
    load8(bias + first, biases);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int pixel = stripe + 8 * i + lane / 4, row = pixel * reciprocal >> 16;
      const int column = left + pixel - row * columns;
      uint32_t packed[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float2 v{sums[i / 2][j][i % 2 * 2] + biases[2 * j], sums[i / 2][j][i % 2 * 2 + 1] + biases[2 * j + 1]};
        silu2<T>(v.x, v.y);
        packed[j] = pack<T>(v.x, v.y);
        sums[i / 2][j][i % 2 * 2] = sums[i / 2][j][i % 2 * 2 + 1] = 0.0f;
      }
      if (pixel < pixels)
        *reinterpret_cast<uint4*>(window + ((top + row) * W::kPitch + W::slot(column)) * kSlice + first) =
            uint4{packed[0], packed[1], packed[2], packed[3]};
    }
    chunk = 0;
    stripe += kExpandingWarps * kStripe;
  }

  if (pixels == W::kRows * W::kColumns) return;
  static_assert(W::kColumns <= kExpandingThreads / 4);
  const int column = thread / 4;
  T* to = window + W::slot(column) * kSlice + thread % 4 * 8;
#pragma unroll 1
  for (int row = 0; column < W::kColumns && row < W::kRows; ++row, to += W::kPitch * kSlice)
    if (row < top || row >= top + rows || column < left || column >= left + columns)
      *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
}

// The expansion and depthwise convolution of a slice. `problem.in` is the input of the expansion, with vectorized
// channels.
template <typename T, int SIZE, int STRIDE>
class ExpandedSlice {
 public:
  HYPERSEG_DEVICE ExpandedSlice(const MbconvDepthwise<T>& problem, const Expansion<T>& expansion, unsigned index,
                                int thread)
      : problem_(problem), expansion_(expansion), slice_(problem, index, thread) {
    bias_ = reinterpret_cast<float*>(slice_.window + W::kValues);
    weights_ = reinterpret_cast<char*>(bias_ + kSlice);
  }

  // Start to stage the constants.
  HYPERSEG_DEVICE void stage() {
    const int thread = slice_.thread, own = slice_.first + thread;
    const int row = thread / 8, channel = slice_.first + channel_of_column(row);
    const T* from = expansion_.weights + static_cast<int64_t>(channel) * expansion_.depth;
    char* to = weights_ + row * Expansion<T>::weight_bytes(expansion_.depth);
#pragma unroll 1
    for (int k = thread % 8 * 8; k < Expansion<T>::padded(expansion_.depth); k += 64) {
      const bool valid = channel < problem_.channels && k < expansion_.depth;
      copy_async(to + k * sizeof(T), valid ? from + k : expansion_.weights, valid);
    }
    slice_.stage();
    commit_copies();
    if (thread < kSlice) bias_[thread] = own < problem_.channels ? to_float(expansion_.bias[own]) : 0.0f;
  }

  HYPERSEG_DEVICE void run() {
    char* const rings = weights_ + kSlice * Expansion<T>::weight_bytes(expansion_.depth);
#pragma unroll 1
    for (int step = 0, top, left; step < problem_.steps && slice_.tile(step, top, left); ++step) {
      expand_window<T, W>(problem_.in, expansion_, slice_.n, top * STRIDE - problem_.top, left * STRIDE - problem_.left,
                          bias_, weights_, rings, slice_.window, slice_.thread);
      sync_block();
      slice_.filter(top, left);
    }
    wait_for_copies<0>();
    slice_.squeeze();
  }

 private:
  using W = DepthwiseWindow<SIZE, STRIDE>;
  const MbconvDepthwise<T>& problem_;
  const Expansion<T>& expansion_;
  Slice<T, SIZE, STRIDE, kExpandingThreads> slice_;
  float* bias_;    // [kSlice]
  char* weights_;  // [kSlice] rows
};

template <typename T, int SIZE, int STRIDE>
HYPERSEG_KERNEL(kExpandingThreads, 3)
mbconv_expand_depthwise_kernel(MbconvDepthwise<T> problem, Expansion<T> expansion) {
  ExpandedSlice<T, SIZE, STRIDE> slice(problem, expansion, blockIdx.x, threadIdx.x);
  stage_constants_and_wait(problem.constants_ready, [&] { slice.stage(); });
  clear(problem.barrier);
  slice.run();
}

}  // namespace hyperseg::cuda
