#include <torch/csrc/stable/library.h>

#include "cpu/encoder/mbconv_tensors.h"

namespace hyperseg::cpu {
namespace {

Tensor mbconv_op(const Tensor& x, std::optional<Tensor> expand, std::optional<Tensor> expand_bias,
                 const Tensor& depthwise, const Tensor& depthwise_bias, const Tensor& reduce, const Tensor& reduce_bias,
                 const Tensor& gate, const Tensor& gate_bias, const Tensor& project, const Tensor& project_bias,
                 int64_t stride, std::vector<int64_t> padding, bool residual) {
  return run_mbconv(x, {expand, expand_bias, depthwise, depthwise_bias, reduce, reduce_bias, gate, gate_bias, project,
                        project_bias, stride, padding, residual});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) { m.impl("mbconv", TORCH_BOX(&mbconv_op)); }

}  // namespace hyperseg::cpu
