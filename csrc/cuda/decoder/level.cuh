#pragma once

#include "cuda/decoder/level.h"
#include "cuda/device/bilinear.cuh"

namespace hyperseg::cuda {

HYPERSEG_DEVICE float relu6(float v) { return min_or_nan(max_or_nan(v, 0.0f), 6.0f); }

// Return the pixel that reflection padding shows at `i`: 1 for -1, size - 2 for size.
HYPERSEG_DEVICE int reflect(int i, int size) {
  const int last = size - 1;
  return last - abs(last - abs(i));
}

// A level's input: coordinates, skip and resized previous, computed when read and never stored in global memory.
template <typename T>
struct LevelInputView {
  Map<const T> skip, previous;
  int coordinates, channels;  // 0 or 2 coordinates; all channels
  float step_y, step_x;       // of the coordinates
  float scale_y, scale_x;     // from skip to previous
  bool copied;                // previous has the size of skip

  explicit LevelInputView(const DecoderLevelArgs& level)
      : skip(level.skip.of<const T>()),
        previous(level.previous.of<const T>()),
        coordinates(level.coordinates ? 2 : 0),
        channels(level.channels()),
        step_y(skip.height > 1 ? 2.0f / (skip.height - 1) : 0.0f),
        step_x(skip.width > 1 ? 2.0f / (skip.width - 1) : 0.0f),
        scale_y(static_cast<float>(previous.height) / skip.height),
        scale_x(static_cast<float>(previous.width) / skip.width),
        copied(previous.height == skip.height && previous.width == skip.width) {}

  HYPERSEG_DEVICE Sample row(int y) const { return {y, scale_y, static_cast<int>(previous.height), copied}; }
  HYPERSEG_DEVICE Sample column(int x) const { return {x, scale_x, static_cast<int>(previous.width), copied}; }

  HYPERSEG_DEVICE float coordinate(int axis, int y, int x) const { return (axis ? y * step_y : x * step_x) - 1.0f; }

  HYPERSEG_DEVICE float resized(int n, int c, const Sample& row, const Sample& column) const {
    const T* plane = previous.at(n, c, 0, 0);
    const T *upper = plane + row.low * previous.stride_h, *lower = plane + row.high * previous.stride_h;
    const int64_t left = column.low * previous.stride_w, right = column.high * previous.stride_w;
    const float a = to_float(upper[left]), b = to_float(upper[right]), c0 = to_float(lower[left]),
                d = to_float(lower[right]);
    return between(between(a, b, column.weight), between(c0, d, column.weight), row.weight);
  }

  HYPERSEG_DEVICE float at(int n, int c, int y, int x) const {
    if (c < coordinates) return coordinate(c, y, x);
    c -= coordinates;
    if (c < skip.channels) return to_float(*skip.at(n, c, y, x));
    return resized(n, c - static_cast<int>(skip.channels), row(y), column(x));
  }
};

// Weights of the patches, and the grid they are in.
template <typename T>
struct Patches {
  const T* weights;
  int64_t stride_n, stride_y, stride_x;
  const T* bias;
  int grid_h, grid_w, patch_h, patch_w;

  explicit Patches(const DecoderLevelArgs& level)
      : weights(static_cast<const T*>(level.weights)),
        stride_n(level.weights_n),
        stride_y(level.weights_y),
        stride_x(level.weights_x),
        bias(static_cast<const T*>(level.bias)),
        grid_h(level.grid_h),
        grid_w(level.grid_w),
        patch_h(level.patch_h()),
        patch_w(level.patch_w()) {}

  HYPERSEG_DEVICE const T* of(int n, int gy, int gx) const {
    return weights + n * stride_n + gy * stride_y + gx * stride_x;
  }
  HYPERSEG_DEVICE const T* of_pixel(int n, int y, int x) const { return of(n, y / patch_h, x / patch_w); }
  HYPERSEG_DEVICE float shift(int i) const { return bias ? to_float(bias[i]) : 0.0f; }
};

}  // namespace hyperseg::cuda
