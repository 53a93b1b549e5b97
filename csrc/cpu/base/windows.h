#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/map.h"
#include "cpu/base/buffer.h"
#include "cpu/simd/primitives.h"

// A map divided into patches with a halo, for the training operators, and the adjoint of that division.
namespace hyperseg::cpu {

// Allocate an uninitialised buffer: initialising a large one costs a pass over its memory.
template <typename T>
std::unique_ptr<T[]> uninitialised(int64_t count) {
  return std::unique_ptr<T[]>(new T[count]);
}

// The source pixel of each coordinate of a padded axis, from -halo on; -1 where the padding is zero.
inline std::vector<int64_t> padded_axis(int64_t size, int64_t halo, const std::string& mode) {
  std::vector<int64_t> pixels(size + 2 * halo);
  for (int64_t i = -halo; i < size + halo; ++i) {
    int64_t pixel = i;
    if (i < 0 || i >= size) {
      if (mode == "zeros") pixel = -1;
      if (mode == "replicate") pixel = i < 0 ? 0 : size - 1;
      if (mode == "circular") pixel = i < 0 ? i + size : i - size;
      if (mode == "reflect") pixel = i < 0 ? -i : 2 * (size - 1) - i;
    }
    pixels[i + halo] = pixel;
  }
  return pixels;
}

// A window is planar: `rows` rows of `stride` positions, zero-padded to `map` positions.
struct Windows {
  struct PatchIndex {
    int64_t n, gy, gx;
  };

  int64_t images, height, width, grid_h, grid_w, halo_h, halo_w, ph, pw, rows, stride, map, patches;
  std::vector<int64_t> ys, xs;

  Windows(int64_t images, int64_t height, int64_t width, int64_t grid_h, int64_t grid_w, int64_t halo_h, int64_t halo_w,
          const std::string& mode)
      : images(images),
        height(height),
        width(width),
        grid_h(grid_h),
        grid_w(grid_w),
        halo_h(halo_h),
        halo_w(halo_w),
        ph(height / grid_h),
        pw(width / grid_w),
        rows(ph + 2 * halo_h),
        stride(pw + 2 * halo_w),
        map(round_up(rows * stride, kPadding)),
        patches(images * grid_h * grid_w),
        ys(padded_axis(height, halo_h, mode)),
        xs(padded_axis(width, halo_w, mode)) {}

  PatchIndex index_of(int64_t patch) const {
    return {patch / grid_w / grid_h, patch / grid_w % grid_h, patch % grid_w};
  }

  // The pixels of each row of a patch's window, and of each of its columns; -1 for zero.
  const int64_t* pixel_rows(const PatchIndex& at) const { return &ys[at.gy * ph]; }
  const int64_t* pixel_columns(const PatchIndex& at) const { return &xs[at.gx * pw]; }

  // Read all channels of a map in the window of patch `at`.
  template <typename S, typename T>
  void read(const Map<const S>& x, const PatchIndex& at, T* to) const {
    const int64_t *ys = pixel_rows(at), *xs = pixel_columns(at);
    for (int64_t c = 0; c < x.channels; ++c) std::fill(to + c * map + rows * stride, to + (c + 1) * map, T(0));
    for (int64_t r = 0; r < rows; ++r) {
      T* row = to + r * stride;
      if (ys[r] < 0) {
        for (int64_t c = 0; c < x.channels; ++c) std::fill_n(row + c * map, stride, T(0));
        continue;
      }
      const S* source = x.at(at.n, 0, ys[r], 0);
      const auto pixel = [&](int64_t c, int64_t i) {
        row[c * map + i] = xs[i] < 0 ? T(0) : static_cast<T>(source[c * x.stride_c + xs[i] * x.stride_w]);
      };
      if (x.stride_c == 1) {
        for (int64_t i = 0; i < stride; ++i)
          for (int64_t c = 0; c < x.channels; ++c) pixel(c, i);
      } else {
        for (int64_t c = 0; c < x.channels; ++c) {
          for (int64_t i = 0; i < halo_w; ++i) pixel(c, i), pixel(c, halo_w + pw + i);
          const S* from = source + c * x.stride_c + at.gx * pw * x.stride_w;
          T* target = row + c * map + halo_w;
          if (x.stride_w == 1) {
            for (int64_t i = 0; i < pw; ++i) target[i] = static_cast<T>(from[i]);
          } else {
            for (int64_t i = 0; i < pw; ++i) target[i] = static_cast<T>(from[i * x.stride_w]);
          }
        }
      }
    }
  }

