#pragma once

#include "cuda/training/depthwise.h"

// The depthwise filter of 16-bit maps on tensor cores: a block has a patch and some groups of eight channels, a warp
// has one group.
namespace hyperseg::cuda {

struct DepthwiseTiles {
  int groups = 0, chunks = 0;               // groups of eight channels per block; blocks per patch
  int parts = 1;                            // warps that share a group's pixels
  int stride = 0;                           // between pixels in shared memory, in values
  int window_row = 0, padded_row = 0;       // between rows of pixels, of the window and with another pixel around it
  FastDivmod by_groups, by_chunks, window;  // window: width in pixels

  DepthwiseTiles() = default;
  // `rows`: pixels that a block stages. No groups if they do not fit.
  DepthwiseTiles(const PatchDepthwise& filter, int64_t rows);

  bool fits() const { return groups > 0; }
  int64_t blocks(const PatchDepthwise& filter) const { return filter.grid.patches() * chunks; }
  unsigned threads() const { return 32 * groups * parts; }
  size_t bytes(int64_t rows) const { return rows * stride * 2; }
};

// As depthwise_filter; false, without a launch, if type or size is not supported.
bool depthwise_filter_mma(const PatchDepthwise& filter, const void* hidden, void* filtered, float* partial, Type type,
                          const char* op, Stream stream);

// As depthwise_backward, for halo "own"; false, without a launch, if type or size is not supported.
bool depthwise_backward_mma(const PatchDepthwise& filter, const DepthwiseGradients& gradients, Type type,
                            const char* op, Stream stream);

// Whether the two functions support this.
bool filters_by_mma(const PatchDepthwise& filter, Type type);
bool differentiates_by_mma(const PatchDepthwise& filter, Type type);

}  // namespace hyperseg::cuda
