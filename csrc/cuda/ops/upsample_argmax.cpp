#include "cuda/loss/upsample_argmax.h"

#include "common/contracts/upsample_argmax.h"
#include "cuda/device/tensors.h"

namespace hyperseg::cuda {
namespace {

Tensor upsample_argmax_op(const Tensor& logits, int64_t height, int64_t width) {
  check_upsample_argmax(logits, height, width);
  const Type type = type_of("upsample_argmax", logits);
  Tensor labels = torch::stable::new_empty(logits, {logits.size(0), height, width}, ScalarType::Byte);
  if (labels.numel() == 0) return labels;
  const DeviceGuard device(logits);
  upsample_argmax(read<void>(logits), type, logits.size(0), static_cast<uint8_t*>(labels.mutable_data_ptr()), height,
                  width, device.stream());
  return labels;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) {
  m.impl("upsample_argmax", TORCH_BOX(&upsample_argmax_op));
}

}  // namespace hyperseg::cuda
