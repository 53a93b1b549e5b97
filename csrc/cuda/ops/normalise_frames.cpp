#include "cuda/encoder/normalise_frames.h"

#include "common/contracts/normalise_frames.h"
#include "common/contracts/stem.h"
#include "cuda/device/tensors.h"
#include "cuda/encoder/conv_tensors.h"

namespace hyperseg::cuda {
namespace {

Tensor normalise_frames_op(const Tensor& frames, const Tensor& scale, const Tensor& shift, const Tensor& like,
                           int64_t height, int64_t width) {
  check_normalise_frames(frames, scale, shift, like, height, width);
  const Type type = type_of("normalise_frames", like);
  const DeviceGuard device(frames);
  DenseTensors dense;
  Tensor out = torch::stable::new_empty(like, {frames.size(0), height, width, 3});
  normalise_frames({.type = type,
                    .frames = map_of_frames(frames),
                    .scale = static_cast<const float*>(dense(scale)),
                    .shift = static_cast<const float*>(dense(shift)),
                    .out = out.mutable_data_ptr(),
                    .images = frames.size(0),
                    .height = height,
                    .width = width},
                   device.stream());
  return as_map(out);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) {
  m.impl("normalise_frames", TORCH_BOX(&normalise_frames_op));
}

}  // namespace hyperseg::cuda
