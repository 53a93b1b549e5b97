#include "cpu/loss/upsample_argmax.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/contracts/upsample_argmax.h"
#include "common/tensors.h"

namespace hyperseg::cpu {
namespace {

Tensor upsample_argmax_op(const Tensor& logits, int64_t height, int64_t width) {
  check_upsample_argmax(logits, height, width);
  Tensor labels = torch::stable::new_empty(logits, {logits.size(0), height, width}, ScalarType::Byte);
  if (labels.numel()) upsample_argmax(logits, labels);
  return labels;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) { m.impl("upsample_argmax", TORCH_BOX(&upsample_argmax_op)); }

}  // namespace hyperseg::cpu
