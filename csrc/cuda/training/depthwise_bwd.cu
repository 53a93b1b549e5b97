#include <algorithm>

#include "cuda/device/launch.cuh"
#include "cuda/training/batch_norm.h"
#include "cuda/training/depthwise.cuh"
#include "cuda/training/depthwise.h"
#include "cuda/training/depthwise_mma.h"

// Gradient of the hidden map: each of its pixels gathers from the outputs that read it.
namespace hyperseg::cuda {
namespace {

// Multiply the gradient of two channels by the derivative of ReLU6, store it and add it to the sums.
template <typename T>
struct Relu6Gate {
  const T* hidden;
  T* gradient;
  float2 scale, shift;
  GradientSums a, b;

  HYPERSEG_DEVICE Relu6Gate(const PatchDepthwise& filter, const DepthwisePart& part, const void* hidden, T* gradient)
      : hidden(static_cast<const T*>(hidden) + part.channel),
        gradient(gradient + part.channel),
        scale(of_channels(filter.norm.scale, part.channel, filter.hidden)),
        shift(of_channels(filter.norm.shift, part.channel, filter.hidden)) {}

  HYPERSEG_DEVICE void pass(int64_t offset, float2 d) {
    const float2 z = load2(hidden + offset), y = multiply_add(z, scale, shift);
    if (flat_in_relu6(y.x)) d.x = 0.0f;
    if (flat_in_relu6(y.y)) d.y = 0.0f;
    store2(gradient + offset, d);
    a.add(d.x, z.x);
    b.add(d.y, z.y);
  }
};

// With halo "own" those outputs are in the same patch: the flipped filter.
template <typename T>
HYPERSEG_KERNEL(kDepthwiseThreads, 2)
depthwise_gradient_own_kernel(PatchDepthwise filter, DepthwiseBlocks blocks, const T* d, const void* hidden,
                              T* gradient, float* partial) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int height = filter.grid.patch_h, width = filter.grid.patch_w, channels = blocks.channels();
  const Patch patch(DepthwisePart::patch(blocks), filter.grid);
  const DepthwisePart part(filter, blocks, height + 2);
  float* taps = reinterpret_cast<float*>(shared_memory());
  stage_taps<T>(filter, part, patch, channels, taps);
  sync_block();
  Relu6Gate<T> gate(filter, part, hidden, gradient);
  if (part.working) {
    float2 weights[9];
#pragma unroll
    for (int t = 0; t < 9; ++t) weights[t] = tap_of(taps, t, channels, part.pair);
    const T* pulled = d + patch.index * height * width * filter.stored + part.channel;
    const int64_t window = patch.index * (height + 2) * (width + 2);
    // The value after pixel (y - 1, x - 1) of the window.
    const auto pull = [&](int y, int x) {
      if (y < 1 || y > height || x < 1 || x > width) return float2{0.0f, 0.0f};
      return load2(pulled + (static_cast<int64_t>(y - 1) * width + x - 1) * filter.stored);
    };
    for (int x = part.slot; x < width + 2; x += blocks.slots) {
      slide(part.first_row, part.last_row, x, pull, [&](int y, const float2(&around)[3][3]) {
        float2 sum{0.0f, 0.0f};
#pragma unroll
        for (int t = 0; t < 9; ++t) sum = multiply_add(around[2 - t / 3][2 - t % 3], weights[t], sum);
        gate.pass((window + y * (width + 2) + x) * filter.stored, sum);
      });
    }
  }
  store_row(filter, blocks, part, patch, gate.a, gate.b, reinterpret_cast<GradientSums*>(shared_memory()), partial);
}

// Return the outputs along an axis that read a pixel: one per tap and, through reflection, one for the tap that reaches
// it.
struct Reader {
  int output, tap;
  bool exists;

