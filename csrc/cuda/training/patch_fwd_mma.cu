#include <algorithm>
#include <type_traits>

#include "cuda/device/launch.cuh"
#include "cuda/training/channel_sums.cuh"
#include "cuda/training/patch_mma.cuh"
#include "cuda/training/patch_mma.h"

namespace hyperseg::cuda {
namespace {

constexpr int kWarps = kPatchThreads / 32;

// Moments of the columns of a warp's products. Deviations are from the warp's first value of each column, which is in
// shared memory.
template <int COLUMNS>
class WarpMoments {
 public:
  // `firsts`: COLUMNS values of the warp.
  HYPERSEG_DEVICE explicit WarpMoments(float* firsts) : firsts_(firsts + threadIdx.x % 4 * 2) {}

  // Add two columns from 8 * n on, of rows lane / 4 and 8 further down.
  HYPERSEG_DEVICE void add(int n, float2 upper, float2 lower, const bool (&known)[2]) {
    if (count_ == 0.0f) {
      if (threadIdx.x % 32 < 4) store2(firsts_ + 8 * n, upper);
      sync_warp();
    }
    const float2 first = load2(firsts_ + 8 * n);
    const float2 rest[2] = {{upper.x - first.x, upper.y - first.y}, {lower.x - first.x, lower.y - first.y}};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!known[i]) continue;
      sums_[n][0] += rest[i].x, sums_[n][1] += rest[i].y;
      squares_[n][0] += rest[i].x * rest[i].x, squares_[n][1] += rest[i].y * rest[i].y;
    }
  }
  HYPERSEG_DEVICE void added(int rows) { count_ += static_cast<float>(rows); }

  // Write the warp's row of [warp][channels].
  HYPERSEG_DEVICE void store(Moments* shared, int channels) {
    const int lane = threadIdx.x % 32;
    Moments* own = shared + warp_index() * channels + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; ++n) {
      if (8 * n >= channels) break;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float sum = sum_of_rows(sums_[n][e]), squares = sum_of_rows(squares_[n][e]);
        if (lane >= 4 || 8 * n + lane % 4 * 2 + e >= channels) continue;
        own[8 * n + e].count = count_, own[8 * n + e].first = count_ > 0.0f ? firsts_[8 * n + e] : 0.0f;
        own[8 * n + e].sum = sum, own[8 * n + e].squares = squares;
      }
    }
  }

 private:
  float* firsts_;
  float count_ = 0.0f, sums_[COLUMNS / 8][2] = {}, squares_[COLUMNS / 8][2] = {};
};

constexpr int kMaxHidden = 80, kMaxOutputs = 32;

// Shared memory, in bytes: the matrix, the input, then small arrays.
struct ForwardLayout {
  int depth, outputs;  // multiples of 16
  int matrix_stride, stride;
  int input_at, offsets_at, firsts_at, norm_at, bytes;
  FastDivmod by_input, by_groups;
  bool pairs = false;
  int groups = 0, step = 0;  // of eight channels; pixels that a block loads at once

  ForwardLayout(const PatchMatrix& matrix, int channels_of_block, bool by_pixel)
      : depth(to_16(matrix.inputs)),
        outputs(to_16(matrix.outputs)),
        matrix_stride(odd_stride(depth)),
        stride(odd_stride(by_pixel ? depth : kTilePixels)),
        input_at(2 * outputs * matrix_stride),
        offsets_at(input_at + 2 * (by_pixel ? kTilePixels : depth) * stride),
        // The warps' moments take the place of everything before their first values.
        firsts_at(std::max(offsets_at + static_cast<int>(kTilePixels * sizeof(int64_t)),
                           static_cast<int>(kWarps * channels_of_block * sizeof(Moments)))),
        bytes(firsts_at + static_cast<int>(kWarps * channels_of_block * sizeof(float))),
        by_input(matrix.inputs) {}
};

// The left operands of a warp's 16 pixels.
template <bool BY_DEPTH, typename T>
HYPERSEG_DEVICE void load_row(uint32_t (&a)[kMaxDepth / 16][4], const T* tile, int stride, int row, int depth) {
#pragma unroll
  for (int k = 0; k < kMaxDepth; k += 16)
    if (k < depth) load_block<true, BY_DEPTH>(a[k / 16], tile, stride, row, k);
}
// Their products with 16 outputs of the matrix [output][depth].
template <typename T>
HYPERSEG_DEVICE void multiply_row(float (&product)[2][4], const uint32_t (&a)[kMaxDepth / 16][4], const T* matrix,
                                  int stride, int column, int depth) {
#pragma unroll
  for (int k = 0; k < kMaxDepth; k += 16) {
    if (k >= depth) break;
    uint32_t b[4];
    load_block<false, false>(b, matrix, stride, column, k);
    mma16<T>(product[0], a[k / 16], b[0], b[1]);
    mma16<T>(product[1], a[k / 16], b[2], b[3]);
  }
}

