#pragma once

#include <vector>

#include "common/map.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

enum class ConvActivation : int { kNone, kRelu, kSilu };

// A convolution as a GEMM. Its inputs, concatenated along the depth, are for `out` pixel (y, x) of a map of
// height x width: `first` at (y, x), then `second`, if there is one, at (y / 2, x / 2); or with `taps` of 2 the pixels
// (2y, 2x), (2y, 2x + 1), (2y + 1, 2x), (2y + 1, 2x + 1) of `first`. Beyond a map its last row or column is repeated.
struct PointwiseConv {
  Map<const void> first{}, second{};
  int taps = 1;  // per axis
  int64_t height = 0, width = 0;
  const void *weights = nullptr, *bias = nullptr;  // dense: [columns, depth], [columns]
  int64_t columns = 0;
  ConvActivation activation = ConvActivation::kNone;
  Map<void> out{};       // may be a part of the channels of a dense channels-last map
  bool doubled = false;  // store every pixel at (2y, 2x) and its three neighbours, inside of `out`
  // Instead of `out`: sums of `splits` parts of the depth, [splits, images, height * width, sums_stride].
  float* sums = nullptr;
  int splits = 1;

  int64_t depth() const { return first.channels * taps * taps + second.channels; }
  int64_t sums_stride() const { return (columns + 7) / 8 * 8; }
};

// Run all of them by one launch per kMaxConvs; `images` is that of each.
constexpr int kMaxConvs = 8;
void pointwise_convs(const char* op, Type type, const std::vector<int64_t>& images,
                     const std::vector<PointwiseConv>& convs, Stream stream);

// Parts of the depth for which a convolution's tiles fill a GPU.
int conv_splits(Type type, int64_t images, const PointwiseConv& conv);

// From the sums of a convolution: its output, with bias and ReLU, and the average over all pixels, [images, columns].
// Either may be null.
struct ConvSums {
  const float* sums;
  const void* bias;
  void *out, *mean;
  int splits;
  int64_t images, pixels, columns, stride;
};
void add_conv_sums(const char* op, Type type, const ConvSums& problem, Stream stream);

}  // namespace hyperseg::cuda