  HYPERSEG_DEVICE Reader(int pixel, int size, int which) {
    if (which < 3) {
      output = pixel + 1 - which, tap = which;
      exists = output >= 0 && output < size;
    } else {
      output = which == 3 ? 0 : size - 1, tap = which == 3 ? 0 : 2;
      exists = pixel == (which == 3 ? 1 : size - 2);
    }
  }
};

// With halo "neighbour" they are in several patches with different taps, and include the reflected border.
template <typename T>
HYPERSEG_KERNEL(kDepthwiseThreads, 2)
depthwise_gradient_neighbour_kernel(PatchDepthwise filter, DepthwiseBlocks blocks, const T* d, const void* hidden,
                                    T* gradient, float* partial) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const PatchGrid& grid = filter.grid;
  const int height = grid.patch_h, width = grid.patch_w, channels = blocks.channels();
  const Patch patch(DepthwisePart::patch(blocks), grid);
  const DepthwisePart part(filter, blocks, height);
  float* taps = reinterpret_cast<float*>(shared_memory());
  stage_taps<T>(filter, part, patch, channels, taps);
  sync_block();
  Relu6Gate<T> gate(filter, part, hidden, gradient);
  const int64_t pixels = height * width;
  const int own_row = patch.row * height, own_column = patch.column * width;
  if (part.working) {
    const T* other_taps = static_cast<const T*>(filter.taps.data) + patch.n * filter.taps.stride_n + part.channel * 9;
    const bool second = part.channel + 1 < filter.hidden;
    for (int x = part.slot; x < width; x += blocks.slots) {
      for (int y = part.first_row; y < part.last_row; ++y) {
        float2 sum{0.0f, 0.0f};
#pragma unroll 1
        for (int i = 0; i < 25; ++i) {
          const Reader row(own_row + y, grid.rows * height, i / 5), column(own_column + x, grid.columns * width, i % 5);
          if (!row.exists || !column.exists) continue;
          const int patch_row = grid.by_patch_h.quotient(row.output),
                    patch_column = grid.by_patch_w.quotient(column.output), tap = row.tap * 3 + column.tap;
          const int64_t number = static_cast<int64_t>(patch.n * grid.rows + patch_row) * grid.columns + patch_column;
          const int pixel = (row.output - patch_row * height) * width + column.output - patch_column * width;
          float2 weight;
          if (number == patch.index) {
            weight = tap_of(taps, tap, channels, part.pair);
          } else {
            const T* of_patch =
                other_taps + patch_row * filter.taps.stride_row + patch_column * filter.taps.stride_column + tap;
            weight = {part.channel < filter.hidden ? to_float(of_patch[0]) : 0.0f,
                      second ? to_float(of_patch[9]) : 0.0f};
          }
          sum = multiply_add(load2(d + (number * pixels + pixel) * filter.stored + part.channel), weight, sum);
        }
        gate.pass((patch.index * pixels + y * width + x) * filter.stored, sum);
      }
    }
  }
  store_row(filter, blocks, part, patch, gate.a, gate.b, reinterpret_cast<GradientSums*>(shared_memory()), partial);
}

}  // namespace

PartialRows rows_of_gradient(const PatchDepthwise& filter, Type type) {
  const PatchPixels pixels(filter.grid, filter.own);
  if (differentiates_by_mma(filter, type)) return PartialRows(filter.grid.patches(), pixels.count(), pixels.count());
  const DepthwiseBlocks blocks(filter, pixels, false);
  return PartialRows(filter.grid.patches(), pixels.count(), blocks.rows * pixels.width);
}

void depthwise_backward(const PatchDepthwise& filter, const DepthwiseGradients& gradients, Type type, const char* op,
                        Stream stream) {
  if (depthwise_backward_mma(filter, gradients, type, op, stream)) return;
  if (gradients.factors) {
    const int64_t pixels = filter.grid.patches() * filter.grid.patch_h * filter.grid.patch_w;
    pass_batch_norm(gradients.d, gradients.filtered, gradients.factors, pixels, filter.stored, type, op, stream);
  }
  depthwise_wgrad(filter, gradients, type, op, stream);
  const DepthwiseBlocks blocks(filter, PatchPixels(filter.grid, filter.own), false);
  const size_t shared = std::max(9 * sizeof(float), blocks.slots * sizeof(GradientSums)) * blocks.channels();
  const Grid grid = grid_of(op, blocks.blocks());
  with_type(type, [&](auto value) {
    using T = decltype(value);
    const T* pulled = static_cast<const T*>(gradients.d);
    T* gradient = static_cast<T*>(gradients.gradient);
    if (filter.own)
      launch<depthwise_gradient_own_kernel<T>>(op, grid, blocks.threads(), shared, stream, filter, blocks, pulled,
                                               gradients.hidden, gradient, gradients.partial);
    else
      launch<depthwise_gradient_neighbour_kernel<T>>(op, grid, blocks.threads(), shared, stream, filter, blocks, pulled,
                                                     gradients.hidden, gradient, gradients.partial);
  });
}

}  // namespace hyperseg::cuda
