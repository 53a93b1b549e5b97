#include "cuda/conv/patch_conv2d.cuh"

#include "cuda/device/launch.cuh"
#include "cuda/device/mma_tile.cuh"

// Forward: GEMM of a patch's filters [outputs, inputs and taps] with the pixels under each tap [inputs and taps,
// pixels].
namespace hyperseg::cuda {
namespace {

template <typename T, int M, int N>
HYPERSEG_KERNEL(kGemmThreads, 4)
patch_conv2d_kernel(PatchConvolution convolution, Map<const T> x, Map<const T> weights, const T* bias,
                    int64_t bias_stride, Map<T> out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int pixels = convolution.rows.patch * convolution.columns.patch;
  const int outputs = convolution.outputs, depth = convolution.inputs * convolution.taps.value();
  const PatchTile tile(blockIdx.x, convolution, outputs, pixels, M, N);
  const int top = tile.top * convolution.rows.patch, left = tile.left * convolution.columns.patch;
  const int first_output = tile.group * outputs;
  const T* filters = weights.at(tile.n, tile.top, tile.left, static_cast<int64_t>(first_output) * depth);
  const T* group = x.at(tile.n, tile.group * convolution.inputs, 0, 0);
  const T zero = from_float<T>(0.0f);

  const auto filter = [&](int m, int k) {
    const int o = tile.row + m;
    return o < outputs ? filters[(static_cast<int64_t>(o) * depth + k) * weights.stride_w] : zero;
  };
  const auto seen = [&](int n, int k) {
    const int p = tile.column + n;
    if (p >= pixels) return zero;
    const int y = convolution.columns.by_patch.quotient(p);
    return shown(group, x, convolution, Tap(k, convolution), top + y, left + p - y * convolution.columns.patch);
  };
  const auto store = [&](int m, int n, float sum) {
    const int o = tile.row + m, p = tile.column + n;
    if (o >= outputs || p >= pixels) return;
    const int y = convolution.columns.by_patch.quotient(p);
    if (bias) sum += to_float(bias[(first_output + o) * bias_stride]);
    *out.at(tile.n, first_output + o, top + y, left + p - y * convolution.columns.patch) = from_float<T>(sum);
  };
  // Pixels are contiguous, except in channels-last memory and in patches of few pixels.
  mma_tile<T, M, N>(depth, filter, true, seen, x.stride_c == 1 || pixels < 8, store);
}

}  // namespace

void patch_conv2d(const PatchConvolution& convolution, const Map<const void>& x, const Map<const void>& weights,
                  const void* bias, int64_t bias_stride, const Map<void>& out, Stream stream) {
  const int64_t pixels = int64_t{convolution.rows.patch} * convolution.columns.patch;
  with_type(convolution.type, [&](auto value) {
    using T = decltype(value);
    with_tile(convolution.outputs, pixels, [&](auto m, auto n) {
      constexpr int M = m.value, N = n.value;
      const int64_t tiles = (convolution.outputs + M - 1) / M * ((pixels + N - 1) / N);
      const Grid grid = grid_of("patch_conv2d", convolution.patches() * convolution.groups * tiles);
      launch<patch_conv2d_kernel<T, M, N>>("patch_conv2d", grid, kGemmThreads, mma_tile_bytes<T, M, N>(), stream,
                                           convolution, x.of<const T>(), weights.of<const T>(),
                                           static_cast<const T*>(bias), bias_stride, out.of<T>());
    });
  });
}

}  // namespace hyperseg::cuda
