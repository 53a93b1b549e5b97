#include <algorithm>
#include <type_traits>

#include "cuda/device/launch.cuh"
#include "cuda/training/patch_mma.cuh"
#include "cuda/training/patch_mma.h"

namespace hyperseg::cuda {
namespace {

constexpr int kUnits = 4;

// Shared memory, in values: the matrix, the gradient [pixel][output], then the input.
struct ExpandLayout {
  int depth, inputs;  // multiples of 16: outputs, inputs
  int matrix_stride, d_stride, input_stride;
  int d_at, input_at, values;
  FastDivmod by_input, across;
  bool pairs;
  FastDivmod by_groups;
  int groups, step;  // of eight outputs; pixels that a block loads at once

  ExpandLayout(const ExpandBackward& expand, bool by_pixel)
      : depth(to_16(expand.matrix.outputs)),
        inputs(to_16(expand.matrix.inputs)),
        matrix_stride(odd_stride(inputs)),
        d_stride(odd_stride(depth)),
        input_stride(odd_stride(by_pixel ? inputs : kTilePixels)),
        d_at(depth * matrix_stride),
        input_at(d_at + kTilePixels * d_stride),
        values(input_at + (by_pixel ? kTilePixels : inputs) * input_stride),
        by_input(expand.matrix.inputs),
        across(inputs / 16),
        pairs(in_pairs(expand.input, expand.matrix.inputs)),
        by_groups(expand.stored / 8),
        groups(expand.stored / 8),
        step(kPatchThreads / std::max(groups, 1)) {}
  size_t bytes() const { return values * sizeof(half) + kTilePixels * sizeof(int64_t); }
};

// BY_PIXEL: threads go along the channels of input and windows, else along the pixels.
template <typename T, bool BY_PIXEL>
HYPERSEG_KERNEL(kPatchThreads, 4)
expand_backward_mma_kernel(ExpandBackward expand, ExpandLayout layout) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int thread = threadIdx.x, lane = thread % 32, warp = warp_index();
  const int outputs = expand.matrix.outputs, inputs = expand.matrix.inputs, stored = expand.stored;
  const int pixels = expand.pixels.count();
  const Patch patch(static_cast<int>(blockIdx.x), expand.grid);
  T* matrix = reinterpret_cast<T*>(shared_memory());
  T *d_tile = matrix + layout.d_at, *input_tile = matrix + layout.input_at;
  stage_matrix(matrix, matrix_of<T>(expand.matrix, patch), outputs, inputs, layout.depth, layout.matrix_stride,
               layout.by_input);

  // The eight channels of which a thread loads gradients.
  const int own_pixel = layout.by_groups.quotient(thread), group = thread - own_pixel * layout.groups;
  const bool factors = expand.factors != nullptr;
  float factor[3][8];
  if (factors) {
#pragma unroll
    for (int i = 0; i < 3; ++i) load8(expand.factors + i * stored + 8 * group, factor[i]);
  }
  // What pads the depth, and the input, stays 0.
  if (stored < layout.depth)
    for (int p = thread; p < kTilePixels; p += kPatchThreads)
      store16_shared(d_tile + p * layout.d_stride + stored, uint4{});
  pad_channels<BY_PIXEL>(input_tile, layout.input_stride, inputs, layout.inputs);
  const int64_t first_value = patch.index * pixels * stored + 8 * group;
  const T *d = static_cast<const T*>(expand.d) + first_value,
          *hidden = static_cast<const T*>(expand.hidden) + first_value;
  int64_t* offsets = reinterpret_cast<int64_t*>(matrix + layout.values);
  const int channels = inputs - expand.first;
  T* windows = static_cast<T*>(expand.windows) + patch.index * pixels * channels;

  UnitSums<T, kUnits> sums(outputs, layout.across);
  for (int first = 0; first < pixels; first += kTilePixels) {
    const int count = min(kTilePixels, pixels - first), padded = to_16(count);
    if (first > 0) sync_block();
    if (own_pixel < layout.step) {
      T* to = d_tile + own_pixel * layout.d_stride + 8 * group;
      int p = own_pixel;
#pragma unroll 2
      for (; p < count; p += layout.step, to += layout.step * layout.d_stride) {
        const int place = (first + p) * stored;
        uint4 v = *reinterpret_cast<const uint4*>(d + place);
        if (factors) v = affine<T>(v, *reinterpret_cast<const uint4*>(hidden + place), factor);
        store16_shared(to, v);
      }
      for (; p < padded; p += layout.step, to += layout.step * layout.d_stride) store16_shared(to, uint4{});
    }
    // Pixels after the last one have gradients of 0.
    stage_channels<BY_PIXEL>(input_tile, layout.input_stride, expand.input, patch, expand.pixels, first, padded, inputs,
                             layout.pairs, offsets);
    sync_block();

    sums.template add<true, BY_PIXEL>(d_tile, layout.d_stride, input_tile, layout.input_stride, padded);
    const int row = 16 * warp;
    if (row >= count) continue;
    uint32_t a[kMaxDepth / 16][4];
#pragma unroll
    for (int k = 0; k < kMaxDepth; k += 16)
      if (k < layout.depth) load_block<true, false>(a[k / 16], d_tile, layout.d_stride, row, k);
    const int of_lane = first + row + lane / 4;
    const bool known[2] = {of_lane < pixels, of_lane + 8 < pixels};
    int c = lane % 4 * 2 - expand.first;
    const int next = BY_PIXEL ? 1 : pixels, below = BY_PIXEL ? 8 * channels : 8;  // from channel, pixel to another
    T* to = windows + c * next + (BY_PIXEL ? of_lane * channels : of_lane);
#pragma unroll 1
    for (int column = 0; column < inputs; column += 16) {
      float product[2][4] = {};
#pragma unroll
      for (int k = 0; k < kMaxDepth; k += 16) {
        if (k >= layout.depth) break;
        uint32_t b[4];
        load_block<false, true>(b, matrix, layout.matrix_stride, column, k);
        mma16<T>(product[0], a[k / 16], b[0], b[1]);
        mma16<T>(product[1], a[k / 16], b[2], b[3]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half, c += 8, to += 8 * next) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (c + e < 0 || c + e >= channels) continue;
          if (known[0]) to[e * next] = from_float<T>(product[half][e]);
          if (known[1]) to[e * next + below] = from_float<T>(product[half][2 + e]);
        }
      }
    }
  }
  sums.store(static_cast<T*>(expand.d_matrix) + patch.index * expand.parameters, outputs, inputs);
}

}  // namespace

bool expand_backward_mma(const ExpandBackward& expand, Type type, const char* op, Stream stream) {
  const ExpandLayout layout(expand, expand.by_pixel);
  const int64_t pixels = int64_t{expand.grid.patch_h + 2} * (expand.grid.patch_w + 2);
  const int64_t most = std::max(expand.stored, expand.matrix.inputs) * pixels;  // values of a patch
  if (type == Type::kFloat || layout.depth > kMaxDepth ||
      !has_units(expand.matrix.outputs, expand.matrix.inputs, kUnits) || layout.groups > kPatchThreads ||
      most >= int64_t{1} << 31)
    return false;
  with_16_bit_type(type, [&](auto value) {
    using T = decltype(value);
    const auto run = [&](auto layout_of_input) {
      launch<expand_backward_mma_kernel<T, layout_of_input.value>>(
          op, grid_of(op, expand.grid.patches()), kPatchThreads, layout.bytes(), stream, expand, layout);
    };
    expand.by_pixel ? run(std::true_type{}) : run(std::false_type{});
  });
  return true;
}

}  // namespace hyperseg::cuda
