#pragma once

#include "cuda/encoder/mbconv_depthwise.cuh"
#include "cuda/encoder/mbconv_window.cuh"

// The depthwise convolution of 16-bit floats on tensor cores. For a channel and a row of taps, 8 rows x 16 columns of
// outputs are a product of an MMA: its left operand has 16 adjacent columns of the window per row of 8 outputs, its
// right operand is a band matrix of the taps. A product with 0 outside the band is NaN for an infinite value, which
// therefore reaches up to 15 columns; the squeezed channels carry it to all of the image anyway.
namespace hyperseg::cuda {

// The work of a block on its slice of the channels.
template <typename T, int SIZE, int STRIDE, int ROWS, bool EXPAND>
class MmaSlice {
 public:
  using W = PlanarWindow<SIZE, STRIDE, ROWS>;

  HYPERSEG_DEVICE MmaSlice(const MbconvDepthwise<T>& problem, const Expansion<T>& expansion, unsigned index, int thread)
      : problem_(problem),
        expansion_(expansion),
        thread_(thread),
        index_(index),
        of_(problem, index),
        first_(of_.slice * kSlice) {
    taps_ = reinterpret_cast<uint32_t*>(shared_memory());
    bias_ = reinterpret_cast<float*>(taps_ + W::kTapWords);
    expand_bias_ = reinterpret_cast<float4*>(bias_ + kSlice);
    totals_ = bias_ + 3 * kSlice;
    window_ = reinterpret_cast<T*>(totals_ + kSlice);
    staging_ = window_ + kSlice * W::kPlane;
    reduce_ = staging_ + kSlice * W::kStagingPitch;
    weights_ = reinterpret_cast<char*>(reduce_ + problem.staged * kSlice);
  }

  // Stage the constants, and zeros after the columns of the window.
  HYPERSEG_DEVICE void stage() {
    if constexpr (EXPAND) stage_expansion(expansion_, first_, problem_.channels, weights_, expand_bias_, thread_);
    stage_reduce<T, kMmaThreads>(problem_, first_, reduce_, thread_);
    commit_copies();
    if (thread_ < kSlice * SIZE) {
      // Pairs of adjacent taps of a row, from the one before the first to the last, after a word of zeros.
      const int channel = first_ + channel_of_plane(thread_ / SIZE);
      const bool real = channel < problem_.channels;
      const T* from = problem_.weights + (static_cast<int64_t>(real ? channel : 0) * SIZE + thread_ % SIZE) * SIZE;
      uint32_t* to = taps_ + thread_ * (SIZE + 2);
      float taps[SIZE + 2] = {};
#pragma unroll
      for (int i = 0; i < SIZE; ++i) taps[i + 1] = real ? 0.5f * to_float(from[i]) : 0.0f;
      to[0] = 0;
#pragma unroll
      for (int i = 0; i <= SIZE; ++i) to[i + 1] = pack<T>(taps[i], taps[i + 1]);
    }
    if (thread_ < kSlice) {
      const int own = first_ + channel_of_plane(thread_);
      bias_[thread_] = own < problem_.channels ? 0.5f * to_float(problem_.bias[own]) : 0.0f;
    }
#pragma unroll 1
    for (int i = thread_; i < kSlice * W::kRows; i += kMmaThreads) {
      T* row = window_ + i / W::kRows * W::kPlane + i % W::kRows * W::kPitch;
#pragma unroll
      for (int column = W::kColumns; column < W::kPitch; column += 2) *reinterpret_cast<uint32_t*>(row + column) = 0;
    }
  }