  // Read the patch itself at the positions of the filter's outputs: row y at y * stride; zeros between the rows and up
  // to `count`.
  template <typename S, typename T>
  void read_results(const Map<const S>& x, const PatchIndex& at, int64_t count, T* to, int64_t to_map) const {
    for (int64_t c = 0; c < x.channels; ++c) {
      std::fill_n(to + c * to_map, count, T(0));
      for (int64_t y = 0; y < ph; ++y) {
        const S* source = x.at(at.n, c, at.gy * ph + y, at.gx * pw);
        T* row = to + c * to_map + y * stride;
        for (int64_t i = 0; i < pw; ++i) row[i] = static_cast<T>(source[i * x.stride_w]);
      }
    }
  }

  template <typename T, typename S>
  void write_results(const T* from, int64_t from_map, const PatchIndex& at, const Map<S>& x) const {
    for (int64_t c = 0; c < x.channels; ++c)
      for (int64_t y = 0; y < ph; ++y) {
        S* target = x.at(at.n, c, at.gy * ph + y, at.gx * pw);
        const T* row = from + c * from_map + y * stride;
        for (int64_t i = 0; i < pw; ++i) target[i * x.stride_w] = static_cast<S>(row[i]);
      }
  }

  // The adjoint of `read` for one channel of an image: plane [height, width] = the sum over all windows that contain a
  // pixel, in the order of the patches. gradients: [patches, channels, map].
  template <typename T>
  void fold(const T* gradients, int64_t channels, int64_t n, int64_t c, T* plane) const {
    std::fill_n(plane, height * width, T(0));
    for (int64_t gy = 0; gy < grid_h; ++gy)
      for (int64_t gx = 0; gx < grid_w; ++gx) {
        const int64_t patch = (n * grid_h + gy) * grid_w + gx;
        const PatchIndex at{n, gy, gx};
        const int64_t *ys = pixel_rows(at), *xs = pixel_columns(at);
        for (int64_t r = 0; r < rows; ++r) {
          if (ys[r] < 0) continue;
          const T* source = gradients + (patch * channels + c) * map + r * stride;
          T* target = plane + ys[r] * width;
          for (int64_t i = 0; i < halo_w; ++i) {
            if (xs[i] >= 0) target[xs[i]] += source[i];
            if (xs[halo_w + pw + i] >= 0) target[xs[halo_w + pw + i]] += source[halo_w + pw + i];
          }
          T* __restrict inner = target + gx * pw;
          for (int64_t i = 0; i < pw; ++i) inner[i] += source[halo_w + i];
        }
      }
  }
};

// One row of numbers per patch, and their sum over the patches in a fixed order.
template <typename T>
struct Partials {
  int64_t patches, width;
  std::vector<T> values;

  Partials(int64_t patches, int64_t width) : patches(patches), width(width), values(patches * width) {}
  T* of(int64_t patch) { return values.data() + patch * width; }
  std::vector<double> total() const {
    std::vector<double> sums(width);
    for (int64_t patch = 0; patch < patches; ++patch)
      for (int64_t i = 0; i < width; ++i) sums[i] += static_cast<double>(values[patch * width + i]);
    return sums;
  }
};

}  // namespace hyperseg::cpu
