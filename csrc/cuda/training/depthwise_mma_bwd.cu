#include <algorithm>

#include "cuda/device/launch.cuh"
#include "cuda/training/depthwise_mma.cuh"

namespace hyperseg::cuda {
namespace {

constexpr int kTapPairs = 5;  // an MMA sums two taps of eight channels

// Both gradients of the filter of a patch, with halo "own". In shared memory: the gradient of the patch's outputs with
// two pixels of zeros around them, then the window of the hidden map after norm and ReLU6.
template <typename T>
HYPERSEG_KERNEL(kFilterThreads, 2)
depthwise_backward_mma_kernel(PatchDepthwise filter, DepthwiseTiles tiles, DepthwiseGradients gradients) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int height = filter.grid.patch_h, width = filter.grid.patch_w, stored = filter.stored;
  const Patch patch(TilePart::patch(tiles), filter.grid);
  const TilePart part(filter, tiles);
  const int stride = tiles.stride, around = width + 2, wide = width + 4;
  const int pixels = height * width, window_pixels = (height + 2) * around;
  T* padded = reinterpret_cast<T*>(shared_memory());
  T* window = padded + (height + 4) * wide * stride;
  const T* hidden = static_cast<const T*>(gradients.hidden) + patch.index * window_pixels * stored + part.first;
  {
    float factor[3][8];
    const int64_t first = patch.index * pixels * stored + part.first;
    const T* d = static_cast<const T*>(gradients.d) + first;
    const T* filtered = static_cast<const T*>(gradients.filtered) + first;
    const bool factors = gradients.factors != nullptr;
    const auto zero = [&](int y, int x, int c) { store16_shared(padded + (y * wide + x) * stride + c, uint4{}); };
    const auto nothing = [](int) {};
    each_vector(tiles, part, 2 * wide, nothing, [&](int pixel, int c) {
      zero(0, pixel, c), zero(height + 2, pixel, c);  // both of the two rows: they are contiguous
    });
    each_vector(tiles, part, 4 * height, nothing,
                [&](int i, int c) { zero(i / 4 + 2, i % 4 + (i % 4 < 2 ? 0 : width), c); });
    each_vector(
        tiles, part, pixels,
        [&](int channel) {
          if (!factors) return;
#pragma unroll
          for (int i = 0; i < 3; ++i) load8(gradients.factors + i * stored + channel, factor[i]);
        },
        [&](int pixel, int c) {
          const int y = filter.grid.by_patch_w.quotient(pixel), place = pixel * stored + c;
          uint4 v = *reinterpret_cast<const uint4*>(d + place);
          if (factors) v = affine<T>(v, *reinterpret_cast<const uint4*>(filtered + place), factor);
          store16_shared(padded + ((y + 2) * wide + pixel - y * width + 2) * stride + c, v);
        });
    float scale[8], shift[8];
    each_vector(
        tiles, part, window_pixels,
        [&](int channel) {
          load_factors(filter.norm.scale, channel, filter.hidden, scale);
          load_factors(filter.norm.shift, channel, filter.hidden, shift);
        },
        [&](int pixel, int c) {
          const uint4 v = *reinterpret_cast<const uint4*>(hidden + pixel * stored + c);
          store16_shared(window + pixel * stride + c, normalised<T>(v, scale, shift));
        });
  }
  sync_block();

  float taps[kTapPairs][4] = {};
  GradientSums sums[2];
  const int lane = part.lane, channel = part.first + 8 * part.group;
  if (part.working) {
    // Taps: left operands are 8 channels x 16 pixels of the window, under two taps; right ones are the gradients of the
    // pixels. The diagonals of the products are the results.
    const int matrix = lane / 8;
    int shifts[kTapPairs];
#pragma unroll
    for (int j = 0; j < kTapPairs; ++j) {
      const int tap = min(2 * j + matrix % 2, 8), row = tap >= 6 ? 2 : tap >= 3;
      shifts[j] = (row * around + tap - 3 * row) * stride;
    }
    const T *of_window = window + 8 * part.group, *of_padded = padded + 8 * part.group;
    for (int first = part.part * kTilePixels; first < pixels; first += tiles.parts * kTilePixels) {
      const int pixel = first + lane, y = filter.grid.by_patch_w.quotient(min(pixel, pixels - 1));
      uint32_t pulls[4];
      ldmatrix4_transposed(pulls, of_padded + (pixel < pixels ? (y + 2) * wide + pixel - y * width + 2 : 0) * stride);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int own = min(first + 16 * half + matrix / 2 * 8 + lane % 8, pixels - 1),
                  row = filter.grid.by_patch_w.quotient(own);
        const T* at = of_window + (row * around + own - row * width) * stride;
#pragma unroll
        for (int j = 0; j < kTapPairs; ++j) {
          uint32_t values[4];
          ldmatrix4_transposed(values, at + shifts[j]);
          mma16<T>(taps[j], values, pulls[2 * half], pulls[2 * half + 1]);
        }
      }
    }