  HYPERSEG_DEVICE void run() {
    const int warp = warp_of(thread_);
    const unsigned lane = static_cast<unsigned>(thread_) % 32;
    const Places places(lane);
    float totals[4] = {};
    sync_block();
#pragma unroll 1
    for (int tile = of_.first; tile < of_.end; ++tile) {
      int top, left;
      BlockTiles::place<ROWS>(problem_, tile, top, left);
      const int y = top * STRIDE - problem_.top, x = left * STRIDE - problem_.left;
      if constexpr (EXPAND) {
        ExpandedPixels<T> source(problem_.in.data, expansion_, of_.image, weights_, expand_bias_, lane);
        fill_window<W>(source, problem_.in, y, x, window_, warp, lane);
      } else {
        CopiedPixels<T> source(problem_.in, problem_.in_vectors, of_.image, first_, lane);
        fill_window<W>(source, problem_.in, y, x, window_, warp, lane);
      }
      sync_block();
      filter(places, top, left, warp, lane, totals);
      sync_block();
      write(top, left, warp, lane);
    }
    wait_for_copies<0>();
    squeeze(warp, lane, totals);
  }

 private:
  static constexpr int kPlanes = kSlice / kMmaWarps, kMmas = ROWS / 8;  // per warp, per plane

  // Where a lane finds its parts of the operands: the same for all tiles and planes.
  struct Places {
    int left;     // its row of the left operand
    int taps[3];  // the pairs of taps in its part of the right operand

    explicit HYPERSEG_DEVICE Places(unsigned lane) {
      // Row k and column n have tap k - STRIDE n, if it is one of the row's.
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const int tap = 8 * i + static_cast<int>(lane % 4 * 2) - static_cast<int>(lane / 4) * STRIDE;
        taps[i] = opaque(tap >= -1 && tap < SIZE ? tap + 2 : 0);
      }
      // Eight columns of the first half, of the second half, then the next eight of both.
      const unsigned matrix = lane / 8;
      const unsigned column = STRIDE == 1 ? (matrix % 2 + matrix / 2) * 8 : matrix % 2 * 16 + matrix / 2 * 8;
      left = opaque(static_cast<int>(lane % 8 * W::kPitch + column));
    }
  };

  // Compute the outputs of a tile in the staging memory, and add them to the totals: of the warp's plane p in column p
  // of an MMA. An MMA has 8 rows and 16 columns of outputs, in two halves.
  HYPERSEG_DEVICE void filter(const Places& places, int top, int left, int warp, unsigned lane, float (&totals)[4]) {
    const int own = static_cast<int>(lane / 4), pair = static_cast<int>(lane % 4 * 2);
    const T* from = window_ + warp * kPlanes * W::kPlane + places.left;
    const uint32_t* taps = taps_ + warp * kPlanes * SIZE * (SIZE + 2);
    T* to = staging_ + warp * kPlanes * W::kStagingPitch + lane * 4;
    uint32_t keep[kMmas][2];
#pragma unroll
    for (int i = 0; i < 2 * kMmas; ++i) keep[i / 2][i % 2] = 0xffffffff;
    if (top + ROWS > problem_.height || left + kTileColumns > problem_.width) {
#pragma unroll
      for (int i = 0; i < 2 * kMmas; ++i)
        keep[i / 2][i % 2] =
            top + own + i / 2 * 8 < problem_.height ? inside(left + pair + i % 2 * 8, problem_.width) : 0u;
    }
#pragma unroll 2
    for (int plane = 0; plane < kPlanes; ++plane) {
      const float bias = bias_[warp * kPlanes + plane];
      uint32_t right_operand[SIZE][STRIDE == 1 ? 2 : 3];
#pragma unroll
      for (int y = 0; y < SIZE; ++y)
#pragma unroll
        for (int i = 0; i < STRIDE + 1; ++i) right_operand[y][i] = taps[y * (SIZE + 2) + places.taps[i]];
      const uint32_t ones = own == plane ? pack<T>(1.0f, 1.0f) : 0u;
#pragma unroll
      for (int mma = 0; mma < kMmas; ++mma) {
        float sums[4] = {bias, bias, bias, bias};
        const T* rows = from + mma * W::line(8 * STRIDE) * W::kPitch;
#pragma unroll
        for (int y = 0; y < SIZE; ++y) {
          uint32_t left_operand[4];
          ldmatrix4(left_operand, rows + W::line(y) * W::kPitch);
          mma16<T>(sums, left_operand, right_operand[y][0], right_operand[y][1]);
        }
        if constexpr (STRIDE == 2) {
#pragma unroll
          for (int y = 0; y < SIZE; ++y) {
            // Of both halves the columns 16 to 23; the address is that of the column, not of the matrix.
            uint32_t more[2];
            ldmatrix2(more, rows + W::line(y) * W::kPitch + 16);
            mma8<T>(sums, more[0], more[1], right_operand[y][2]);
          }
        }
        silu2_of_halves(sums[0], sums[1]);
        silu2_of_halves(sums[2], sums[3]);
        const uint32_t halves[2] = {pack<T>(sums[0], sums[1]) & keep[mma][0], pack<T>(sums[2], sums[3]) & keep[mma][1]};
        mma8<T>(totals, halves[0], halves[1], ones);
        *reinterpret_cast<uint2*>(to + mma * 128) = uint2{halves[0], halves[1]};
      }
      from += W::kPlane, taps += SIZE * (SIZE + 2), to += W::kStagingPitch;
    }
    totals[0] += totals[2], totals[1] += totals[3];
    totals[2] = totals[3] = 0.0f;
  }

