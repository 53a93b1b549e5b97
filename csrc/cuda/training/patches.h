#pragma once

#include "common/map.h"
#include "cuda/device/fast_divmod.h"
#include "cuda/device/type.h"

// Maps divided into patches, for the training kernels.
namespace hyperseg::cuda {

struct PatchGrid {
  int64_t images = 0;
  int rows = 0, columns = 0;     // size of the grid, in patches
  int patch_h = 0, patch_w = 0;  // size of a patch, in pixels
  FastDivmod by_rows, by_columns, by_patch_h, by_patch_w;

  PatchGrid() = default;
  PatchGrid(int64_t images, int64_t rows, int64_t columns, int64_t patch_h, int64_t patch_w)
      : images(images),
        rows(static_cast<int>(rows)),
        columns(static_cast<int>(columns)),
        patch_h(static_cast<int>(patch_h)),
        patch_w(static_cast<int>(patch_w)),
        by_rows(rows),
        by_columns(columns),
        by_patch_h(patch_h),
        by_patch_w(patch_w) {}

  int64_t patches() const { return images * rows * columns; }
};

// The pixels of a patch, or of its window, which includes the halo.
struct PatchPixels {
  int height = 0, width = 0;
  FastDivmod across;

  PatchPixels() = default;
  PatchPixels(const PatchGrid& grid, bool window)
      : height(grid.patch_h + 2 * window), width(grid.patch_w + 2 * window), across(width) {}
  HYPERSEG_HOST_DEVICE int count() const { return height * width; }
};

// Addresses of the pixels of each patch.
template <typename S>
struct PatchedMap {
  S* data = nullptr;
  int64_t stride_n = 0, stride_row = 0, stride_column = 0;  // between images, patch rows, patches
  int64_t stride_y = 0, stride_x = 0, stride_c = 0;
  // Sizes, used if the map is read as windows, reflected at its border; 0 if it is read as patches.
  int height = 0, width = 0, patch_h = 0, patch_w = 0;
  bool padded = false;  // zero-padded between the last channel of a pixel and the next pixel

  template <typename T>
  HYPERSEG_HOST_DEVICE T* as() const {
    return static_cast<T*>(data);
  }
};

// The patches of a map.
template <typename S>
PatchedMap<S> patches_of(const Map<S>& map, const PatchGrid& grid) {
  return {map.data,     map.stride_n, map.stride_h * grid.patch_h, map.stride_w * grid.patch_w, map.stride_h,
          map.stride_w, map.stride_c};
}

// The windows of the patches of a map.
template <typename S>
PatchedMap<S> windows_of(const Map<S>& map, const PatchGrid& grid) {
  PatchedMap<S> windows{map.data, map.stride_n, 0, 0, map.stride_h, map.stride_w, map.stride_c};
  windows.height = static_cast<int>(map.height), windows.width = static_cast<int>(map.width);
  windows.patch_h = grid.patch_h, windows.patch_w = grid.patch_w;
  return windows;
}

// [patch][pixel][channel]
template <typename S>
PatchedMap<S> pixel_by_pixel(S* data, const PatchGrid& grid, const PatchPixels& pixels, int64_t channels) {
  const int64_t patch = pixels.count() * channels;
  PatchedMap<S> map{
      data, patch * grid.rows * grid.columns, patch * grid.columns, patch, pixels.width * channels, channels, 1};
  map.padded = true;
  return map;
}

// [patch][channel][pixel]
template <typename S>
PatchedMap<S> channel_by_channel(S* data, const PatchGrid& grid, const PatchPixels& pixels, int64_t channels) {
  const int64_t patch = pixels.count() * channels;
  return {data, patch * grid.rows * grid.columns, patch * grid.columns, patch, pixels.width, 1, pixels.count()};
}

// One matrix per patch: value (output, input) of patch (n, row, column) is at data + n * stride_n + row * stride_row +
// column * stride_column + output * stride_output + input * stride_input.
struct PatchMatrix {
  const void* data = nullptr;
  int64_t stride_n = 0, stride_row = 0, stride_column = 0;
  int64_t stride_output = 0, stride_input = 0;
  int outputs = 0, inputs = 0;
};

// Scale and shift per channel, followed by ReLU6.
struct ScaleShift {
  const float *scale = nullptr, *shift = nullptr;
};

// Partial sums over pixels: a row of two numbers per channel for every `step` pixels of every patch.
struct PartialRows {
  int64_t rows = 0;
  int tiles = 1, step = 1, pixels = 1;  // per patch

  PartialRows() = default;
  PartialRows(int64_t patches, int pixels, int step)
      : rows(patches * ((pixels + step - 1) / step)), tiles((pixels + step - 1) / step), step(step), pixels(pixels) {}
};

}  // namespace hyperseg::cuda
