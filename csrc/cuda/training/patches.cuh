#pragma once

#include "cuda/decoder/level.cuh"
#include "cuda/device/device.cuh"
#include "cuda/training/patches.h"

namespace hyperseg::cuda {

// Index of a patch: image, row, column.
struct Patch {
  int64_t index;  // in all images
  int n, row, column;

  HYPERSEG_DEVICE Patch(unsigned number, const PatchGrid& grid)
      : index(number),
        n(static_cast<int>(number / grid.columns / grid.rows)),
        row(static_cast<int>(number / grid.columns % grid.rows)),
        column(static_cast<int>(number % grid.columns)) {}
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

// The derivative of ReLU6 is 0 on both flat sides; NaN is not flat.
HYPERSEG_DEVICE bool flat_in_relu6(float v) { return v <= 0.0f || v >= 6.0f; }

}  // namespace hyperseg::cuda
