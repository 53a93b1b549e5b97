#include "launch.cuh"
#include "patch_product.h"
#include "patches.cuh"
#include "tile_product.cuh"

// The gradients of a patch's matrices: a block sums a tile over the pixels of the patch, in their order.
namespace hyperseg::cuda {
namespace {

template <typename T, int M, int N, bool NORMALISED>
HYPERSEG_KERNEL(kProductThreads, 4)
patch_outer_kernel(PatchOuter outer) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int width = outer.pixels.width, outputs = outer.outputs, inputs = outer.inputs;
  const unsigned across = (inputs + N - 1) / N, down = (outputs + M - 1) / M;
  const int column = static_cast<int>(blockIdx.x % across) * N, row = static_cast<int>(blockIdx.x / across % down) * M;
  const Patch patch(blockIdx.x / across / down, outer.grid);
  const T *d = outer.d.as<const T>(), *input = outer.input.as<const T>();
  T* gradient = static_cast<T*>(outer.gradient) + patch.index * outer.parameters + outer.first;
  const T zero = from_float<T>(0.0f);

  // Where the pixels that are multiplied next lie.
  constexpr size_t kOffsetsAt = tile_product_bytes<T, M, N>();
  int64_t* of_d = reinterpret_cast<int64_t*>(shared_memory() + kOffsetsAt);
  int64_t* of_input = of_d + kPreparedDepth;
  const auto prepare = [&](int first, int steps) {
    const int k = static_cast<int>(threadIdx.x) % kPreparedDepth, y = outer.pixels.across.quotient(first + k);
    if (k >= steps) return;
    if (threadIdx.x < kPreparedDepth)
      of_d[k] = offset_of(outer.d, patch, y, first + k - y * width);
    else if (threadIdx.x < 2 * kPreparedDepth)
      of_input[k] = offset_of(outer.input, patch, y, first + k - y * width);
  };
  const auto pull = [&](int m, int p) {
    const int o = row + m;
    return o < outputs ? d[of_d[p % kPreparedDepth] + o * outer.d.stride_c] : zero;
  };
  const auto read = [&](int n, int p) {
    const int k = column + n;
    if (k >= inputs) return zero;
    const T value = input[of_input[p % kPreparedDepth] + k * outer.input.stride_c];
    if constexpr (NORMALISED)
      return from_float<T>(relu6(fmaf(to_float(value), outer.norm.scale[k], outer.norm.shift[k])));
    else
      return value;
  };
  const auto store = [&](int m, int n, float sum) {
    const int o = row + m, k = column + n;
    if (o < outputs && k < inputs) gradient[static_cast<int64_t>(o) * inputs + k] = from_float<T>(sum);
  };
  const int pixels = outer.pixels.count();
  tile_product<T, M, N>(pixels, pull, outer.d.stride_c != 1 && pixels >= 8, read,
                        outer.input.stride_c != 1 && pixels >= 8, store, prepare);
}

}  // namespace

void patch_outer(const PatchOuter& outer, Type type, const char* op, Stream stream) {
  with_type(type, [&](auto value) {
    using T = decltype(value);
    with_tile(outer.outputs, outer.inputs, [&](auto m, auto n) {
      constexpr int M = m.value, N = n.value;
      const Grid grid =
          grid_of(op, outer.grid.patches() * ((outer.outputs + M - 1) / M) * ((outer.inputs + N - 1) / N));
      constexpr size_t kBytes = tile_product_bytes<T, M, N>() + 2 * kPreparedDepth * sizeof(int64_t);
      if (outer.norm.scale)
        launch<patch_outer_kernel<T, M, N, true>>(op, grid, kProductThreads, kBytes, stream, outer);
      else
        launch<patch_outer_kernel<T, M, N, false>>(op, grid, kProductThreads, kBytes, stream, outer);
    });
  });
}

}  // namespace hyperseg::cuda
