#include <utility>

#include "cuda/device/launch.cuh"
#include "cuda/device/mma_tile.cuh"
#include "cuda/training/patch_gemm.h"
#include "cuda/training/patches.cuh"
#include "cuda/training/row_layout.cuh"

// The gradients of a patch's matrices: a block sums a tile over the pixels of the patch, in their order. Half types are
// laid into shared memory as they lie in memory, the channels of a pixel side by side, and ldmatrix turns them.
namespace hyperseg::cuda {
namespace {

// gradient[r, c] = sum over pixels of left[p, r] * right[p, c]
struct Outer {
  PatchGrid grid;
  PatchPixels pixels;
  PatchedMap<const void> left, right;
  int left_stride, right_stride;  // of channels
  bool left_eights, right_eights;
  Norm norm;  // of the right side
  int rows, columns;
  void* gradient;
  int64_t first, parameters;
  int row_stride, column_stride;
};

template <typename T>
struct Room {
  static constexpr bool kExact = std::is_same_v<T, float>;
  static constexpr int M = 64, N = kExact ? 64 : 80, K = kExact ? tile_product_detail::kDepth : 64;  // pixels at once
  using Left = tile_product_detail::Depths<M>;
  using Right = tile_product_detail::Depths<N>;
  static constexpr size_t kRightAt = kExact ? K * (M + 1) * sizeof(T) : K * Left::kStride * sizeof(T);
  static constexpr size_t kNormAt = kRightAt + K * (kExact ? N + 1 : Right::kStride) * sizeof(T);
  static constexpr size_t kOffsetsAt = (kNormAt + 2 * N * sizeof(float) + 15) / 16 * 16;
  static constexpr size_t kBytes = kOffsetsAt + 2 * K * sizeof(int64_t);
};

template <typename T, bool NORMALISED>
HYPERSEG_KERNEL(kProductThreads, 4)
patch_outer_kernel(Outer outer) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  using namespace tile_product_detail;
  using Shared = Room<T>;
  constexpr int M = Shared::M, N = Shared::N, K = Shared::K;
  const int thread = threadIdx.x, pixels = outer.pixels.count();
  const unsigned across = (outer.columns + N - 1) / N, down = (outer.rows + M - 1) / M;
  const int column = static_cast<int>(blockIdx.x % across) * N, row = static_cast<int>(blockIdx.x / across % down) * M;
  const int rows = min(M, outer.rows - row), columns = min(N, outer.columns - column);
  const Patch patch(blockIdx.x / across / down, outer.grid);
  const int stride_left = outer.left_stride, stride_right = outer.right_stride;
  const T* values_left = outer.left.as<const T>();
  const T* values_right = outer.right.as<const T>();
  char* memory = shared_memory();
  T *left = reinterpret_cast<T*>(memory), *right = reinterpret_cast<T*>(memory + Shared::kRightAt);
  float *norm_scale = reinterpret_cast<float*>(memory + Shared::kNormAt), *norm_shift = norm_scale + N;
  int64_t* of_left = reinterpret_cast<int64_t*>(memory + Shared::kOffsetsAt);  // where the first channels of pixels lie
  int64_t* of_right = of_left + K;
  if (NORMALISED && thread < N) {
    norm_scale[thread] = thread < columns ? outer.norm.scale[column + thread] : 0.0f;
    norm_shift[thread] = thread < columns ? outer.norm.shift[column + thread] : 0.0f;
  }

  std::conditional_t<Shared::kExact, Exact<M, N>, Fragments<T, M, N, typename Shared::Left, typename Shared::Right>>
      sums;
  for (int first = 0; first < pixels; first += K) {
    const int steps = min(K, pixels - first);
    if (first > 0) sync_block();
    const int k = thread % K;
    if (k < steps && thread < 2 * K) {
      const int y = outer.pixels.across.quotient(first + k), x = first + k - y * outer.pixels.width;
      if (thread < K)
        of_left[k] = offset_of(outer.left, patch, y, x) + int64_t{row} * stride_left;
      else
        of_right[k] = offset_of(outer.right, patch, y, x) + int64_t{column} * stride_right;
    }
    sync_block();
    if constexpr (Shared::kExact) {
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
      lay_eights<kProductThreads, Shared::Left::kStride, true>(left, depth, steps, groups_left, rows, stride_left,
                                                               outer.left_eights, line_left, AsItIs{});
      lay_eights<kProductThreads, Shared::Right::kStride, true>(right, depth, steps, groups_right, columns,
                                                                stride_right, outer.right_eights, line_right, finish);
      sync_block();
      sums.add(left, right, steps, rows, columns);
    }
  }
  T* gradient = static_cast<T*>(outer.gradient) + patch.index * outer.parameters + outer.first;
  gradient += static_cast<int64_t>(row) * outer.row_stride + static_cast<int64_t>(column) * outer.column_stride;
  sums.store([&](int r, int c, float sum) {
    if (r < rows && c < columns)
      gradient[static_cast<int64_t>(r) * outer.row_stride + static_cast<int64_t>(c) * outer.column_stride] =
          from_float<T>(sum);
  });
}

}  // namespace

void patch_outer(const PatchOuter& outer, Type type, const char* op, Stream stream) {
  Outer product{outer.grid,
                outer.pixels,
                outer.d,
                outer.input,
                stride_of(op, outer.d.stride_c),
                stride_of(op, outer.input.stride_c),
                by_eights(outer.d, outer.outputs),
                by_eights(outer.input, outer.inputs),
                outer.norm,
                outer.outputs,
                outer.inputs,
                outer.gradient,
                outer.first,
                outer.parameters,
                outer.inputs,
                1};
  if (outer.outputs > outer.inputs && !outer.norm.scale) {  // a tile is wider than it is high
    std::swap(product.left, product.right);
    std::swap(product.left_stride, product.right_stride);
    std::swap(product.left_eights, product.right_eights);
    std::swap(product.rows, product.columns);
    std::swap(product.row_stride, product.column_stride);
  }
  with_type(type, [&](auto value) {
    using T = decltype(value);
    const int64_t tiles =
        int64_t{(product.rows + Room<T>::M - 1) / Room<T>::M} * ((product.columns + Room<T>::N - 1) / Room<T>::N);
    const Grid grid = grid_of(op, outer.grid.patches() * tiles);
    if (outer.norm.scale)
      launch<patch_outer_kernel<T, true>>(op, grid, kProductThreads, Room<T>::kBytes, stream, product);
    else
      launch<patch_outer_kernel<T, false>>(op, grid, kProductThreads, Room<T>::kBytes, stream, product);
  });
}

}  // namespace hyperseg::cuda
