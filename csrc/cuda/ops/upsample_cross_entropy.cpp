#include "cuda/loss/upsample_cross_entropy.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "common/contracts/upsample_cross_entropy.h"
#include "cuda/device/tensors.h"
#include "cuda/loss/radix_select.h"

namespace hyperseg::cuda {
namespace {

constexpr char kName[] = "upsample_cross_entropy", kBackward[] = "upsample_cross_entropy_backward";

LossInputs loss_inputs_of(const char* op, const Tensor& logits, const Tensor& labels) {
  const Labels plane{labels.const_data_ptr(), labels.scalar_type() == ScalarType::Byte, labels.stride(0),
                     labels.stride(1), labels.stride(2)};
  return {read<void>(logits), type_of(op, logits), plane, labels.size(0), labels.size(1), labels.size(2)};
}

ClassWeights class_weights_of(const std::optional<Tensor>& weight) {
  if (!weight) return {nullptr, 0};
  return {static_cast<const float*>(weight->const_data_ptr()), weight->stride(0)};
}

template <typename S>
S* data_of(Tensor& t) {
  return static_cast<S*>(t.mutable_data_ptr());
}

std::tuple<Tensor, Tensor> upsample_cross_entropy_op(const Tensor& logits, const Tensor& labels,
                                                     std::optional<Tensor> weight, int64_t ignore_index,
                                                     int64_t bootstrap, double threshold) {
  check_upsample_cross_entropy(kName, logits, labels, weight, bootstrap);
  const LossInputs inputs = loss_inputs_of(kName, logits, labels);
  const ClassWeights of_class = class_weights_of(weight);
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
    pixel_losses(inputs, of_class, ignore_index, data_of<float>(losses), data_of<float>(weights), device.stream());
    bootstrapped(kName, problem, data_of<float>(losses), weight.has_value(), data_of<uint8_t>(workspace),
                 data_of<float>(weights), data_of<float>(loss), device.stream());
  } else {
    const int64_t blocks = loss_blocks(inputs);
    Tensor workspace = floats({2 * blocks + 1});
    float* const sums = data_of<float>(workspace);
    plain_cross_entropy(inputs, of_class, ignore_index, sums, sums + blocks, sums + 2 * blocks, data_of<float>(loss),
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
  const PixelWeights plane{static_cast<const float*>(weights.const_data_ptr()), weights.stride(0), weights.stride(1),
                           weights.stride(2)};
  upsample_cross_entropy_backward(inputs, static_cast<const float*>(grad.const_data_ptr()), plane,
                                  data_of<float>(log_sums), d_logits.mutable_data_ptr(), device.stream());
  return d_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&upsample_cross_entropy_op));
  m.impl("upsample_cross_entropy_backward", TORCH_BOX(&upsample_cross_entropy_backward_op));
}

}  // namespace hyperseg::cuda
