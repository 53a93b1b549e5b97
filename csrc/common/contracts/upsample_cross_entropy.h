#pragma once

#include <optional>

#include "common/tensor_checks.h"

namespace hyperseg {

inline void check_logits_and_labels(const char* op, const torch::stable::Tensor& logits,
                                    const torch::stable::Tensor& labels) {
  check_map(op, "logits", logits, "[N, C, h, w]");
  using torch::headeronly::ScalarType;
  const ScalarType type = labels.scalar_type();
  check(labels.dim() == 3 && (type == ScalarType::Long || type == ScalarType::Byte), op,
        ": labels must be int64 or uint8 [N, H, W], got ", torch::headeronly::toString(type), " ", shape_of(labels));
  check_same_device(op, "labels", labels, "logits", logits);
  check(labels.size(0) == logits.size(0), op, ": labels are for ", labels.size(0), " images but logits for ",
        logits.size(0));
  for (int i = 1; i < 3; ++i)
    check(labels.size(i) >= 1 && labels.size(i) <= kLargest, op, ": a side of labels must be 1 to 2^24, got ",
          shape_of(labels));
}

// The type of the losses of these logits.
inline torch::headeronly::ScalarType loss_type(const torch::stable::Tensor& logits) {
  using torch::headeronly::ScalarType;
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_upsample_cross_entropy(const char* op, const torch::stable::Tensor& logits,
                                         const torch::stable::Tensor& labels,
                                         const std::optional<torch::stable::Tensor>& weight, int64_t bootstrap) {
  check_logits_and_labels(op, logits, labels);
  if (weight) {
    const auto type = loss_type(logits);
    check_shape(op, "weight", *weight, {logits.size(1)});
    check(weight->scalar_type() == type, op, ": weight must be ", torch::headeronly::toString(type), ", got ",
          torch::headeronly::toString(weight->scalar_type()));
    check_same_device(op, "weight", *weight, "logits", logits);
  }
  check(bootstrap >= 0, op, ": bootstrap must be 0 (off) or a number of pixels, got ", bootstrap);
}

inline void check_upsample_cross_entropy_backward(const char* op, const torch::stable::Tensor& grad,
                                                  const torch::stable::Tensor& logits,
                                                  const torch::stable::Tensor& labels,
                                                  const torch::stable::Tensor& weights) {
  check_logits_and_labels(op, logits, labels);
  const auto type = loss_type(logits);
  check(grad.numel() == 1 && grad.scalar_type() == type, op, ": grad must be one ", torch::headeronly::toString(type),
        ", got ", torch::headeronly::toString(grad.scalar_type()), " ", shape_of(grad));
  check_same_device(op, "grad", grad, "logits", logits);
  check(weights.scalar_type() == type, op, ": weights must be ", torch::headeronly::toString(type), ", got ",
        torch::headeronly::toString(weights.scalar_type()));
  check_same_device(op, "weights", weights, "logits", logits);
  check_shape(op, "weights", weights, {labels.size(0), labels.size(1), labels.size(2)});
}

}  // namespace hyperseg
