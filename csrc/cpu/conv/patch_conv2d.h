#pragma once

#include <algorithm>
#include <vector>

#include "common/acc.h"
#include "common/map.h"
#include "cpu/base/patch_weights.h"
#include "cpu/simd/primitives.h"

// General convolution (1x1 without groups runs as a decoder level). One patch at a time, in tiles of pixels: the pixels
// under each tap are gathered into a matrix [I / groups * kh * kw, pixels] and multiplied by the patch's weights in
// their own layout.
namespace hyperseg::cpu {
template <typename S>
struct PatchConvolutionForward {
  static constexpr int64_t kTile = 256;
  using T = acc_t<S>;

  Map<const S> x;
  Map<S> out;
  PatchWeights<S> weights;
  std::vector<T> bias;
  int64_t grid_h, grid_w, groups, kernel_h, kernel_w, dilation_h, dilation_w;
  std::vector<int64_t> ys, xs;  // from a padded coordinate, counted from -halo, to a pixel or -1

  void patch(int64_t n, int64_t gy, int64_t gx) const {
    const Primitives<T>& run = primitives<T>();
    const int64_t ph = x.height / grid_h, pw = x.width / grid_w;
    const int64_t inputs = x.channels / groups, outputs = out.channels / groups, taps = kernel_h * kernel_w;
    const int64_t depth = inputs * taps;
    std::vector<T> converted(weights.parameters), columns(depth * kTile + kPadding), result(outputs * kTile);
    weights.read(n, gy, gx, 0, weights.parameters, converted.data());
    for (int64_t first = 0; first < ph * pw; first += kTile) {
      const int64_t pixels = std::min(kTile, ph * pw - first);
      for (int64_t group = 0; group < groups; ++group) {
        gather(n, gy * ph, gx * pw, pw, first, pixels, group * inputs, inputs, columns.data());
        run.gemm({.m = outputs,
                  .n = pixels,
                  .k = depth,
                  .a = converted.data() + group * outputs * depth,
                  .lda = depth,
                  .b = columns.data(),
                  .ldb = kTile,
                  .c = result.data(),
                  .ldc = kTile,
                  .row_bias = bias.empty() ? nullptr : bias.data() + group * outputs});
        for (int64_t o = 0; o < outputs; ++o)
          for (int64_t p = 0; p < pixels; ++p)
            *out.at(n, group * outputs + o, gy * ph + (first + p) / pw, gx * pw + (first + p) % pw) =
                static_cast<S>(result[o * kTile + p]);
      }
    }
  }

  void gather(int64_t n, int64_t top, int64_t left, int64_t pw, int64_t first, int64_t pixels, int64_t channel,
              int64_t inputs, T* to) const {
    for (int64_t c = 0; c < inputs; ++c)
      for (int64_t ky = 0; ky < kernel_h; ++ky)
        for (int64_t kx = 0; kx < kernel_w; ++kx, to += kTile)
          for (int64_t p = 0; p < pixels; ++p) {
            const int64_t y = ys[top + (first + p) / pw + ky * dilation_h];
            const int64_t column = xs[left + (first + p) % pw + kx * dilation_w];
            to[p] = y < 0 || column < 0 ? T(0) : static_cast<T>(*x.at(n, channel + c, y, column));
          }
  }
};

}  // namespace hyperseg::cpu
