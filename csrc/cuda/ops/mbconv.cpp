#include "cuda/encoder/mbconv.h"

#include <vector>

#include "common/contracts/mbconv.h"
#include "cuda/device/tensors.h"
#include "cuda/encoder/mbconv_plan.h"

namespace hyperseg::cuda {
namespace {

constexpr int64_t kMaxPixels = int64_t{1} << 30;  // per map: the kernels count them in 32 bits

Tensor mbconv_op(const Tensor& x, std::optional<Tensor> expand, std::optional<Tensor> expand_bias,
                 const Tensor& depthwise, const Tensor& depthwise_bias, const Tensor& reduce, const Tensor& reduce_bias,
                 const Tensor& gate, const Tensor& gate_bias, const Tensor& project, const Tensor& project_bias,
                 int64_t stride, std::vector<int64_t> padding, bool residual) {
  check_mbconv(x, expand, expand_bias, depthwise, depthwise_bias, reduce, reduce_bias, gate, gate_bias, project,
               project_bias, stride, padding, residual);
  const Type type = type_of("mbconv", x);
  const MbconvShape shape = mbconv_shape(x, depthwise, reduce, project, stride, padding);
  const int64_t images = shape.images, height = shape.out_height, width = shape.out_width;
  check(x.size(2) * x.size(3) <= kMaxPixels && height * width <= kMaxPixels,
        "mbconv: the CUDA kernels take maps of at most 2^30 pixels");
  const DeviceGuard device(x);

  const int64_t hidden_stride = (shape.hidden + 7) / 8 * 8;
  Tensor out = new_map(x, shape.out_channels, height, width);
  Tensor filtered = torch::stable::new_empty(x, {images * height * width, hidden_stride});
  Tensor gates = torch::stable::new_empty(x, {images, hidden_stride});
  std::vector<Tensor>
      held;  // dense copies, kept until the kernels are launched: the allocator reuses memory in stream order
  const auto weights = [&](const std::optional<Tensor>& t) -> const void* {
    if (!t) return nullptr;
    if (t->is_contiguous()) return t->const_data_ptr();
    held.push_back(torch::stable::contiguous(*t));
    return held.back().const_data_ptr();
  };
  Mbconv block{shape};
  block.type = type;
  block.hidden_stride = hidden_stride;
  block.x = read<void>(x);
  block.out = write<void>(out);
  block.expand = weights(expand);
  block.expand_bias = weights(expand_bias);
  block.depthwise = weights(depthwise);
  block.depthwise_bias = weights(depthwise_bias);
  block.reduce = weights(reduce);
  block.reduce_bias = weights(reduce_bias);
  block.gate = weights(gate);
  block.gate_bias = weights(gate_bias);
  block.project = weights(project);
  block.project_bias = weights(project_bias);
  block.residual = residual;
  block.filtered = filtered.mutable_data_ptr();
  block.gates = gates.mutable_data_ptr();
  const MbconvPlan plan = mbconv_plan(block);
  const int64_t expanded_pixels = expand && !plan.within ? images * x.size(2) * x.size(3) : 0;
  Tensor expanded = torch::stable::new_empty(x, {expanded_pixels, hidden_stride});
  Tensor partials = torch::stable::new_empty(x, {images, plan.tiling.sums(), shape.squeezed}, ScalarType::Float);
  block.expanded = expanded.mutable_data_ptr();
  block.partials = static_cast<float*>(partials.mutable_data_ptr());
  mbconv(block, plan, device.stream());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) { m.impl("mbconv", TORCH_BOX(&mbconv_op)); }

}  // namespace hyperseg::cuda
