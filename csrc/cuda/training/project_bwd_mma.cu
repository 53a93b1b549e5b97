#include <algorithm>
#include <type_traits>

#include "cuda/device/launch.cuh"
#include "cuda/training/channel_sums.cuh"
#include "cuda/training/patch_mma.cuh"
#include "cuda/training/patch_mma.h"

namespace hyperseg::cuda {
namespace {

constexpr int kMaxHidden = 72, kMaxOutputs = 32, kUnits = 3;

// Shared memory, in bytes: the matrix, the outputs' gradient, the input after norm and ReLU6, and small arrays.
struct ProjectLayout {
  int outputs, hidden;  // multiples of 16
  int hidden_stride, d_stride;
  int d_at, hidden_at, norm_at, factors_at, offsets_at, bytes;
  FastDivmod by_hidden, across;
  FastDivmod by_groups;
  int groups, step;  // of eight hidden channels; pixels that a block loads at once

  ProjectLayout(const ProjectBackward& project, bool by_pixel)
      : outputs(to_16(project.matrix.outputs)),
        hidden(to_16(project.matrix.inputs)),
        hidden_stride(odd_stride(hidden)),
        d_stride(odd_stride(by_pixel ? outputs : kTilePixels)),
        d_at(2 * outputs * hidden_stride),
        hidden_at(d_at + 2 * (by_pixel ? kTilePixels : outputs) * d_stride),
        norm_at(hidden_at + 2 * kTilePixels * hidden_stride),
        factors_at(norm_at + static_cast<int>(2 * hidden * sizeof(float))),
        offsets_at(factors_at + static_cast<int>(outputs * sizeof(float4))),
        bytes(offsets_at + static_cast<int>(2 * kTilePixels * sizeof(int64_t))),
        by_hidden(project.matrix.inputs),
        across(hidden / 16),
        by_groups(project.stored / 8),
        groups(project.stored / 8),
        step(kPatchThreads / std::max(groups, 1)) {}
};

// BY_PIXEL: the outputs have contiguous channels.
template <typename T, bool BY_PIXEL>
HYPERSEG_KERNEL(kPatchThreads, 4)
project_backward_mma_kernel(ProjectBackward project, ProjectLayout layout) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int thread = threadIdx.x, lane = thread % 32, warp = warp_index();
  const int outputs = project.matrix.outputs, hidden = project.matrix.inputs, stored = project.stored;
  const int pixels = project.pixels.count();
  const Patch patch(static_cast<int>(blockIdx.x), project.grid);
  char* memory = shared_memory();
  T* matrix = reinterpret_cast<T*>(memory);
  T *d_tile = reinterpret_cast<T*>(memory + layout.d_at), *tile = reinterpret_cast<T*>(memory + layout.hidden_at);
  float *norm_scale = reinterpret_cast<float*>(memory + layout.norm_at), *norm_shift = norm_scale + layout.hidden;
  float4* factors = reinterpret_cast<float4*>(memory + layout.factors_at);
  int64_t *of_d = reinterpret_cast<int64_t*>(memory + layout.offsets_at), *of_z = of_d + kTilePixels;
  stage_matrix(matrix, matrix_of<T>(project.matrix, patch), outputs, hidden, layout.outputs, layout.hidden_stride,
               layout.by_hidden);
  const bool has_factors = project.factors != nullptr;
  if (thread < layout.hidden) {
    norm_scale[thread] = thread < hidden ? project.norm.scale[thread] : 0.0f;
    norm_shift[thread] = thread < hidden ? project.norm.shift[thread] : 0.0f;
  }
  if (has_factors && thread < outputs)
    factors[thread] =
        float4{project.factors[thread], project.factors[outputs + thread], project.factors[2 * outputs + thread], 0.0f};

  // The eight channels of which a thread loads hidden values.
  const int own_pixel = layout.by_groups.quotient(thread), group = thread - own_pixel * layout.groups;
  const T* values = static_cast<const T*>(project.hidden) + patch.index * pixels * stored;
  T* d_hidden = static_cast<T*>(project.d_hidden) + patch.index * pixels * stored;

