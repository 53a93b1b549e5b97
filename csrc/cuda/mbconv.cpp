#include "mbconv.h"

#include <vector>

#include "../common/mbconv.h"
#include "tensors.h"

namespace hyperseg::cuda {
namespace {

constexpr int64_t kMostPixels = int64_t{1} << 30;  // of a map: the kernels count them in 32 bits

Tensor mbconv_op(const Tensor& x, std::optional<Tensor> expand, std::optional<Tensor> expand_bias,
                 const Tensor& depthwise, const Tensor& depthwise_bias, const Tensor& reduce, const Tensor& reduce_bias,
                 const Tensor& gate, const Tensor& gate_bias, const Tensor& project, const Tensor& project_bias,
                 int64_t stride, std::vector<int64_t> padding, bool residual) {
  check_mbconv(x, expand, expand_bias, depthwise, depthwise_bias, reduce, reduce_bias, gate, gate_bias, project,
               project_bias, stride, padding, residual);
  const Type type = type_of("mbconv", x);
  const int64_t images = x.size(0), hidden = depthwise.size(0), size = depthwise.size(1), squeezed = reduce.size(0);
  const int64_t height = (x.size(2) + padding[2] + padding[3] - size) / stride + 1;
  const int64_t width = (x.size(3) + padding[0] + padding[1] - size) / stride + 1;
  check(x.size(2) * x.size(3) <= kMostPixels && height * width <= kMostPixels,
        "mbconv: the CUDA kernels take maps of at most 2^30 pixels");
  const OnDeviceOf device(x);

  const int64_t hidden_stride = (hidden + 7) / 8 * 8;
  Tensor out = new_map(x, project.size(0), height, width);
  Tensor filtered = torch::stable::new_empty(x, {images * height * width, hidden_stride});
  Tensor gates = torch::stable::new_empty(x, {images, hidden_stride});
  std::vector<Tensor>
      held;  // dense copies, until the kernels are launched: memory is reused in the order of the stream
  const auto weights = [&](const std::optional<Tensor>& t) -> const void* {
    if (!t) return nullptr;
    if (t->is_contiguous()) return t->const_data_ptr();
    held.push_back(torch::stable::contiguous(*t));
    return held.back().const_data_ptr();
  };
  Mbconv block{
      .type = type,
      .images = images,
      .hidden = hidden,
      .hidden_stride = hidden_stride,
      .squeezed = squeezed,
      .size = size,
      .stride = stride,
      .left = padding[0],
      .top = padding[2],
      .x = read<void>(x),
      .out = write<void>(out),
      .expand = weights(expand),
      .expand_bias = weights(expand_bias),
      .depthwise = weights(depthwise),
      .depthwise_bias = weights(depthwise_bias),
      .reduce = weights(reduce),
      .reduce_bias = weights(reduce_bias),
      .gate = weights(gate),
      .gate_bias = weights(gate_bias),
      .project = weights(project),
      .project_bias = weights(project_bias),
      .residual = residual,
      .expanded = nullptr,
      .filtered = filtered.mutable_data_ptr(),
      .gates = gates.mutable_data_ptr(),
      .partials = nullptr,
  };
  const MbconvPlan plan = mbconv_plan(block);
  const int64_t expanded_pixels = expand && !plan.within ? images * x.size(2) * x.size(3) : 0;
  Tensor expanded = torch::stable::new_empty(x, {expanded_pixels, hidden_stride});
  Tensor partials = torch::stable::new_empty(x, {images, plan.tiling.sums(), squeezed}, ScalarType::Float);
  block.expanded = expanded.mutable_data_ptr();
  block.partials = static_cast<float*>(partials.mutable_data_ptr());
  mbconv(block, plan, device.stream());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) { m.impl("mbconv", TORCH_BOX(&mbconv_op)); }

}  // namespace hyperseg::cuda
