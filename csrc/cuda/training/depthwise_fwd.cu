#include "cuda/training/depthwise.h"

#include <algorithm>
#include <type_traits>

#include "cuda/device/launch.cuh"
#include "cuda/training/depthwise.cuh"
#include "cuda/training/depthwise_mma.h"

namespace hyperseg::cuda {
namespace {

template <typename T, bool OWN, bool MOMENTS>
HYPERSEG_KERNEL(kDepthwiseThreads, 2)
depthwise_filter_kernel(PatchDepthwise filter, DepthwiseBlocks blocks, const void* hidden, T* filtered,
                        float* partial) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int height = filter.grid.patch_h, width = filter.grid.patch_w, channels = blocks.channels();
  const Patch patch(DepthwisePart::patch(blocks), filter.grid);
  const DepthwisePart part(filter, blocks, height);
  float* taps = reinterpret_cast<float*>(shared_memory());
  stage_taps<T>(filter, part, patch, channels, taps);
  sync_block();
  Moments a, b;
  if (part.working) {
    const HiddenMap<T, OWN> values(filter, part, patch, hidden);
    float2 weights[9];
#pragma unroll
    for (int t = 0; t < 9; ++t) weights[t] = tap_of(taps, t, channels, part.pair);
    T* out = filtered + patch.index * height * width * filter.stored + part.channel;
    for (int x = part.slot; x < width; x += blocks.slots) {
      slide(part.first_row, part.last_row, x, values, [&](int y, const float2(&around)[3][3]) {
        float2 sum{0.0f, 0.0f};
#pragma unroll
        for (int t = 0; t < 9; ++t) sum = multiply_add(around[t / 3][t % 3], weights[t], sum);
        store2(out + (static_cast<int64_t>(y) * width + x) * filter.stored, sum);
        if constexpr (MOMENTS) {
          a.add(to_float(from_float<T>(sum.x)));
          b.add(to_float(from_float<T>(sum.y)));
        }
      });
    }
  }
  if constexpr (MOMENTS)
    store_row(filter, blocks, part, patch, a, b, reinterpret_cast<Moments*>(shared_memory()), partial);
}

template <typename T, bool OWN>
HYPERSEG_KERNEL(kDepthwiseThreads, 2)
depthwise_wgrad_kernel(PatchDepthwise filter, DepthwiseBlocks blocks, const T* d, const void* hidden, T* gradient,
                       int64_t parameters) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int height = filter.grid.patch_h, width = filter.grid.patch_w, channels = blocks.channels();
  const Patch patch(DepthwisePart::patch(blocks), filter.grid);
  const DepthwisePart part(filter, blocks, height);
  float2 sums[9] = {};
  if (part.working) {
    const HiddenMap<T, OWN> values(filter, part, patch, hidden);
    const T* pulled = d + patch.index * height * width * filter.stored + part.channel;
    for (int x = part.slot; x < width; x += blocks.slots) {
      slide(0, height, x, values, [&](int y, const float2(&around)[3][3]) {
        const float2 pull = load2(pulled + (static_cast<int64_t>(y) * width + x) * filter.stored);
#pragma unroll
        for (int t = 0; t < 9; ++t) sums[t] = multiply_add(around[t / 3][t % 3], pull, sums[t]);
      });
    }
  }
  float* shared = reinterpret_cast<float*>(shared_memory());  // [slot][channel][tap]
  if (part.slot < blocks.slots) {
    float* own = shared + (part.slot * channels + 2 * part.pair) * 9;
#pragma unroll
    for (int t = 0; t < 9; ++t) own[t] = sums[t].x, own[9 + t] = sums[t].y;
  }
  sync_block();
  const int needed = min(channels, filter.hidden - part.first_channel) * 9;
  T* target = gradient + patch.index * parameters + part.first_channel * 9;
  for (int i = threadIdx.x; i < needed; i += blockDim.x) {
    float sum = 0.0f;
    for (int slot = 0; slot < blocks.slots; ++slot) sum += shared[slot * channels * 9 + i];
    target[i] = from_float<T>(sum);
  }
}

size_t bytes_of_taps(const DepthwiseBlocks& blocks) { return 9 * blocks.channels() * sizeof(float); }

size_t bytes_of_rows(const DepthwiseBlocks& blocks, size_t size) { return blocks.slots * blocks.channels() * size; }

}  // namespace

PartialRows rows_of_filtered(const PatchDepthwise& filter, Type type) {
  const PatchPixels pixels(filter.grid, false);
  if (filters_by_mma(filter, type)) return PartialRows(filter.grid.patches(), pixels.count(), pixels.count());
  const DepthwiseBlocks blocks(filter, pixels, false);
  return PartialRows(filter.grid.patches(), pixels.count(), blocks.rows * pixels.width);
}

void depthwise_filter(const PatchDepthwise& filter, const void* hidden, void* filtered, float* partial, Type type,
                      const char* op, Stream stream) {
  if (depthwise_filter_mma(filter, hidden, filtered, partial, type, op, stream)) return;
  const DepthwiseBlocks blocks(filter, PatchPixels(filter.grid, false), false);
  const size_t shared = std::max(bytes_of_taps(blocks), partial ? bytes_of_rows(blocks, sizeof(Moments)) : size_t{0});
  with_type(type, [&](auto value) {
    using T = decltype(value);
    const auto run = [&](auto own, auto moments) {
      launch<depthwise_filter_kernel<T, own.value, moments.value>>(op, grid_of(op, blocks.blocks()), blocks.threads(),
                                                                   shared, stream, filter, blocks, hidden,
                                                                   static_cast<T*>(filtered), partial);
    };
    const auto with_halo = [&](auto moments) {
      filter.own ? run(std::true_type{}, moments) : run(std::false_type{}, moments);
    };
    partial ? with_halo(std::true_type{}) : with_halo(std::false_type{});
  });
}

void depthwise_wgrad(const PatchDepthwise& filter, const DepthwiseGradients& gradients, Type type, const char* op,
                     Stream stream) {
  const DepthwiseBlocks blocks(filter, PatchPixels(filter.grid, false), true);
  with_type(type, [&](auto value) {
    using T = decltype(value);
    const auto run = [&](auto own) {
      launch<depthwise_wgrad_kernel<T, own.value>>(
          op, grid_of(op, blocks.blocks()), blocks.threads(), bytes_of_rows(blocks, 9 * sizeof(float)), stream, filter,
          blocks, static_cast<const T*>(gradients.d), gradients.hidden,
          static_cast<T*>(gradients.d_taps) + gradients.first, gradients.parameters);
    };
    filter.own ? run(std::true_type{}) : run(std::false_type{});
  });
}

}  // namespace hyperseg::cuda
