#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include "common/acc.h"
#include "common/map.h"
#include "cpu/base/buffer.h"
#include "cpu/simd/primitives.h"

// Backward pass of one generator, a grouped 1x1 convolution. Both gradients are GEMMs over all patches, divided into
// blocks of fixed size; every block of an output is written by one task.
namespace hyperseg::cpu {

template <typename S>
struct GeneratorBackward {
  using T = acc_t<S>;

  const S* weights;  // [rows, depth]
  int64_t stride_row, stride_column, rows, depth, groups, size, offset;

  // signal: [channels, patches] of this generator's channels, rows padded; gradient: [patches, stride], its first
  // `size` columns. -> d_weights, dense.
  template <typename G>
  void d_generator(const T* signal, int64_t padded, int64_t patches, const G* gradient, int64_t stride,
                   S* d_weights) const {
    const int64_t per_group = rows / groups, chunks = (per_group + kRows - 1) / kRows;
    torch::stable::parallel_for(0, groups * chunks, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> part(kPatches * kRows + 4 * kPadding), partial(depth * kRows), sum(depth * kRows);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task / chunks, first = group * per_group + task % chunks * kRows;
        const int64_t last = std::min(first + kRows, (group + 1) * per_group), used = std::min(last, size) - first;
        std::fill(sum.begin(), sum.end(), T(0));
        for (int64_t p = 0; p < patches && used > 0; p += kPatches) {
          const int64_t count = std::min(kPatches, patches - p);
          for (int64_t i = 0; i < count; ++i)
            for (int64_t r = 0; r < used; ++r)
              part[i * kRows + r] = static_cast<T>(gradient[(p + i) * stride + first + r]);
          primitives<T>().gemm({.m = depth,
                                .n = used,
                                .k = count,
                                .a = signal + group * depth * padded + p,
                                .lda = padded,
                                .b = part.data(),
                                .ldb = kRows,
                                .c = partial.data(),
                                .ldc = kRows});
          for (int64_t k = 0; k < depth; ++k)
            for (int64_t r = 0; r < used; ++r) sum[k * kRows + r] += partial[k * kRows + r];
        }
        for (int64_t r = first; r < last; ++r)
          for (int64_t k = 0; k < depth; ++k) d_weights[r * depth + k] = static_cast<S>(sum[k * kRows + r - first]);
      }
    });
  }

  // Add to d_signal, [patches, channels of the whole signal].
  template <typename G>
  void d_signal(int64_t patches, const G* gradient, int64_t stride, T* d_signal, int64_t channels) const {
    const int64_t per_group = rows / groups, padded = round_up(depth, kPadding);
    std::vector<T> own(rows * padded + 4 * kPadding);
    torch::stable::parallel_for(0, rows, 512, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        for (int64_t k = 0; k < depth; ++k)
          own[r * padded + k] = static_cast<T>(weights[r * stride_row + k * stride_column]);
    });
    torch::stable::parallel_for(0, (patches + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> part(std::is_same_v<G, T> ? 0 : kBlock * stride), partial(kBlock * depth);
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kBlock, count = std::min(kBlock, patches - first);
        for (int64_t group = 0; group < groups && group * per_group < size; ++group) {
          const int64_t used = std::min(per_group, size - group * per_group);
          const G* from = gradient + first * stride + group * per_group;
          const T* pulled = part.data();
          if constexpr (std::is_same_v<G, T>) {
            pulled = from;
          } else {
            for (int64_t p = 0; p < count; ++p)
              for (int64_t r = 0; r < used; ++r) part[p * stride + r] = static_cast<T>(from[p * stride + r]);
          }
          primitives<T>().gemm({.m = count,
                                .n = depth,
                                .k = used,
                                .a = pulled,
                                .lda = stride,
                                .b = own.data() + group * per_group * padded,
                                .ldb = padded,
                                .c = partial.data(),
                                .ldc = depth});
          for (int64_t p = 0; p < count; ++p)
            for (int64_t k = 0; k < depth; ++k)
              d_signal[(first + p) * channels + offset + group * depth + k] += partial[p * depth + k];
        }
      }
    });
  }

 private:
  static constexpr int64_t kRows = 64, kPatches = 256, kBlock = 48;
};

// A signal [N, C, fh, fw] as [C, patches] and its gradient as [patches, C].
template <typename S>
class SignalBackward {
 public:
  using T = acc_t<S>;

  explicit SignalBackward(const Map<const S>& signal, int64_t images)
      : signal_(signal),
        patches_(images * signal.height * signal.width),
        padded_(round_up(patches_, kPadding)),
        planar_(signal.channels * padded_),
        gradient_(patches_ * signal.channels) {
    for_values([&](int64_t c, int64_t p, int64_t image, int64_t pixel) {
      planar_[c * padded_ + p] = static_cast<T>(*signal.at(image, c, pixel / signal.width, pixel % signal.width));
    });
  }

  // gradient: [patches, stride], beginning with the generator's part.
  template <typename G>
  void through(const GeneratorBackward<S>& generator, const G* gradient, int64_t stride, S* d_generator) {
    generator.d_generator(planar_.data() + generator.offset * padded_, padded_, patches_, gradient, stride,
                          d_generator);
    generator.d_signal(patches_, gradient, stride, gradient_.data(), signal_.channels);
  }

  // to: dense.
  void write(S* to) const {
    const int64_t channels = signal_.channels, area = signal_.height * signal_.width;
    for_values([&](int64_t c, int64_t p, int64_t image, int64_t pixel) {
      to[(image * channels + c) * area + pixel] = static_cast<S>(gradient_[p * channels + c]);
    });
  }

 private:
  static constexpr int64_t kChannels = 16;  // a cache line, whichever way values are stored

  // Call body(channel, patch, image, patch in the image) on the threads.
  template <typename Body>
  void for_values(const Body& body) const {
    const int64_t channels = signal_.channels, area = signal_.height * signal_.width;
    torch::stable::parallel_for(0, (channels + kChannels - 1) / kChannels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        for (int64_t p = 0; p < patches_; ++p) {
          const int64_t image = p / area, pixel = p % area, last = std::min((block + 1) * kChannels, channels);
          for (int64_t c = block * kChannels; c < last; ++c) body(c, p, image, pixel);
        }
    });
  }

  Map<const S> signal_;
  int64_t patches_, padded_;
  std::vector<T> planar_, gradient_;
};

}  // namespace hyperseg::cpu
