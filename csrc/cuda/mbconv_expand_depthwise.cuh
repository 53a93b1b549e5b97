#pragma once

#include "matrix.cuh"
#include "mbconv_depthwise.cuh"

// The depthwise convolution of what it expands itself: the window of a tile is not copied but multiplied out of the
// block's input, so that the hidden map before it exists nowhere else. What neighbouring tiles share of it is computed
// by each.
namespace hyperseg::cuda {

constexpr int kExpandingThreads = 256, kExpandingWarps = kExpandingThreads / 32;
constexpr int kStripe = 32;                         // pixels that a warp expands at once
constexpr int kStripeStep = 16, kStripeDepth = 32;  // of the depth: of a product, and of what it copies at once
constexpr int kFewestStages = 2, kMostStages = 4;   // of a warp's ring

template <typename T>
struct Expansion {
  const T *weights, *bias;  // [channels, depth], [channels]
  int depth, stride_h, stride_w, stages;

  // Rows in shared memory are an odd number of 16 bytes: eight of them, or two times four, are in different banks.
  HYPERSEG_ANYWHERE static int padded(int depth) { return (depth + kStripeStep - 1) / kStripeStep * kStripeStep; }
  HYPERSEG_ANYWHERE static int weight_bytes(int depth) { return padded(depth) * sizeof(T) + 16; }
  HYPERSEG_ANYWHERE static int pixel_bytes(int depth) {
    return (depth <= kStripeStep ? kStripeStep : kStripeDepth) * sizeof(T) + 16;
  }
  static int64_t shared_bytes(int depth, int stages) {
    return kSlice * (sizeof(float) + weight_bytes(depth)) + kExpandingWarps * stages * kStripe * pixel_bytes(depth);
  }
};

// Copies of the thread since those of the last `count` close_copies() have arrived.
HYPERSEG_DEVICE void wait_for_all_copies_but(int count) {
  if (count == 0)
    wait_for_copies<0>();
  else if (count == 1)
    wait_for_copies<1>();
  else
    wait_for_copies<2>();
}

// Column n of part j of a product is this channel of the slice: what a lane then has of a pixel are eight side by side.
HYPERSEG_DEVICE int channel_of_column(int column) { return column % 8 / 2 * 8 + column / 8 * 2 + column % 2; }

// Expands the window of a tile whose first pixel is at (y, x); zeros around the map. Each warp has stripes of the
// window's pixels, of which chunks of the depth pass through a ring of its own. `bias` and `weights` need not have
// arrived, but the thread's copies of them have to be closed.
template <typename T, typename W>
HYPERSEG_DEVICE void expand_window(const Map<const T>& in, const Expansion<T>& expansion, int64_t n, int y, int x,
                                   const float* bias, const char* weights, char* rings, T* window) {
  constexpr int kPixels = W::kRows * W::kColumns, kStripes = (kPixels + kStripe - 1) / kStripe;
  const int warp = warp_index(), lane = threadIdx.x % 32, depth = expansion.depth, stages = expansion.stages;
  const int height = static_cast<int>(in.height), width = static_cast<int>(in.width);
  const int steps = (depth + kStripeStep - 1) / kStripeStep, chunks = (depth + kStripeDepth - 1) / kStripeDepth;
  const int items = (kStripes - warp + kExpandingWarps - 1) / kExpandingWarps * chunks;
  const int pitch = Expansion<T>::pixel_bytes(depth), weight_pitch = Expansion<T>::weight_bytes(depth);
  const int stage_bytes = kStripe * pitch;
  char* const ring = rings + warp * stages * stage_bytes;

  // A lane copies 16 bytes of every eighth pixel. Of the two pixels that eight lanes fill at once, one is four further
  // on than the other, in other banks.
  const int part = lane % 4, copied_row = lane / 8 + lane / 4 % 2 * 4;
  const T* const image = in.data + n * in.stride_n;
  int from[kStripe / 8];
  int next_k = part * 8, next_pixel = warp * kStripe + copied_row, filled_bytes = 0;
  const auto copy = [&] {
    if (next_k < kStripeDepth) {
#pragma unroll
      for (int i = 0; i < kStripe / 8; ++i) {
        // Beside the map whatever is there: its sums are not used.
        const int pixel = next_pixel + 8 * i;
        const int row = min(max(y + pixel / W::kColumns, 0), height - 1);
        const int column = min(max(x + pixel % W::kColumns, 0), width - 1);
        from[i] = row * expansion.stride_h + column * expansion.stride_w;
      }
      next_pixel += kExpandingWarps * kStripe;
    }
    char* to = ring + filled_bytes + copied_row * pitch + part * 16;
    const bool inside = next_k < depth;
    if (next_k - part % 2 * 8 < depth) {  // nothing is read of a step that begins beyond the depth
#pragma unroll
      for (int i = 0; i < kStripe / 8; ++i)
        copy_async(to + 8 * i * pitch, image + (inside ? from[i] + next_k : 0), inside);
    }
    filled_bytes = filled_bytes + stage_bytes == stages * stage_bytes ? 0 : filled_bytes + stage_bytes;
    next_k += kStripeDepth;
    if (next_k >= chunks * kStripeDepth) next_k = part * 8;
  };

  const int a = lane % 16 * pitch + lane / 16 * 16;
  const char* const b = weights + (lane / 16 * 8 + lane % 8) * weight_pitch + lane / 8 % 2 * 16;
  int chunk = 0, stage = 0, stripe = warp * kStripe;
  float sums[2][4][4] = {};
#pragma unroll 1
  for (int item = 1 - stages; item < max(items, 1); ++item) {
    if (item >= 0) wait_for_all_copies_but(stages - 2);
    if (item == 0)
      sync_block();  // the weights are there, and everybody is done with the window
    else if (item > 0)
      sync_warp();
    if (item + stages - 1 < items) copy();
    close_copies();
    if (item < 0 || item >= items) continue;
#pragma unroll
    for (int step = 0; step < kStripeDepth / kStripeStep; ++step) {
      const int done = chunk * (kStripeDepth / kStripeStep) + step;
      if (done >= steps) break;
      constexpr int kBytes = kStripeStep * sizeof(T);
      uint32_t pixels[2][4], channels[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        ldmatrix4(pixels[i], ring + stage + a + 16 * i * pitch + step * kBytes);
        ldmatrix4(channels[i], b + 16 * i * weight_pitch + done * kBytes);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          mma16<T>(sums[i][j], pixels[i], channels[j / 2][j % 2 * 2], channels[j / 2][j % 2 * 2 + 1]);
    }
    stage = stage + stage_bytes == stages * stage_bytes ? 0 : stage + stage_bytes;
    if (++chunk < chunks) continue;

    const int first = lane % 4 * 8;
    float biases[8];
    load8(bias + first, biases);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int pixel = stripe + 8 * i + lane / 4, row = pixel / W::kColumns, column = pixel % W::kColumns;
      const bool inside = y + row >= 0 && y + row < height && x + column >= 0 && x + column < width;
      uint32_t packed[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float2 v{sums[i / 2][j][i % 2 * 2] + biases[2 * j], sums[i / 2][j][i % 2 * 2 + 1] + biases[2 * j + 1]};
        silu2<T>(v.x, v.y);
        packed[j] = inside ? pack<T>(v.x, v.y) : 0;
        sums[i / 2][j][i % 2 * 2] = sums[i / 2][j][i % 2 * 2 + 1] = 0.0f;
      }
      if (pixel < kPixels)
        *reinterpret_cast<uint4*>(window + (row * W::kPitch + W::slot(column)) * kSlice + first) =
            uint4{packed[0], packed[1], packed[2], packed[3]};
    }
    chunk = 0;
    stripe += kExpandingWarps * kStripe;
  }
}

// `problem.in` is what is expanded, in vectors.
template <typename T, int SIZE, int STRIDE>
HYPERSEG_KERNEL(kExpandingThreads, 3)
mbconv_expand_depthwise_kernel(Depthwise<T> problem, Expansion<T> expansion) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  using W = Window<SIZE, STRIDE>;
  Slice<T, SIZE, STRIDE, kExpandingThreads> slice(problem);
  float* bias = reinterpret_cast<float*>(slice.window + W::kValues);  // [kSlice]
  char* weights = reinterpret_cast<char*>(bias + kSlice);             // [kSlice] rows
  char* rings = weights + kSlice * Expansion<T>::weight_bytes(expansion.depth);
  const int thread = threadIdx.x, own = slice.first + thread;
  const int row = thread / 8, channel = slice.first + channel_of_column(row);
  const T* from = expansion.weights + static_cast<int64_t>(channel) * expansion.depth;
  char* to = weights + row * Expansion<T>::weight_bytes(expansion.depth);
#pragma unroll 1
  for (int k = thread % 8 * 8; k < Expansion<T>::padded(expansion.depth); k += 64) {
    const bool valid = channel < problem.channels && k < expansion.depth;
    copy_async(to + k * sizeof(T), valid ? from + k : expansion.weights, valid);
  }
  slice.stage();
  close_copies();
  if (thread < kSlice) bias[thread] = own < problem.channels ? to_float(expansion.bias[own]) : 0.0f;

#pragma unroll 1
  for (int step = 0, top, left; step < problem.steps && slice.tile(step, top, left); ++step) {
    expand_window<T, W>(problem.in, expansion, slice.n, top * STRIDE - problem.top, left * STRIDE - problem.left, bias,
                        weights, rings, slice.window);
    sync_block();
    slice.filter(top, left);
  }
  wait_for_copies<0>();
  slice.squeeze();
}

}  // namespace hyperseg::cuda
