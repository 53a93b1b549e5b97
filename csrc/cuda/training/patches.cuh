#pragma once

#include "cuda/decoder/level.cuh"
#include "cuda/device/device.cuh"
#include "cuda/training/patches.h"

namespace hyperseg::cuda {

// Index of a patch: image, row, column.
struct Patch {
  int64_t index;  // in all images
  int n, row, column;

  HYPERSEG_DEVICE Patch(int number, const PatchGrid& grid) : index(number) {
    const int of_column = grid.by_columns.quotient(number);
    column = number - of_column * grid.columns;
    n = grid.by_rows.quotient(of_column), row = of_column - n * grid.rows;
  }
};

// Return the offset in a map of pixel (y, x) of a patch, or of its window.
template <typename S>
HYPERSEG_DEVICE int64_t offset_of(const PatchedMap<S>& map, const Patch& patch, int y, int x) {
  const int64_t image = patch.n * map.stride_n;
  if (map.height == 0)
    return image + patch.row * map.stride_row + patch.column * map.stride_column + y * map.stride_y + x * map.stride_x;
  return image + reflect(patch.row * map.patch_h + y - 1, map.height) * map.stride_y +
         reflect(patch.column * map.patch_w + x - 1, map.width) * map.stride_x;
}

template <typename T>
HYPERSEG_DEVICE const T* matrix_of(const PatchMatrix& matrix, const Patch& patch) {
  return static_cast<const T*>(matrix.data) + patch.n * matrix.stride_n + patch.row * matrix.stride_row +
         patch.column * matrix.stride_column;
}

// The values of two adjacent channels; 0 for channels that only pad.
HYPERSEG_DEVICE float2 of_channels(const float* values, int channel, int channels) {
  return {channel < channels ? values[channel] : 0.0f, channel + 1 < channels ? values[channel + 1] : 0.0f};
}

// The gates of ReLU6 after the norm of two adjacent channels, 0 on both flat sides as flat_in_relu6 has them.
struct Relu6Gates {
  float2 scale, shift;  // to the middle of ReLU6, 3

  HYPERSEG_DEVICE Relu6Gates(float2 scale, float2 shift) : scale(scale), shift{shift.x - 3.0f, shift.y - 3.0f} {}
  HYPERSEG_DEVICE float first(float d, float z) const { return fabsf(fmaf(z, scale.x, shift.x)) >= 3.0f ? 0.0f : d; }
  HYPERSEG_DEVICE float second(float d, float z) const { return fabsf(fmaf(z, scale.y, shift.y)) >= 3.0f ? 0.0f : d; }
};

// The derivative of ReLU6 is 0 on both flat sides; NaN is not flat.
HYPERSEG_DEVICE bool flat_in_relu6(float v) { return v <= 0.0f || v >= 6.0f; }

}  // namespace hyperseg::cuda
