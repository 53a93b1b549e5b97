#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "common/acc.h"
#include "common/map.h"
#include "cpu/base/patch_weights.h"
#include "cpu/base/windows.h"
#include "cpu/simd/primitives_backward.h"

// One patch at a time: the pixels under each tap as [C / groups * kh * kw, positions] in the layout of the patch's
// window, and the gradient in the window's stride with zeros between its rows, so that a tap is a shift of a whole
// window.
namespace hyperseg::cpu {
template <typename S>
struct PatchConvolutionBackward {
  using T = acc_t<S>;

  Map<const S> x, gradient;
  PatchWeights<S> weights;
  Windows windows;
  int64_t groups, kernel_h, kernel_w, dilation_h, dilation_w;

  // d_weights: [patches, P]; d_windows: [patches, C, map]; sums: [outputs] per patch.
  void run(T* d_weights, T* d_windows, Partials<T>& sums) const {
    const Primitives<T>& forward = primitives<T>();
    const PrimitivesBackward<T>& back = primitives_backward<T>();
    const int64_t channels = x.channels, outputs = gradient.channels, map = windows.map;
    const int64_t inputs = channels / groups, results = outputs / groups, taps = kernel_h * kernel_w;
    const int64_t depth = inputs * taps, inner = round_up(windows.ph * windows.stride, kPadding);
    const int64_t reach = shift(taps - 1) + kPadding;  // beyond the last window
    torch::stable::parallel_for(0, windows.patches, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> window(channels * map + reach), d(outputs * inner + 4 * kPadding), w(weights.parameters),
          w_transposed(weights.parameters), columns(depth * inner + 4 * kPadding), d_window(channels * map + reach);
      for (int64_t patch = begin; patch < end; ++patch) {
        const Windows::PatchIndex at = windows.index_of(patch);
        windows.read(x, at, window.data());
        windows.read_results(gradient, at, inner, d.data(), inner);
        weights.read(at.n, at.gy, at.gx, 0, weights.parameters, w.data());
        back.gradient_sums(outputs, inner, d.data(), inner, nullptr, 0, nullptr, sums.of(patch), nullptr);
        std::fill(d_window.begin(), d_window.end(), T(0));
        for (int64_t g = 0; g < groups; ++g) {
          const T *own = w.data() + g * results * depth, *pulled = d.data() + g * results * inner;
          const auto each_column = [&](const auto& body) {
            for (int64_t i = 0; i < depth; ++i)
              body(columns.data() + i * inner, (g * inputs + i / taps) * map + shift(i % taps));
          };
          each_column([&](T* column, int64_t from) { std::copy_n(window.data() + from, inner, column); });
          back.gemm_nt(results, depth, inner, pulled, inner, columns.data(), inner,
                       d_weights + patch * weights.parameters + g * results * depth, depth);
          forward.transpose(results, depth, own, depth, w_transposed.data(), results);
          forward.gemm({.m = depth,
                        .n = inner,
                        .k = results,
                        .a = w_transposed.data(),
                        .lda = results,
                        .b = pulled,
                        .ldb = inner,
                        .c = columns.data(),
                        .ldc = inner});
          each_column([&](const T* column, int64_t to) {
            for (int64_t p = 0; p < inner; ++p) d_window[to + p] += column[p];
          });
        }
        std::copy_n(d_window.data(), channels * map, d_windows + patch * channels * map);
      }
    });
  }

  // Offset of a tap's pixels from those of the first tap.
  int64_t shift(int64_t tap) const {
    return tap / kernel_w * dilation_h * windows.stride + tap % kernel_w * dilation_w;
  }
};

}  // namespace hyperseg::cpu
