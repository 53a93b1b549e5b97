#include "cuda/encoder/mbconv_tensors.h"

namespace hyperseg::cuda {
namespace {

Tensor mbconv_op(const Tensor& x, std::optional<Tensor> expand, std::optional<Tensor> expand_bias,
                 const Tensor& depthwise, const Tensor& depthwise_bias, const Tensor& reduce, const Tensor& reduce_bias,
                 const Tensor& gate, const Tensor& gate_bias, const Tensor& project, const Tensor& project_bias,
                 int64_t stride, std::vector<int64_t> padding, bool residual) {
  const DeviceGuard device(x);
  MbconvBlock block(x, {expand, expand_bias, depthwise, depthwise_bias, reduce, reduce_bias, gate, gate_bias, project,
                        project_bias, stride, padding, residual});
  run_mbconv(block, x, device.stream());
  return block.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) { m.impl("mbconv", TORCH_BOX(&mbconv_op)); }

}  // namespace hyperseg::cuda
