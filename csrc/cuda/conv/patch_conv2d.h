#pragma once

#include "common/map.h"
#include "cuda/device/fast_divmod.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

enum class Padding { kReflect, kZeros, kReplicate, kCircular };

// One axis of a map that is divided into patches, and of the kernel.
struct PatchAxis {
  int size, patches, patch, taps, dilation, halo;
  FastDivmod by_patch;

  PatchAxis(int64_t size, int64_t patches, int64_t taps, int64_t dilation)
      : size(static_cast<int>(size)),
        patches(static_cast<int>(patches)),
        patch(static_cast<int>(size / patches)),
        taps(static_cast<int>(taps)),
        dilation(static_cast<int>(dilation)),
        halo(static_cast<int>(taps / 2 * dilation)),
        by_patch(patch) {}
  HYPERSEG_HOST_DEVICE int window() const { return patch + 2 * halo; }
};

// Arguments of patch_conv2d; see hyperseg/ops/patch_conv2d.py. Weights are a map [N, grid height, grid width,
// parameters].
struct PatchConvolution {
  Type type;
  int64_t images;
  PatchAxis rows, columns;
  int groups, inputs, outputs;  // channels per group
  Padding padding;
  FastDivmod taps{int64_t{rows.taps} * columns.taps};
  FastDivmod taps_across{columns.taps};
  FastDivmod window_width{columns.window()};

  HYPERSEG_HOST_DEVICE bool pointwise() const { return taps.value() == 1; }
  int64_t patches() const { return images * rows.patches * columns.patches; }
  // Size of the workspace [N, channels, grid height, grid width, window height, window width] for the gradients of all
  // windows.
  int64_t window_values() const {
    return pointwise() ? 0 : patches() * groups * inputs * rows.window() * columns.window();
  }
};

// `bias`: nullptr, or one value per output, `bias_stride` apart.
void patch_conv2d(const PatchConvolution& convolution, const Map<const void>& x, const Map<const void>& weights,
                  const void* bias, int64_t bias_stride, const Map<void>& out, Stream stream);

// d_x and d_weights are contiguous. `windows`: workspace of window_values() floats.
void patch_conv2d_backward(const PatchConvolution& convolution, const Map<const void>& grad, const Map<const void>& x,
                           const Map<const void>& weights, float* windows, void* d_x, void* d_weights, Stream stream);

}  // namespace hyperseg::cuda