template <typename T, bool BY_PIXEL, bool MOMENTS>
HYPERSEG_KERNEL(kPatchThreads, 4)
expand_mma_kernel(ExpandForward expand, ForwardLayout layout) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int lane = threadIdx.x % 32, row = 16 * warp_index();
  const int inputs = expand.matrix.inputs, stored = expand.stored, pixels = expand.pixels.count();
  const Patch patch(static_cast<int>(blockIdx.x), expand.grid);
  char* memory = shared_memory();
  T *matrix = reinterpret_cast<T*>(memory), *tile = reinterpret_cast<T*>(memory + layout.input_at);
  float* firsts = reinterpret_cast<float*>(memory + layout.firsts_at);
  stage_matrix(matrix, matrix_of<T>(expand.matrix, patch), expand.matrix.outputs, inputs, layout.outputs,
               layout.matrix_stride, layout.by_input);
  pad_channels<BY_PIXEL>(tile, layout.stride, inputs, layout.depth);
  WarpMoments<kMaxHidden> moments(firsts + row / 16 * kMaxHidden);
  T* hidden = static_cast<T*>(expand.hidden) + patch.index * pixels * stored;
  for (int first = 0; first < pixels; first += kTilePixels) {
    const int count = min(kTilePixels, pixels - first);
    if (first > 0) sync_block();
    stage_channels<BY_PIXEL>(tile, layout.stride, expand.input, patch, expand.pixels, first, to_16(count), inputs,
                             layout.pairs, reinterpret_cast<int64_t*>(memory + layout.offsets_at));
    sync_block();
    if (row >= count) continue;
    uint32_t a[kMaxDepth / 16][4];
    load_row<!BY_PIXEL>(a, tile, layout.stride, row, layout.depth);
    const int of_lane = first + row + lane / 4;
    const bool known[2] = {of_lane < pixels, of_lane + 8 < pixels};
    T* to = hidden + of_lane * stored + lane % 4 * 2;
    T* below = to + 8 * stored;
#pragma unroll
    for (int column = 0; column < kMaxHidden; column += 16) {
      if (column >= stored) break;
      float product[2][4] = {};
      multiply_row(product, a, matrix, layout.matrix_stride, column, layout.depth);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = column + 8 * half;
        if (c >= stored) break;
        const uint32_t v[2] = {pack<T>(product[half][0], product[half][1]),
                               pack<T>(product[half][2], product[half][3])};
        if (known[0]) *reinterpret_cast<uint32_t*>(to + c) = v[0];
        if (known[1]) *reinterpret_cast<uint32_t*>(below + c) = v[1];
        if constexpr (MOMENTS) moments.add(c / 8, unpack<T>(v[0]), unpack<T>(v[1]), known);
      }
    }
    if constexpr (MOMENTS) moments.added(min(16, count - row));
  }
  if constexpr (MOMENTS) {
    sync_block();
    Moments* shared = reinterpret_cast<Moments*>(memory);
    moments.store(shared, stored);
    store_row(shared, kWarps, stored, expand.matrix.outputs, expand.partial + patch.index * 2 * stored, 0, stored);
  }
}