  pad_channels<BY_PIXEL>(d_tile, layout.d_stride, outputs, layout.outputs);
  UnitSums<T, kUnits> sums(outputs, layout.across);
  GradientSums channels[kMaxHidden / 4];  // by pair of a lane: see channel_sums.cuh
  for (int first = 0; first < pixels; first += kTilePixels) {
    const int count = min(kTilePixels, pixels - first), padded = to_16(count);
    sync_block();
    if (own_pixel < layout.step) {
      float scale[8], shift[8];
      load8(norm_scale + 8 * group, scale);
      load8(norm_shift + 8 * group, shift);
      stage_normalised(tile + 8 * group, layout.hidden_stride, values + 8 * group, stored, first, padded, pixels,
                       own_pixel, layout.step, scale, shift);
    }
    // The outputs' gradient, of channels c, c + step and so on.
    const auto stage = [&](int pixel, int64_t of_d, int64_t of_z, int c, int step) {
      const T* d = project.d.as<const T>() + of_d + c * project.d.stride_c;
      const float* z = project.z3.data + of_z + c * project.z3.stride_c;
      T* to = d_tile + (BY_PIXEL ? pixel * layout.d_stride + c : c * layout.d_stride + pixel);
      const int next = BY_PIXEL ? step : step * layout.d_stride;
      const bool known = pixel < count;
      if (has_factors) {
#pragma unroll 2
        for (; c < outputs; c += step, d += step * project.d.stride_c, z += step * project.z3.stride_c, to += next) {
          const float4 f = factors[c];
          const float v = fmaf(to_float(*d), f.x, fmaf(*z, f.y, f.z));
          *to = from_float<T>(known ? v : 0.0f);
        }
      } else {
        for (; c < outputs; c += step, d += step * project.d.stride_c, to += next)
          *to = known ? *d : from_float<T>(0.0f);
      }
    };
    if constexpr (BY_PIXEL) {
      find_pixels(of_d, project.d, patch, project.pixels, first);
      if (has_factors) find_pixels(of_z, project.z3, patch, project.pixels, first);
      sync_block();
      for (int p = warp; p < padded; p += kPatchThreads / 32) stage(p, of_d[p], has_factors ? of_z[p] : 0, lane, 32);
    } else {
      const int pixel = thread % kTilePixels, p = min(first + pixel, pixels - 1);
      const int y = project.pixels.across.quotient(p), x = p - y * project.pixels.width;
      stage(pixel, offset_of(project.d, patch, y, x), has_factors ? offset_of(project.z3, patch, y, x) : 0,
            thread / kTilePixels, kPatchThreads / kTilePixels);
    }
    sync_block();

    sums.template add<BY_PIXEL, true>(d_tile, layout.d_stride, tile, layout.hidden_stride, padded);
    const int row = 16 * warp;
    if (row >= count) continue;
    uint32_t a[kMaxOutputs / 16][4];
#pragma unroll
    for (int k = 0; k < kMaxOutputs; k += 16)
      if (k < layout.outputs) load_block<true, !BY_PIXEL>(a[k / 16], d_tile, layout.d_stride, row, k);
    const int of_lane = first + row + lane / 4, pair = lane % 4 * 2;
    const bool known[2] = {of_lane < pixels, of_lane + 8 < pixels};
    const T* from[2] = {values + min(of_lane, pixels - 1) * stored + pair,
                        values + min(of_lane + 8, pixels - 1) * stored + pair};
    T* to[2] = {d_hidden + of_lane * stored + pair, d_hidden + (of_lane + 8) * stored + pair};
    const float *scales = norm_scale + pair, *shifts = norm_shift + pair;
#pragma unroll
    for (int column = 0; column < kMaxHidden; column += 16) {
      if (column >= stored) break;
      float product[2][4] = {};
#pragma unroll
      for (int k = 0; k < kMaxOutputs; k += 16) {
        if (k >= layout.outputs) break;
        uint32_t b[4];
        load_block<false, true>(b, matrix, layout.hidden_stride, column, k);
        mma16<T>(product[0], a[k / 16], b[0], b[1]);
        mma16<T>(product[1], a[k / 16], b[2], b[3]);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int c = column + 8 * half;
        if (c >= kMaxHidden || c >= stored) break;
        const Relu6Gates gates(load2(scales + c), load2(shifts + c));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float2 z = load2(from[i] + c);
          const float2 d{gates.first(product[half][2 * i], z.x), gates.second(product[half][2 * i + 1], z.y)};
          if (known[i]) store2(to[i] + c, d);
          channels[c / 4].add(d.x, z.x);
          channels[c / 4 + 1].add(d.y, z.y);
        }
      }
    }
  }
  sums.store(static_cast<T*>(project.d_matrix) + patch.index * project.parameters + project.first, outputs, hidden);

  sync_block();
  GradientSums* shared = reinterpret_cast<GradientSums*>(memory);  // [warp and row][channel]
  constexpr int kSlots = kPatchThreads / 4;
#pragma unroll
  for (int n = 0; n < kMaxHidden / 8; ++n) {
    if (8 * n >= stored) break;
    GradientSums* own = shared + (thread / 4) * stored + 8 * n + lane % 4 * 2;
    own[0] = channels[2 * n], own[1] = channels[2 * n + 1];
  }
  store_row(shared, kSlots, stored, hidden, project.partial + patch.index * 2 * stored, 0, stored);
}

}  // namespace

bool projects_by_mma(const ProjectBackward& project, Type type) {
  const int64_t values = int64_t{project.stored} * project.grid.patch_h * project.grid.patch_w;
  return type != Type::kFloat && project.stored <= kMaxHidden && project.matrix.outputs <= kMaxOutputs &&
         has_units(project.matrix.outputs, project.matrix.inputs, kUnits) && values < int64_t{1} << 31;
}

bool project_backward_mma(const ProjectBackward& project, Type type, const char* op, Stream stream) {
  if (!projects_by_mma(project, type)) return false;
  const bool by_pixel = project.d.stride_c == 1 && project.matrix.outputs > 1;
  const ProjectLayout layout(project, by_pixel);
  const size_t sums = kPatchThreads / 4 * project.stored * sizeof(GradientSums);
  with_16_bit_type(type, [&](auto value) {
    using T = decltype(value);
    const auto run = [&](auto layout_of_d) {
      launch<project_backward_mma_kernel<T, layout_of_d.value>>(op, grid_of(op, project.grid.patches()), kPatchThreads,
                                                                std::max(static_cast<size_t>(layout.bytes), sums),
                                                                stream, project, layout);
    };
    by_pixel ? run(std::true_type{}) : run(std::false_type{});
  });
  return true;
}

}  // namespace hyperseg::cuda
