#include "cuda/conv/patch_conv2d.cuh"
#include "cuda/conv/windows.cuh"
#include "cuda/device/elementwise.cuh"
#include "cuda/device/launch.cuh"
#include "cuda/device/mma_tile.cuh"

// Backward, in two steps. First each patch computes the gradient of its window (the patch and its halo). Then each
// pixel of the map gathers, in a fixed order, from the windows that contain it, directly or through padding. A 1x1
// window is the patch itself, so the first step writes the final gradient.
namespace hyperseg::cuda {
namespace {

constexpr char kName[] = "patch_conv2d_backward";

// windows[i, p] = sum over outputs o and taps t of weights[o, i, t] * grad[o, p shifted back by t], within one patch.
// Where the window is the patch, `windows` is unused and the result goes to d_x.
template <typename T, int M, int N>
HYPERSEG_KERNEL(kGemmThreads, 4)
window_gradients_kernel(PatchConvolution convolution, Map<const T> grad, Map<const T> weights, float* windows, T* d_x) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const PatchAxis &rows = convolution.rows, &columns = convolution.columns;
  const int inputs = convolution.inputs, outputs = convolution.outputs, taps = convolution.taps.value();
  const int positions = rows.window() * columns.window();
  const PatchTile tile(blockIdx.x, convolution, inputs, positions, M, N);
  const int top = tile.top * rows.patch, left = tile.left * columns.patch;
  const int64_t parameters = static_cast<int64_t>(inputs) * taps;
  const T* filters = weights.at(tile.n, tile.top, tile.left, tile.group * outputs * parameters);
  const T* pulled = grad.at(tile.n, tile.group * outputs, top, left);
  const T zero = from_float<T>(0.0f);

  // The depth of the GEMM: outputs and taps.
  const auto filter = [&](int m, int k) {
    const int i = tile.row + m, o = convolution.taps.quotient(k);
    const int tap = k - o * taps;
    return i < inputs ? filters[(o * parameters + i * taps + tap) * weights.stride_w] : zero;
  };
  const auto pull = [&](int n, int k) {
    const int p = tile.column + n;
    if (p >= positions) return zero;
    const Tap tap(k, convolution);  // per output
    const int row = convolution.window_width.quotient(p);
    const int y = row - tap.y * rows.dilation, x = p - row * columns.window() - tap.x * columns.dilation;
    if (y < 0 || y >= rows.patch || x < 0 || x >= columns.patch) return zero;
    return pulled[tap.input * grad.stride_c + y * grad.stride_h + x * grad.stride_w];
  };
  const auto store = [&](int m, int n, float sum) {
    const int i = tile.row + m, p = tile.column + n;
    if (i >= inputs || p >= positions) return;
    const int64_t channel = (tile.n * convolution.groups + tile.group) * inputs + i;
    if (convolution.pointwise()) {
      const int y = convolution.columns.by_patch.quotient(p);
      d_x[(channel * rows.size + top + y) * columns.size + left + p - y * columns.patch] = from_float<T>(sum);
    } else {
      const int64_t window = (channel * rows.patches + tile.top) * columns.patches + tile.left;
      windows[window * positions + p] = sum;
    }
  };
  // Weights are contiguous along the taps or, for a single tap, along the inputs.
  mma_tile<T, M, N>(outputs * taps, filter, taps > 1, pull, grad.stride_c == 1 || positions < 8, store);
}

// d_x[c, y, x] = sum of windows[c, position] over the windows that contain (y, x) and the positions where they do.
template <typename T>
HYPERSEG_KERNEL(kValueThreads, 1)
collect_windows_kernel(EachValue each, PatchConvolution convolution, const float* windows, Map<T> d_x) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const auto [n, c, y, x, exists] = each.place();
  if (!exists) return;
  const PatchAxis &rows = convolution.rows, &columns = convolution.columns;
  const int64_t channel = n * d_x.channels + c;
  const int64_t positions = static_cast<int64_t>(rows.window()) * columns.window();
  const float* of_channel = windows + channel * rows.patches * columns.patches * positions;
  const int most_rows = PaddedPosition::most(rows, convolution.padding),
            most_columns = PaddedPosition::most(columns, convolution.padding);
  float sum = 0.0f;
  for (int i = 0; i < most_rows; ++i) {
    const PaddedPosition image_row(y, i, rows, convolution.padding);
    if (!image_row.shown) continue;
    for (int j = 0; j < most_columns; ++j) {
      const PaddedPosition image_column(x, j, columns, convolution.padding);
      if (!image_column.shown) continue;
      each_window(image_row.position, rows, [&](int top, int place_y) {
        each_window(image_column.position, columns, [&](int left, int place_x) {
          const int64_t window = static_cast<int64_t>(top) * columns.patches + left;
          sum += of_channel[window * positions + static_cast<int64_t>(place_y) * columns.window() + place_x];
        });
      });
    }
  }
  *d_x.at(n, c, y, x) = from_float<T>(sum);
}

