#pragma once

#include <memory>

#include "common/acc.h"
#include "cpu/base/bilinear.h"
#include "cpu/base/coordinates.h"
#include "cpu/base/windows.h"

// The input of a level: coordinates, skip, upsampled previous. And its adjoint: from the gradients of its windows to
// those of skip and previous.
namespace hyperseg::cpu {

template <typename S>
class LevelInput {
 public:
  using T = acc_t<S>;

  LevelInput(bool with_coordinates, const Map<const S>& skip, const Map<const S>& previous, int64_t images)
      : skip_(skip),
        previous_(previous),
        first_(2 * with_coordinates),
        copied_(previous.height == skip.height && previous.width == skip.width),
        axis_y_(std::max<int64_t>(previous.height, 1), skip.height, copied_),
        axis_x_(std::max<int64_t>(previous.width, 1), skip.width, copied_),
        xs_(coordinates<T>(skip.width)),
        ys_(coordinates<T>(skip.height)) {
    if (!previous) return;
    const int64_t area = skip.height * skip.width, channels = previous.channels;
    upsampled_ = uninitialised<T>(images * channels * area);
    torch::stable::parallel_for(0, images * channels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) upsample(i / channels, i % channels, upsampled_.get() + i * area);
    });
    resized_ = {upsampled_.get(), channels, skip.height, skip.width, channels * area, area, skip.width, 1};
  }

  int64_t channels() const { return first_ + skip_.channels + previous_.channels; }
  int64_t first() const { return first_; }  // of the channels that pass gradients on

  void read(const Windows& windows, const Windows::PatchIndex& at, T* to) const {
    if (first_) {
      const int64_t *ys = windows.pixel_rows(at), *xs = windows.pixel_columns(at);
      std::fill_n(to, 2 * windows.map, T(0));
      for (int64_t r = 0; r < windows.rows; ++r)
        for (int64_t i = 0; i < windows.stride; ++i) {
          to[r * windows.stride + i] = xs_[xs[i]];
          to[windows.map + r * windows.stride + i] = ys_[ys[r]];
        }
    }
    windows.read(skip_, at, to + first_ * windows.map);
    if (resized_) windows.read(resized_, at, to + (first_ + skip_.channels) * windows.map);
  }

  // fill(n, c, plane): the gradient of channel c of skip and previous, [H, W]; d_skip and d_previous: [N, C, H, W],
  // dense.
  template <typename Fill>
  void scatter(int64_t images, const Fill& fill, S* d_skip, S* d_previous) const {
    const int64_t channels = skip_.channels + previous_.channels, area = skip_.height * skip_.width;
    torch::stable::parallel_for(0, images * channels, 1, [&](int64_t begin, int64_t end) {
      const auto buffer = uninitialised<T>(area);
      std::vector<T> coarse(previous_.height * previous_.width);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = i / channels, c = i % channels;
        const T* plane = fill(n, c, buffer.get());
        if (c < skip_.channels) {
          std::transform(plane, plane + area, d_skip + (n * skip_.channels + c) * area,
                         [](T value) { return static_cast<S>(value); });
        } else {
          shrink(plane, coarse);
          std::transform(coarse.begin(), coarse.end(),
                         d_previous + (n * previous_.channels + c - skip_.channels) * coarse.size(),
                         [](T value) { return static_cast<S>(value); });
        }
      }
    });
  }

 private:
  void upsample(int64_t n, int64_t c, T* to) const {
    const Primitives<T>& run = primitives<T>();
    const int64_t width = previous_.width;
    std::vector<T> rows(2 * width), blend(width);
    for (int64_t y = 0; y < skip_.height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        rows[x] = static_cast<T>(*previous_.at(n, c, axis_y_.low[y], x));
        rows[width + x] = static_cast<T>(*previous_.at(n, c, axis_y_.high[y], x));
      }
      run.blend(rows.data(), rows.data() + width, axis_y_.weight[y], width, blend.data());
      run.widen(blend.data(), 1, axis_x_.low.data(), axis_x_.high.data(), axis_x_.weight.data(), skip_.width,
                to + y * skip_.width, 1);
    }
  }

  // The adjoint of `upsample`.
  void shrink(const T* plane, std::vector<T>& coarse) const {
    const int64_t width = previous_.width;
    std::vector<T> row(width);
    std::fill(coarse.begin(), coarse.end(), T(0));
    for (int64_t y = 0; y < skip_.height; ++y) {
      std::fill(row.begin(), row.end(), T(0));
      const T* source = plane + y * skip_.width;
      for (int64_t x = 0; x < skip_.width; ++x) {
        row[axis_x_.low[x]] += source[x] * (T(1) - axis_x_.weight[x]);
        row[axis_x_.high[x]] += source[x] * axis_x_.weight[x];
      }
      T *upper = &coarse[axis_y_.low[y] * width], *lower = &coarse[axis_y_.high[y] * width];
      const T weight = axis_y_.weight[y];
      for (int64_t x = 0; x < width; ++x) upper[x] += row[x] * (T(1) - weight);
      for (int64_t x = 0; x < width; ++x) lower[x] += row[x] * weight;
    }
  }

  Map<const S> skip_, previous_;
  int64_t first_;
  bool copied_;  // previous has the size of skip
  Axis<T> axis_y_, axis_x_;
  std::vector<T> xs_, ys_;
  std::unique_ptr<T[]> upsampled_;
  Map<const T> resized_;
};

}  // namespace hyperseg::cpu
