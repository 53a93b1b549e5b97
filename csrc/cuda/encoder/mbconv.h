#pragma once

#include "common/encoder_shapes.h"
#include "common/map.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

// See hyperseg/ops/mbconv.py. The weights are dense; what is hidden is [images, pixels, stride] with zeros beyond the
// hidden channels, so that eight channels are always 16 bytes on 16 bytes (or twice that).
struct Mbconv : MbconvShape {
  Type type;
  int64_t hidden_stride;
  Map<const void> x;
  Map<void> out;
  const void *expand, *expand_bias;  // null where nothing is expanded
  const void *depthwise, *depthwise_bias, *reduce, *reduce_bias, *gate, *gate_bias, *project, *project_bias;
  bool residual;
  void *expanded, *filtered;  // before, where it is needed, and after the depthwise convolution
  void* gates;                // [images, hidden_stride]
  float* partials;            // [images, sums, squeezed]
};

struct MbconvPlan;  // see mbconv_plan.h
void mbconv(const Mbconv& block, const MbconvPlan& plan, Stream stream);

}  // namespace hyperseg::cuda
