#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/base/buffer.h"
#include "cpu/base/tasks.h"
#include "cpu/encoder/nhwc.h"
#include "cpu/simd/norm_act.h"

// For passes over maps that have sums per channel. How pixels are divided depends on shapes only, and so do the sums.
namespace hyperseg::cpu {

// [rows, channels] or [channels], as rows that are zero-padded to a multiple.
template <typename T>
class PerChannel {
 public:
  explicit PerChannel(const Tensor& values, int64_t multiple = kPadding) {
    const Tensor dense = precise(values);
    const int64_t channels = dense.size(dense.dim() - 1), rows = dense.numel() / channels;
    padded_ = round_up(channels, multiple);
    values_.assign(rows * padded_, T(0));
    for (int64_t i = 0; i < rows; ++i)
      std::copy_n(data<T>(dense) + i * channels, channels, values_.data() + i * padded_);
  }
  const T* row(int64_t i = 0) const { return values_.data() + i * padded_; }

 private:
  int64_t padded_;
  std::vector<T> values_;
};

// The pixels of each image in parts, and these in blocks that fit a cache.
class Parts {
 public:
  Parts(int64_t images, int64_t pixels, int64_t channels)
      : images_(images), pixels_(pixels), block_(std::clamp<int64_t>(kBlockValues / channels, 16, 512)) {
    const int64_t most = std::max<int64_t>(1, kParts / images);
    part_ = round_up(divide_up(pixels, most), block_);
    count_ = divide_up(pixels, part_);
  }
  int64_t per_image() const { return count_; }
  int64_t count() const { return images_ * count_; }
  int64_t size(int64_t part) const { return std::min(part_, pixels_ - part % count_ * part_); }

  // The sums of each image, from `count` sums of each part.
  std::vector<double> added(const std::vector<double>& sums, int64_t count) const {
    std::vector<double> result(images_ * count, 0.0);
    for (int64_t part = 0; part < images_ * count_; ++part)
      for (int64_t i = 0; i < count; ++i) result[part / count_ * count + i] += sums[part * count + i];
    return result;
  }

  // Call body(part, image) on the threads.
  template <typename Body>
  void for_each(const Body& body) const {
    for_each_task(count(), [&](int64_t part) { body(part, part / count_); });
  }
  // Call body(first pixel of all images, number of pixels) for the blocks of a part.
  template <typename Body>
  void for_blocks(int64_t part, const Body& body) const {
    const int64_t begin = part / count_ * pixels_ + part % count_ * part_, end = begin + size(part);
    for (int64_t p = begin; p < end; p += block_) body(p, std::min(block_, end - p));
  }

 private:
  static constexpr int64_t kBlockValues = 8192, kParts = 64;
  int64_t images_, pixels_, block_, part_, count_;
};

}  // namespace hyperseg::cpu
