#pragma once

#include "cuda/conv/patch_conv2d.h"
#include "cuda/device/device.cuh"

namespace hyperseg::cuda {

// Return the pixel that padding shows at `o`, or -1 where the padding is zero.
HYPERSEG_DEVICE int padded(int o, int size, Padding padding) {
  const int last = size - 1;
  switch (padding) {
    case Padding::kReflect:
      return last - abs(last - abs(o));
    case Padding::kReplicate:
      return min(max(o, 0), last);
    case Padding::kCircular:
      return o < 0 ? o + size : o > last ? o - size : o;
    default:
      return o < 0 || o > last ? -1 : o;
  }
}

// One tap of the kernel, for one input channel of a group.
struct Tap {
  int input, y, x;

  HYPERSEG_DEVICE Tap(int number, const PatchConvolution& convolution) {
    input = convolution.taps.quotient(number);
    const int tap = number - input * convolution.taps.value();
    y = convolution.taps_across.quotient(tap);
    x = tap - y * convolution.taps_across.value();
  }
};

// The GEMM tile that a block computes, for one group of channels of one patch.
struct PatchTile {
  int64_t n;
  int top, left;  // position of the patch in the grid
  int group, row, column;

  HYPERSEG_DEVICE PatchTile(unsigned block, const PatchConvolution& convolution, int rows, int columns, int tile_rows,
                            int tile_columns) {
    const unsigned across = (columns + tile_columns - 1) / tile_columns, down = (rows + tile_rows - 1) / tile_rows;
    column = static_cast<int>(block % across) * tile_columns, block /= across;
    row = static_cast<int>(block % down) * tile_rows, block /= down;
    group = static_cast<int>(block % convolution.groups), block /= convolution.groups;
    left = static_cast<int>(block % convolution.columns.patches), block /= convolution.columns.patches;
    top = static_cast<int>(block % convolution.rows.patches), n = block / convolution.rows.patches;
  }
};

// Return the value of channel `tap.input` of the group under the tap, for output pixel (y, x) of the map; 0 in zero
// padding.
template <typename T>
HYPERSEG_DEVICE T shown(const T* group, const Map<const T>& x, const PatchConvolution& convolution, const Tap& tap,
                        int row, int column) {
  const PatchAxis &rows = convolution.rows, &columns = convolution.columns;
  if (!convolution.pointwise()) {
    row = padded(row + tap.y * rows.dilation - rows.halo, rows.size, convolution.padding);
    column = padded(column + tap.x * columns.dilation - columns.halo, columns.size, convolution.padding);
    if (row < 0 || column < 0) return from_float<T>(0.0f);
  }
  return group[tap.input * x.stride_c + row * x.stride_h + column * x.stride_w];
}

}  // namespace hyperseg::cuda
