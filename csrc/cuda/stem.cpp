#include "stem.h"

#include <vector>

#include "../common/stem.h"
#include "tensors.h"

namespace hyperseg::cuda {
namespace {

constexpr int64_t kMostPixels = int64_t{1} << 30;  // of a map: the kernels count them in 32 bits

Tensor stem_op(const Tensor& frames, const Tensor& scale, const Tensor& shift, const Tensor& weight, const Tensor& bias,
               int64_t height, int64_t width, int64_t stride, std::vector<int64_t> padding) {
  check_stem(frames, scale, shift, weight, bias, height, width, stride, padding);
  const Type type = type_of("stem", weight);
  const int64_t images = frames.size(0), channels = weight.size(0), size = weight.size(2);
  const int64_t out_height = stem_extent(height, padding[2], padding[3], size, stride);
  const int64_t out_width = stem_extent(width, padding[0], padding[1], size, stride);
  check(height * width <= kMostPixels && out_height * out_width <= kMostPixels,
        "stem: the CUDA kernels take images of at most 2^30 pixels");
  const OnDeviceOf device(frames);
  Tensor out = torch::stable::new_empty(weight, {images, out_height, out_width, channels});
  std::vector<Tensor> held;  // until the kernel is launched
  const auto dense = [&](const Tensor& t) -> const void* {
    if (t.is_contiguous()) return t.const_data_ptr();
    held.push_back(torch::stable::contiguous(t));
    return held.back().const_data_ptr();
  };
  stem(
      {
          .type = type,
          .images = images,
          .frames = map_of_frames(frames),
          .scale = static_cast<const float*>(dense(scale)),
          .shift = static_cast<const float*>(dense(shift)),
          .weight = read<void>(weight),
          .bias = dense(bias),
          .out = out.mutable_data_ptr(),
          .height = height,
          .width = width,
          .size = size,
          .stride = stride,
          .left = padding[0],
          .top = padding[2],
          .channels = channels,
          .out_height = out_height,
          .out_width = out_width,
      },
      device.stream());
  return torch::stable::transpose(torch::stable::transpose(out, 2, 3), 1, 2);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) { m.impl("stem", TORCH_BOX(&stem_op)); }

}  // namespace hyperseg::cuda
