#pragma once

#include "common/encoder_shapes.h"
#include "common/map.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

// Arguments of mbconv; see hyperseg/ops/mbconv.py. The weights are dense. Hidden maps are [images, pixels,
// hidden_stride], zero-padded after the hidden channels, so that eight channels are always 16-byte aligned.
struct Mbconv : MbconvShape {
  Type type = Type::kFloat;
  int64_t hidden_stride = 0;
  Map<const void> x{};
  Map<void> out{};
  const void *expand = nullptr, *expand_bias = nullptr;  // null without an expansion
  const void *depthwise = nullptr, *depthwise_bias = nullptr, *reduce = nullptr, *reduce_bias = nullptr;
  const void *gate = nullptr, *gate_bias = nullptr, *project = nullptr, *project_bias = nullptr;
  bool residual = false;
  void *expanded = nullptr, *filtered = nullptr;  // before (if it is stored) and after the depthwise convolution
  void* gates = nullptr;                          // [images, hidden_stride]
  float* partials = nullptr;                      // [images, sums, squeezed]
  bool constants_ready = false;                   // see common/constants.h
  unsigned* barrier = nullptr;                    // optional: the first step sets it to 0, for mbconv_chain
};

struct MbconvPlan;  // see mbconv_plan.h
void mbconv(const Mbconv& block, const MbconvPlan& plan, Stream stream);
// Its first launch: expand, or depthwise without an expansion, or both in one.
void mbconv_first_step(const Mbconv& block, const MbconvPlan& plan, Stream stream);

}  // namespace hyperseg::cuda
