#include <utility>

#include "cuda/device/launch.cuh"
#include "cuda/device/mma_tile.cuh"
#include "cuda/training/patch_gemm.h"
#include "cuda/training/patches.cuh"
#include "cuda/training/row_layout.cuh"

// Weight gradients of a patch's matrices: a block sums a tile over the pixels of the patch, in order. 16-bit floats are
// staged in their memory layout, contiguous channels per pixel, and transposed by ldmatrix.
namespace hyperseg::cuda {
namespace {

// gradient[r, c] = sum over pixels of left[p, r] * right[p, c]
struct WgradArgs {
  PatchGrid grid;
  PatchPixels pixels;
  PatchedMap<const void> left, right;
  int left_stride, right_stride;  // channels per tile
  bool left_vectorized, right_vectorized;
  ScaleShift norm;  // of the right operand
  int rows, columns;
  void* gradient;
  int64_t first, parameters;
  int row_stride, column_stride;
};

template <typename T>
struct WgradSharedLayout {
  static constexpr bool kSimt = std::is_same_v<T, float>;
  static constexpr int M = 64, N = kSimt ? 64 : 80, K = kSimt ? mma_tile_detail::kDepth : 64;  // pixels at once
  using Left = mma_tile_detail::DepthMajor<M>;
  using Right = mma_tile_detail::DepthMajor<N>;
  static constexpr size_t kRightAt = kSimt ? K * (M + 1) * sizeof(T) : K * Left::kStride * sizeof(T);
  static constexpr size_t kNormAt = kRightAt + K * (kSimt ? N + 1 : Right::kStride) * sizeof(T);
  static constexpr size_t kOffsetsAt = (kNormAt + 2 * N * sizeof(float) + 15) / 16 * 16;
  static constexpr size_t kBytes = kOffsetsAt + 2 * K * sizeof(int64_t);
};

template <typename T, bool NORMALISED>
HYPERSEG_KERNEL(kGemmThreads, 4)
patch_wgrad_kernel(WgradArgs wgrad) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  using namespace mma_tile_detail;
  using Shared = WgradSharedLayout<T>;
  constexpr int M = Shared::M, N = Shared::N, K = Shared::K;
  const int thread = threadIdx.x, pixels = wgrad.pixels.count();
  const unsigned across = (wgrad.columns + N - 1) / N, down = (wgrad.rows + M - 1) / M;
  const int column = static_cast<int>(blockIdx.x % across) * N, row = static_cast<int>(blockIdx.x / across % down) * M;
  const int rows = min(M, wgrad.rows - row), columns = min(N, wgrad.columns - column);
  const Patch patch(blockIdx.x / across / down, wgrad.grid);
  const int stride_left = wgrad.left_stride, stride_right = wgrad.right_stride;
  const T* values_left = wgrad.left.as<const T>();
  const T* values_right = wgrad.right.as<const T>();
  char* memory = shared_memory();
  T *left = reinterpret_cast<T*>(memory), *right = reinterpret_cast<T*>(memory + Shared::kRightAt);
  float *norm_scale = reinterpret_cast<float*>(memory + Shared::kNormAt), *norm_shift = norm_scale + N;
  int64_t* of_left = reinterpret_cast<int64_t*>(memory + Shared::kOffsetsAt);  // offsets of the pixels' first channels
  int64_t* of_right = of_left + K;
  if (NORMALISED && thread < N) {
    norm_scale[thread] = thread < columns ? wgrad.norm.scale[column + thread] : 0.0f;
    norm_shift[thread] = thread < columns ? wgrad.norm.shift[column + thread] : 0.0f;
  }

