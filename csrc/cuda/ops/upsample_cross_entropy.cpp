#include "cuda/loss/upsample_cross_entropy.h"

#include <algorithm>
#include <tuple>

#include "common/contracts/upsample_cross_entropy.h"
#include "cuda/device/tensors.h"
#include "cuda/loss/radix_select.h"

namespace hyperseg::cuda {
namespace {

constexpr char kName[] = "upsample_cross_entropy", kBackward[] = "upsample_cross_entropy_backward";

template <typename S>
Plane<S> plane_of(const Tensor& t) {
  return {static_cast<const S*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2)};
}

LossInputs loss_inputs_of(const char* op, const Tensor& logits, const Tensor& labels) {
  return {read<void>(logits), type_of(op, logits), plane_of<int64_t>(labels),
          labels.size(0),     labels.size(1),      labels.size(2)};
}

template <typename S>
S* data_of(Tensor& t) {
  return static_cast<S*>(t.mutable_data_ptr());
}

std::tuple<Tensor, Tensor> upsample_cross_entropy_op(const Tensor& logits, const Tensor& labels, int64_t ignore_index,
                                                     int64_t bootstrap, double threshold) {
  check_upsample_cross_entropy(kName, logits, labels, bootstrap);
  const LossInputs inputs = loss_inputs_of(kName, logits, labels);
  const int64_t pixels = inputs.height * inputs.width;
  const auto floats = [&](const std::vector<int64_t>& sizes) {
    return torch::stable::new_empty(logits, sizes, ScalarType::Float);
  };
  Tensor loss = floats({}), weights = floats({inputs.images, inputs.height, inputs.width});
  const DeviceGuard device(logits);
  if (bootstrap) {
    const BootstrapSpec problem{inputs.images, pixels, std::min(bootstrap, pixels), static_cast<float>(threshold)};
    Tensor losses = floats({inputs.images * pixels});
    Tensor workspace = torch::stable::new_empty(logits, {problem.workspace()}, ScalarType::Byte);
    pixel_losses(inputs, ignore_index, data_of<float>(losses), device.stream());
    bootstrapped(kName, problem, data_of<float>(losses), data_of<uint8_t>(workspace), data_of<float>(weights),
                 data_of<float>(loss), device.stream());
  } else {
    const int64_t blocks = loss_blocks(inputs);
    Tensor sums = floats({blocks + 1}), counts = torch::stable::new_empty(logits, {blocks}, ScalarType::Int);
    float* const partial = data_of<float>(sums);
    plain_cross_entropy(inputs, ignore_index, partial, data_of<int>(counts), partial + blocks, data_of<float>(loss),
                        data_of<float>(weights), device.stream());
  }
  return {loss, weights};
}

Tensor upsample_cross_entropy_backward_op(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                                          const Tensor& weights) {
  check_upsample_cross_entropy_backward(kBackward, grad, logits, labels, weights);
  const LossInputs inputs = loss_inputs_of(kBackward, logits, labels);
  const auto sizes = logits.sizes();
  Tensor d_logits = torch::stable::new_empty(logits, sizes);
  Tensor log_sums = torch::stable::new_empty(logits, {inputs.images, inputs.height, inputs.width}, ScalarType::Float);
  const DeviceGuard device(logits);
  upsample_cross_entropy_backward(inputs, static_cast<const float*>(grad.const_data_ptr()), plane_of<float>(weights),
                                  data_of<float>(log_sums), d_logits.mutable_data_ptr(), device.stream());
  return d_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&upsample_cross_entropy_op));
  m.impl("upsample_cross_entropy_backward", TORCH_BOX(&upsample_cross_entropy_backward_op));
}

}  // namespace hyperseg::cuda
