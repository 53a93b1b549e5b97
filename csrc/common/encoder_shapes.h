#pragma once

#include <cstdint>

namespace hyperseg {

// Sizes of one call of `stem`; height and width are those of the padded image.
struct StemShape {
  int64_t images, height, width, size, stride, left, top, channels, out_height, out_width;
};

// Sizes of one call of `mbconv`; `size` and `stride` are those of the depthwise convolution.
struct MbconvShape {
  int64_t images, hidden, squeezed, out_channels, size, stride, left, top, out_height, out_width;
};

// Rows or columns of a convolution's output, for padding of `before` and `after` pixels.
inline int64_t convolved_extent(int64_t extent, int64_t before, int64_t after, int64_t taps, int64_t stride) {
  return (extent + before + after - taps) / stride + 1;
}

}  // namespace hyperseg
