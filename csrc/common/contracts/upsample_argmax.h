#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

#include "common/check.h"

namespace hyperseg {

inline void check_upsample_argmax(const torch::stable::Tensor& logits,  // [N, C, h, w]
                                  int64_t height, int64_t width) {
  check(logits.dim() == 4, "upsample_argmax: logits must be [N, C, h, w], got ", logits.dim(), " dimensions");
  using torch::headeronly::ScalarType;
  const ScalarType type = logits.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
            type == ScalarType::BFloat16,
        "upsample_argmax: logits must be float16, bfloat16, float32 or float64, got ",
        torch::headeronly::toString(type));
  const int64_t classes = logits.size(1), h = logits.size(2), w = logits.size(3);
  check(classes >= 1 && classes <= 256, "upsample_argmax: logits must have 1 to 256 classes, as labels are uint8, got ",
        classes);
  check(h >= 1 && w >= 1, "upsample_argmax: logits must have at least one pixel, got ", h, "x", w);
  check(height >= 1 && width >= 1, "upsample_argmax: the output size must be at least 1x1, got ", height, "x", width);
  constexpr int64_t kMaxSide = int64_t{1} << 24;  // the last integer up to which float32 counts pixels exactly
  check(h <= kMaxSide && w <= kMaxSide && height <= kMaxSide && width <= kMaxSide,
        "upsample_argmax: a side may have at most 2^24 pixels, got ", h, "x", w, " to ", height, "x", width);
}

}  // namespace hyperseg
