#pragma once

#include <cstdint>

#include "common/encoder_shapes.h"

// `mbconv` in bfloat16 on CPUs with AVX512-BF16 or AMX: matrix products of bfloat16, everything else in float32.
namespace hyperseg::cpu::bfloat16 {

// A matrix [rows, columns] of bfloat16. Of the expansion's and the projection's strides one is 1.
struct Matrix {
  const uint16_t* data = nullptr;
  int64_t rows = 0, columns = 0, row_stride = 0, column_stride = 0;
};

// bfloat16 as uint16_t. Matrices as in `mbconv`; the others are contiguous.
struct Block : MbconvShape {
  int64_t channels = 0, height = 0, width = 0;
  const uint16_t* in = nullptr;  // [images, height, width, channels]
  Matrix expand{};               // no data without an expansion
  const uint16_t* expand_bias = nullptr;
  Matrix depthwise{};  // [hidden, size * size]
  const uint16_t* depthwise_bias = nullptr;
  const uint16_t *reduce = nullptr, *reduce_bias = nullptr, *gate = nullptr, *gate_bias = nullptr;
  Matrix project{};
  const uint16_t* project_bias = nullptr;
  bool residual = false;
};

constexpr int64_t kTile = 16, kDepth = 32;  // rows and columns of sums in a tile; bfloat16 values in its rows
constexpr int64_t kTileValues = kTile * kDepth;
constexpr int64_t kChannels = 48;    // hidden channels per task of the first pass: three vectors
constexpr int64_t kPixels = 32;      // pixels that the projection computes together
constexpr int64_t kMaximumSize = 7;  // of the depthwise convolution

constexpr int64_t tiles(int64_t values) { return (values + kTile - 1) / kTile; }
constexpr int64_t steps(int64_t depth) { return (depth + kDepth - 1) / kDepth; }

// The first pass: a part of filtered[pixel, padded hidden channel], and its sums over the pixels.
struct Slice {
  const Block& block;
  int64_t image, first;    // hidden channels from `first` on, kChannels or the rest
  int64_t y0, y1, x0, x1;  // of the output
  uint16_t* filtered;      // padded to whole kDepth with zeros
  float* sums;             // [hidden]
  float* scratch;          // slice_scratch() values, on a cache line
};

// The same functions for each instruction set.
struct Kernels {
  int64_t (*slice_scratch)(const Block& block, int64_t out_width);
  void (*expand_and_filter)(const Slice& slice);

  // The gates [hidden] of the channels' means [hidden]; squeezed: [squeezed].
  void (*compute_gates)(const Block& block, const float* means, float* squeezed, float* gates);

  // Pack the projection, scaled by the gates, for the outputs of one tile.
  void (*pack_projection)(const Block& block, const float* gates, int64_t tile, uint16_t* packed);

  // Project pixels [begin, end), kPixels at a time: `filtered` is read up to a whole kPixels, whatever it contains.
  void (*project)(const Block& block, int64_t image, int64_t begin, int64_t end, const uint16_t* filtered,
                  const uint16_t* packed, uint16_t* out);
};

}  // namespace hyperseg::cpu::bfloat16
