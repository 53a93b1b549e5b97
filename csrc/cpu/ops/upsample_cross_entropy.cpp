#include "cpu/loss/upsample_cross_entropy.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "common/contracts/upsample_cross_entropy.h"
#include "common/tensors.h"

namespace hyperseg::cpu {
namespace {

std::tuple<Tensor, Tensor> upsample_cross_entropy_op(const Tensor& logits, const Tensor& labels,
                                                     std::optional<Tensor> weight, int64_t ignore_index,
                                                     int64_t bootstrap, double threshold) {
  check_upsample_cross_entropy("upsample_cross_entropy", logits, labels, weight, bootstrap);
  return upsample_cross_entropy(logits, labels, weight, ignore_index, bootstrap, threshold);
}

Tensor upsample_cross_entropy_backward_op(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                                          const Tensor& weights) {
  check_upsample_cross_entropy_backward("upsample_cross_entropy_backward", grad, logits, labels, weights);
  return upsample_cross_entropy_backward(grad, logits, labels, weights);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&upsample_cross_entropy_op));
  m.impl("upsample_cross_entropy_backward", TORCH_BOX(&upsample_cross_entropy_backward_op));
}

}  // namespace hyperseg::cpu