    // The hidden map: the flipped filter.
    uint32_t weights[9];
    load_diagonals<T>(filter, patch, channel, lane, weights);
    const int pair = 8 * part.group + 2 * (lane % 4), c = part.first + pair;
    const Relu6Gates gates(of_channels(filter.norm.scale, c, filter.hidden),
                           of_channels(filter.norm.shift, c, filter.hidden));
    const int step = 8 * stored;  // of eight pixels
    int64_t place = static_cast<int64_t>(part.part * kTilePixels + lane / 4) * stored;
    const T* from = hidden + pair + place;
    T* out = static_cast<T*>(gradients.gradient) + patch.index * window_pixels * stored + c + place;
    for (int first = part.part * kTilePixels; first < window_pixels; first += tiles.parts * kTilePixels) {
      const int left = window_pixels - first - lane / 4;
      uint32_t z[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) z[i] = 8 * i < left ? *reinterpret_cast<const uint32_t*>(from + i * step) : 0;
      const int pixel = min(first + lane, window_pixels - 1), y = tiles.window.quotient(pixel);
      float d[2][4] = {};
      filter_tile<T, true>(of_padded + (y * wide + pixel - y * around) * stride, tiles.padded_row, stride, weights, d);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (8 * i >= left) break;
        const float2 value = unpack<T>(z[i]);
        const float a = gates.first(d[i / 2][i % 2 * 2], value.x), b = gates.second(d[i / 2][i % 2 * 2 + 1], value.y);
        store2(out + i * step, float2{a, b});
        sums[0].add(a, value.x);
        sums[1].add(b, value.y);
      }
      from += 4 * tiles.parts * step, out += 4 * tiles.parts * step;
    }
#pragma unroll
    for (GradientSums& s : sums) s.total = sum_of_rows(s.total), s.by_value = sum_of_rows(s.by_value);
  }

  sync_block();
  float* of_taps = reinterpret_cast<float*>(shared_memory());  // [part][channel][tap]
  const int values = 8 * tiles.groups * 9;
  if (part.working && lane % 4 == lane / 8) {
    float* own = of_taps + part.part * values + (8 * part.group + lane / 4) * 9;
    const bool odd = lane / 4 % 2;
#pragma unroll
    for (int t = 0; t < 9; ++t) own[t] = odd ? taps[t / 2][t % 2 * 2 + 1] : taps[t / 2][t % 2 * 2];
  }
  sync_block();
  const int needed = min(8 * part.groups, filter.hidden - part.first) * 9;
  T* d_taps = static_cast<T*>(gradients.d_taps) + patch.index * gradients.parameters + gradients.first + part.first * 9;
  for (int i = threadIdx.x; i < needed; i += static_cast<int>(blockDim.x)) {
    float sum = of_taps[i];
    for (int p = 1; p < tiles.parts; ++p) sum += of_taps[p * values + i];
    d_taps[i] = from_float<T>(sum);
  }
  store_row(filter, tiles, part, patch, sums[0], sums[1], reinterpret_cast<GradientSums*>(shared_memory()),
            gradients.partial);
}

int64_t rows_of(const PatchDepthwise& filter) {
  const int64_t height = filter.grid.patch_h, width = filter.grid.patch_w;
  return (height + 2) * (width + 2) + (height + 4) * (width + 4);
}

}  // namespace

bool differentiates_by_mma(const PatchDepthwise& filter, Type type) {
  return filter.own && type != Type::kFloat && DepthwiseTiles(filter, rows_of(filter)).fits();
}

bool depthwise_backward_mma(const PatchDepthwise& filter, const DepthwiseGradients& gradients, Type type,
                            const char* op, Stream stream) {
  if (!differentiates_by_mma(filter, type)) return false;
  const DepthwiseTiles tiles(filter, rows_of(filter));
  const size_t sums = 8 * tiles.groups * tiles.parts * 9 * sizeof(float);
  with_16_bit_type(type, [&](auto value) {
    using T = decltype(value);
    launch<depthwise_backward_mma_kernel<T>>(op, grid_of(op, tiles.blocks(filter)), tiles.threads(),
                                             std::max(tiles.bytes(rows_of(filter)), sums), stream, filter, tiles,
                                             gradients);
  });
  return true;
}

}  // namespace hyperseg::cuda