// d_weights[o, i, t] = sum over the pixels p of the patch, in order, of grad[o, p] * x[i, p shifted by t].
template <typename T, int M, int N>
HYPERSEG_KERNEL(kGemmThreads, 4)
weight_gradients_kernel(PatchConvolution convolution, Map<const T> grad, Map<const T> x, T* d_weights) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const PatchAxis &rows = convolution.rows, &columns = convolution.columns;
  const int pixels = rows.patch * columns.patch;
  const int outputs = convolution.outputs, filters = convolution.inputs * convolution.taps.value();
  const PatchTile tile(blockIdx.x, convolution, outputs, filters, M, N);
  const int top = tile.top * rows.patch, left = tile.left * columns.patch;
  const T* pulled = grad.at(tile.n, tile.group * outputs, top, left);
  const T* group = x.at(tile.n, tile.group * convolution.inputs, 0, 0);
  const int64_t patch = (tile.n * rows.patches + tile.top) * columns.patches + tile.left;
  T* target = d_weights + (patch * convolution.groups + tile.group) * outputs * filters;
  const T zero = from_float<T>(0.0f);

  const auto pull = [&](int m, int p) {
    const int o = tile.row + m, y = convolution.columns.by_patch.quotient(p);
    return o < outputs ? pulled[o * grad.stride_c + y * grad.stride_h + (p - y * columns.patch) * grad.stride_w] : zero;
  };
  const auto seen = [&](int n, int p) {
    const int number = tile.column + n, y = convolution.columns.by_patch.quotient(p);
    if (number >= filters) return zero;
    return shown(group, x, convolution, Tap(number, convolution), top + y, left + p - y * columns.patch);
  };
  const auto store = [&](int m, int n, float sum) {
    const int o = tile.row + m, number = tile.column + n;
    if (o < outputs && number < filters) target[static_cast<int64_t>(o) * filters + number] = from_float<T>(sum);
  };
  mma_tile<T, M, N>(pixels, pull, grad.stride_c != 1 && pixels >= 8, seen, x.stride_c != 1 && pixels >= 8, store);
}

}  // namespace

void patch_conv2d_backward(const PatchConvolution& convolution, const Map<const void>& grad, const Map<const void>& x,
                           const Map<const void>& weights, float* windows, void* d_x, void* d_weights, Stream stream) {
  const int64_t inputs = convolution.inputs, outputs = convolution.outputs, filters = inputs * convolution.taps.value();
  const int64_t positions = int64_t{convolution.rows.window()} * convolution.columns.window();
  const int64_t gemms = convolution.patches() * convolution.groups;
  with_type(convolution.type, [&](auto value) {
    using T = decltype(value);
    const Map<const T> pulled = grad.of<const T>();
    with_tile(inputs, positions, [&](auto m, auto n) {
      constexpr int M = m.value, N = n.value;
      const int64_t tiles = (inputs + M - 1) / M * ((positions + N - 1) / N);
      launch<window_gradients_kernel<T, M, N>>(kName, grid_of(kName, gemms * tiles), kGemmThreads,
                                               mma_tile_bytes<T, M, N>(), stream, convolution, pulled,
                                               weights.of<const T>(), windows, static_cast<T*>(d_x));
    });
    if (!convolution.pointwise()) {
      const int64_t plane = x.height * x.width;
      const Map<T> gradient{static_cast<T*>(d_x), x.channels, x.height, x.width, x.channels * plane, plane, x.width, 1};
      const EachValue each(kName, convolution.images, gradient);
      launch<collect_windows_kernel<T>>(kName, each.grid(), kValueThreads, 0, stream, each, convolution, windows,
                                        gradient);
    }
    with_tile(outputs, filters, [&](auto m, auto n) {
      constexpr int M = m.value, N = n.value;
      const int64_t tiles = (outputs + M - 1) / M * ((filters + N - 1) / N);
      launch<weight_gradients_kernel<T, M, N>>(kName, grid_of(kName, gemms * tiles), kGemmThreads,
                                               mma_tile_bytes<T, M, N>(), stream, convolution, pulled, x.of<const T>(),
                                               static_cast<T*>(d_weights));
    });
  });
}

}  // namespace hyperseg::cuda
