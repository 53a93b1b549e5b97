#pragma once

#include "../common/map.h"
#include "type.h"

namespace hyperseg::cuda {

// See hyperseg/ops/mbconv.py. The weights are dense; what is hidden is [images, pixels, stride] with zeros beyond the
// hidden channels, so that eight channels are always 16 bytes on 16 bytes (or twice that).
struct Mbconv {
  Type type;
  int64_t images, hidden, hidden_stride, squeezed, size, stride, left, top;
  Map<const void> x;
  Map<void> out;
  const void *expand, *expand_bias;  // null where nothing is expanded
  const void *depthwise, *depthwise_bias, *reduce, *reduce_bias, *gate, *gate_bias, *project, *project_bias;
  bool residual;
  void *expanded, *filtered;  // before, where it is needed, and after the depthwise convolution
  void* gates;                // [images, hidden_stride]
  float* partials;            // [images, sums, squeezed]
};

// Tiles of the depthwise convolution, and how many a block of it does one after the other.
struct MbconvTiling {
  int64_t down, tiles, slices, steps, groups;

  // Sums of each image that are added up to the squeezed channels, one a block.
  int64_t sums() const { return groups * slices; }
};

// How a block is computed: with the expansion in a launch of its own or within the depthwise convolution, and what that
// one then has of shared memory.
struct MbconvPlan {
  MbconvTiling tiling;
  bool within = false;
  int64_t stages = 0, staged = 0, shared = 0;
};
// Neither `expanded`, which a plan `within` does not need, nor `partials` need be there yet.
MbconvPlan mbconv_plan(const Mbconv& block);

void mbconv(const Mbconv& block, const MbconvPlan& plan, Stream stream);

}  // namespace hyperseg::cuda
