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
  float* partials;            // [images, parts, squeezed]
};

// What a block needs beside its result: how many sums of each image are added up to the squeezed channels, and whether
// memory for what is expanded. Neither `expanded` nor `partials` need be there yet.
struct MbconvParts {
  int64_t sums;
  bool expanded;
};
MbconvParts mbconv_parts(const Mbconv& block);

void mbconv(const Mbconv& block, Stream stream);

}  // namespace hyperseg::cuda
