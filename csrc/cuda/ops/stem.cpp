#include "cuda/encoder/stem.h"

#include <vector>

#include "common/constants.h"
#include "common/contracts/stem.h"
#include "cuda/device/tensors.h"

namespace hyperseg::cuda {
namespace {

constexpr int64_t kMaxPixels = int64_t{1} << 30;  // per map: the kernels count them in 32 bits

Tensor stem_op(const Tensor& frames, const Tensor& scale, const Tensor& shift, const Tensor& weight, const Tensor& bias,
               int64_t height, int64_t width, int64_t stride, std::vector<int64_t> padding) {
  check_stem(frames, scale, shift, weight, bias, height, width, stride, padding);
  const Type type = type_of("stem", weight);
  const StemShape shape = stem_shape(frames, weight, height, width, stride, padding);
  check(height * width <= kMaxPixels && shape.out_height * shape.out_width <= kMaxPixels,
        "stem: the CUDA kernels take images of at most 2^30 pixels");
  const DeviceGuard device(frames);
  Tensor out = torch::stable::new_empty(weight, {shape.images, shape.out_height, shape.out_width, shape.channels});
  std::vector<Tensor> held;  // kept until the kernel is launched
  const auto dense = [&](const Tensor& t) -> const void* {
    if (t.is_contiguous()) return t.const_data_ptr();
    held.push_back(torch::stable::contiguous(t));
    return held.back().const_data_ptr();
  };
  Stem problem{shape};
  problem.type = type;
  problem.frames = map_of_frames(frames);
  problem.scale = static_cast<const float*>(dense(scale));
  problem.shift = static_cast<const float*>(dense(shift));
  problem.weight = read<void>(weight);
  problem.bias = dense(bias);
  problem.constants_ready = constants_ready() && held.empty();
  problem.out = out.mutable_data_ptr();
  stem(problem, device.stream());
  return torch::stable::transpose(torch::stable::transpose(out, 2, 3), 1, 2);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) { m.impl("stem", TORCH_BOX(&stem_op)); }

}  // namespace hyperseg::cuda