  std::conditional_t<Shared::kSimt, SimtAccumulators<M, N>,
                     MmaAccumulators<T, M, N, typename Shared::Left, typename Shared::Right>>
      sums;
  for (int first = 0; first < pixels; first += K) {
    const int steps = min(K, pixels - first);
    if (first > 0) sync_block();
    const int k = thread % K;
    if (k < steps && thread < 2 * K) {
      const int y = wgrad.pixels.across.quotient(first + k), x = first + k - y * wgrad.pixels.width;
      if (thread < K)
        of_left[k] = offset_of(wgrad.left, patch, y, x) + int64_t{row} * stride_left;
      else
        of_right[k] = offset_of(wgrad.right, patch, y, x) + int64_t{column} * stride_right;
    }
    sync_block();
    if constexpr (Shared::kSimt) {
      const auto pull = [&](int m, int p) {
        return m < rows ? values_left[of_left[p - first] + int64_t{m} * stride_left] : 0.0f;
      };
      const auto read = [&](int n, int p) {
        if (n >= columns) return 0.0f;
        const float value = values_right[of_right[p - first] + int64_t{n} * stride_right];
        return NORMALISED ? relu6(fmaf(value, norm_scale[n], norm_shift[n])) : value;
      };
      fill<T, M, 4>(left, pull, first, steps, stride_left != 1 && pixels >= 8);
      fill<T, N, 4>(right, read, first, steps, stride_right != 1 && pixels >= 8);
      sync_block();
      sums.add(left, right, steps);
    } else {
      const int depth = (steps + 15) / 16 * 16;
      const auto line_left = [&](int p) { return values_left + of_left[p]; };
      const auto line_right = [&](int p) { return values_right + of_right[p]; };
      const auto finish = [&](uint4 v, int n) {
        if constexpr (NORMALISED)
          return Normalised8<T>{norm_scale, norm_shift}(v, n);
        else
          return v;
      };
      const int groups_left = (rows + 7) / 8, groups_right = (columns + 7) / 8;
      stage_vectors<kGemmThreads, Shared::Left::kStride, true>(left, depth, steps, groups_left, rows, stride_left,
                                                               wgrad.left_vectorized, line_left, Identity{});
      stage_vectors<kGemmThreads, Shared::Right::kStride, true>(
          right, depth, steps, groups_right, columns, stride_right, wgrad.right_vectorized, line_right, finish);
      sync_block();
      sums.add(left, right, steps, rows, columns);
    }
  }
  T* gradient = static_cast<T*>(wgrad.gradient) + patch.index * wgrad.parameters + wgrad.first;
  gradient += static_cast<int64_t>(row) * wgrad.row_stride + static_cast<int64_t>(column) * wgrad.column_stride;
  sums.store([&](int r, int c, float sum) {
    if (r < rows && c < columns)
      gradient[static_cast<int64_t>(r) * wgrad.row_stride + static_cast<int64_t>(c) * wgrad.column_stride] =
          from_float<T>(sum);
  });
}

}  // namespace

void patch_wgrad(const PatchWgrad& wgrad, Type type, const char* op, Stream stream) {
  WgradArgs args{wgrad.grid,
                 wgrad.pixels,
                 wgrad.d,
                 wgrad.input,
                 stride_of(op, wgrad.d.stride_c),
                 stride_of(op, wgrad.input.stride_c),
                 is_vectorized(wgrad.d, wgrad.outputs),
                 is_vectorized(wgrad.input, wgrad.inputs),
                 wgrad.norm,
                 wgrad.outputs,
                 wgrad.inputs,
                 wgrad.gradient,
                 wgrad.first,
                 wgrad.parameters,
                 wgrad.inputs,
                 1};
  if (wgrad.outputs > wgrad.inputs && !wgrad.norm.scale) {  // a tile is wider than high
    std::swap(args.left, args.right);
    std::swap(args.left_stride, args.right_stride);
    std::swap(args.left_vectorized, args.right_vectorized);
    std::swap(args.rows, args.columns);
    std::swap(args.row_stride, args.column_stride);
  }
  with_type(type, [&](auto value) {
    using T = decltype(value);
    const int64_t tiles = int64_t{(args.rows + WgradSharedLayout<T>::M - 1) / WgradSharedLayout<T>::M} *
                          ((args.columns + WgradSharedLayout<T>::N - 1) / WgradSharedLayout<T>::N);
    const Grid grid = grid_of(op, wgrad.grid.patches() * tiles);
    if (wgrad.norm.scale)
      launch<patch_wgrad_kernel<T, true>>(op, grid, kGemmThreads, WgradSharedLayout<T>::kBytes, stream, args);
    else
      launch<patch_wgrad_kernel<T, false>>(op, grid, kGemmThreads, WgradSharedLayout<T>::kBytes, stream, args);
  });
}

}  // namespace hyperseg::cuda