template <typename T, bool PAIRED>
HYPERSEG_KERNEL(kPatchThreads, 4)
project_mma_kernel(ProjectForward project, ForwardLayout layout) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int thread = threadIdx.x, lane = thread % 32, row = 16 * warp_index();
  const int hidden = project.matrix.inputs, outputs = project.matrix.outputs, stored = project.stored;
  const int pixels = project.pixels.count();
  const Patch patch(static_cast<int>(blockIdx.x), project.grid);
  char* memory = shared_memory();
  T *matrix = reinterpret_cast<T*>(memory), *tile = reinterpret_cast<T*>(memory + layout.input_at);
  float* firsts = reinterpret_cast<float*>(memory + layout.firsts_at);
  stage_matrix(matrix, matrix_of<T>(project.matrix, patch), outputs, hidden, layout.outputs, layout.matrix_stride,
               layout.by_input);
  pad_channels<true>(tile, layout.stride, stored, layout.depth);
  const int own_pixel = layout.by_groups.quotient(thread), group = thread - own_pixel * layout.groups;
  float scale[8], shift[8];
  load_factors(project.norm.scale, 8 * group, hidden, scale);
  load_factors(project.norm.shift, 8 * group, hidden, shift);
  const T* values = static_cast<const T*>(project.hidden) + patch.index * pixels * stored + 8 * group;
  WarpMoments<kMaxOutputs> moments(firsts + row / 16 * kMaxOutputs);
  GradientSums sums[kMaxOutputs / 4];  // by pair of a lane: see channel_sums.cuh
  for (int first = 0; first < pixels; first += kTilePixels) {
    const int count = min(kTilePixels, pixels - first), padded = to_16(count);
    if (first > 0) sync_block();
    stage_normalised(tile + 8 * group, layout.stride, values, stored, first, padded, pixels, own_pixel, layout.step,
                     scale, shift);
    sync_block();
    if (row >= count) continue;
    uint32_t a[kMaxDepth / 16][4];
    load_row<false>(a, tile, layout.stride, row, layout.depth);
    const int of_lane = first + row + lane / 4;
    const bool known[2] = {of_lane < pixels, of_lane + 8 < pixels};
    float* to[2];
    const T* other[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int p = min(of_lane + 8 * i, pixels - 1), y = project.pixels.across.quotient(p);
      const int x = p - y * project.pixels.width;
      to[i] = project.out.data + offset_of(project.out, patch, y, x) + lane % 4 * 2 * project.out.stride_c;
      if constexpr (PAIRED)
        other[i] = project.paired.as<const T>() + offset_of(project.paired, patch, y, x) +
                   lane % 4 * 2 * project.paired.stride_c;
    }
#pragma unroll
    for (int column = 0; column < kMaxOutputs; column += 16) {
      if (column >= outputs) break;
      float product[2][4] = {};
      multiply_row(product, a, matrix, layout.matrix_stride, column, layout.depth);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = column + 8 * half, of_pair = c + lane % 4 * 2;
        if (c >= outputs) break;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            if (!known[i] || of_pair + e >= outputs) continue;
            const float v = product[half][2 * i + e];
            to[i][(c + e) * project.out.stride_c] = v;
            if constexpr (PAIRED) sums[c / 4 + e].add(to_float(other[i][(c + e) * project.paired.stride_c]), v);
          }
        if constexpr (!PAIRED)
          moments.add(c / 8, float2{product[half][0], product[half][1]}, float2{product[half][2], product[half][3]},
                      known);
      }
    }
    moments.added(min(16, count - row));
  }
  sync_block();
  if constexpr (PAIRED) {
    GradientSums* shared = reinterpret_cast<GradientSums*>(memory);
#pragma unroll
    for (int n = 0; n < kMaxOutputs / 8; ++n) {
      if (8 * n >= outputs) break;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const GradientSums whole{sum_of_rows(sums[2 * n + e].total), sum_of_rows(sums[2 * n + e].by_value)};
        const int c = 8 * n + lane % 4 * 2 + e;
        if (lane < 4 && c < outputs) shared[row / 16 * outputs + c] = whole;
      }
    }
    store_row(shared, kWarps, outputs, outputs, project.partial + patch.index * 2 * outputs, 0, outputs);
  } else {
    Moments* shared = reinterpret_cast<Moments*>(memory);
    moments.store(shared, outputs);
    store_row(shared, kWarps, outputs, outputs, project.partial + patch.index * 2 * outputs, 0, outputs);
  }
}

}  // namespace

bool expands_by_mma(const ExpandForward& expand, Type type) {
  const int64_t values = int64_t{expand.stored} * expand.pixels.count();
  return type != Type::kFloat && expand.stored <= kMaxHidden && to_16(expand.matrix.inputs) <= kMaxDepth &&
         values < int64_t{1} << 31;
}

bool expand_mma(const ExpandForward& expand, Type type, const char* op, Stream stream) {
  if (!expands_by_mma(expand, type)) return false;
  const bool by_pixel = expand.input.stride_c == 1 && expand.matrix.inputs > 1;
  ForwardLayout layout(expand.matrix, kMaxHidden, by_pixel);
  layout.pairs = in_pairs(expand.input, expand.matrix.inputs);
  with_16_bit_type(type, [&](auto value) {
    using T = decltype(value);
    const auto run = [&](auto pixel_wise, auto moments) {
      launch<expand_mma_kernel<T, pixel_wise.value, moments.value>>(
          op, grid_of(op, expand.grid.patches()), kPatchThreads, layout.bytes, stream, expand, layout);
    };
    const auto with_layout = [&](auto moments) {
      by_pixel ? run(std::true_type{}, moments) : run(std::false_type{}, moments);
    };
    expand.partial ? with_layout(std::true_type{}) : with_layout(std::false_type{});
  });
  return true;
}

bool projects_by_mma(const ProjectForward& project, Type type) {
  const int64_t values = int64_t{project.stored} * project.pixels.count();
  return type != Type::kFloat && to_16(project.stored) <= kMaxDepth && project.matrix.outputs <= kMaxOutputs &&
         values < int64_t{1} << 31;
}

bool project_mma(const ProjectForward& project, Type type, const char* op, Stream stream) {
  if (!projects_by_mma(project, type)) return false;
  ForwardLayout layout(project.matrix, kMaxOutputs, true);
  layout.groups = project.stored / 8, layout.step = kPatchThreads / layout.groups;
  layout.by_groups = FastDivmod(layout.groups);
  with_16_bit_type(type, [&](auto value) {
    using T = decltype(value);
    const auto run = [&](auto paired) {
      launch<project_mma_kernel<T, paired.value>>(op, grid_of(op, project.grid.patches()), kPatchThreads, layout.bytes,
                                                  stream, project, layout);
    };
    project.paired.data ? run(std::true_type{}) : run(std::false_type{});
  });
  return true;
}

}  // namespace hyperseg::cuda