  // Write the outputs of a tile from the staging memory. A lane writes eight channels of some pixels, four rows apart.
  HYPERSEG_DEVICE void write(int top, int left, int warp, unsigned lane) const {
    const int row = top + warp / 2, pair = warp % 2 * 2 + static_cast<int>(lane / 16);
    const int x = left + static_cast<int>(lane / 8 % 2 * 8 + lane / 4 % 2) + pair * 2;
    const int channel = first_ + static_cast<int>(lane % 4 * 8);
    const bool real = channel < problem_.out_stride && x < problem_.width;
    T* to = problem_.out +
            ((static_cast<int64_t>(of_.image) * problem_.height + row) * problem_.width + x) * problem_.out_stride +
            channel;
    const int64_t step = 4 * problem_.width * problem_.out_stride;
#pragma unroll
    for (int i = 0; i < ROWS / 4; ++i, to += step) {
      uint32_t v[4];
      ldmatrix4_transposed(v, staging_ + lane * W::kStagingPitch + (warp + i * kMmaWarps) * 8);
      if (real && row + i * 4 < problem_.height) store16(to, uint4{v[0], v[1], v[2], v[3]});
    }
  }

  // Write the block's share of the squeezed channels.
  HYPERSEG_DEVICE void squeeze(int warp, unsigned lane, const float (&totals)[4]) {
    float a = totals[0], b = totals[1];
#pragma unroll
    for (int mask = 4; mask < 32; mask *= 2) a += shuffle_xor(a, mask), b += shuffle_xor(b, mask);
    static_assert(kPlanes == 4);
    if (lane < kPlanes / 2) {
      totals_[channel_of_plane(warp * kPlanes + 2 * lane)] = a;
      totals_[channel_of_plane(warp * kPlanes + 2 * lane + 1)] = b;
    }
    sync_block();
    squeeze_totals<T, kMmaThreads>(problem_, first_, index_, reduce_, totals_, thread_);
  }

  const MbconvDepthwise<T>& problem_;
  const Expansion<T>& expansion_;
  int thread_;
  unsigned index_;
  BlockTiles of_;
  int first_;                       // channel
  uint32_t* taps_;                  // [kSlice, SIZE, SIZE + 2]
  float *bias_, *totals_;           // [kSlice] each
  float4* expand_bias_;             // [kSlice / 2]
  T *window_, *staging_, *reduce_;  // [kSlice, kPlane], [kSlice, kStagingPitch], [staged, kSlice]
  char* weights_;                   // see stage_expansion
};

template <typename T, int SIZE, int STRIDE, int ROWS, bool EXPAND>
HYPERSEG_KERNEL(kMmaThreads, 3)
mbconv_depthwise_mma_kernel(MbconvDepthwise<T> problem, Expansion<T> expansion) {
  MmaSlice<T, SIZE, STRIDE, ROWS, EXPAND> slice(problem, expansion, blockIdx.x, threadIdx.x);
  stage_constants_and_wait(problem.constants_ready, [&] { slice.stage(); });
  clear(problem.barrier);
  slice.run();
}

}  // namespace hyperseg::cuda
