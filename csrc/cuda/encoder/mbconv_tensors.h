#pragma once

#include "common/constants.h"
#include "common/contracts/mbconv.h"
#include "cuda/device/tensors.h"
#include "cuda/encoder/mbconv.h"
#include "cuda/encoder/mbconv_plan.h"

// Blocks from tensors.
namespace hyperseg::cuda {

// A block of an input, with its output and, in `held`, dense copies of weights: keep them until the kernels are
// launched, because the allocator reuses memory in stream order. Workspaces are not set.
class MbconvBlock {
 public:
  Mbconv block;
  Tensor out;

  MbconvBlock(const Tensor& x, const MbconvTensors& t) : out(x) {
    constexpr int64_t kMaxPixels = int64_t{1} << 30;  // per map: the kernels count them in 32 bits
    check_mbconv(x, t);
    block.type = type_of("mbconv", x);
    static_cast<MbconvShape&>(block) = mbconv_shape(x, t);
    check(x.size(2) * x.size(3) <= kMaxPixels && block.out_height * block.out_width <= kMaxPixels,
          "mbconv: the CUDA kernels take maps of at most 2^30 pixels");
    out = new_map(x, block.out_channels, block.out_height, block.out_width);
    block.hidden_stride = (block.hidden + 7) / 8 * 8;
    block.x = read<void>(x);
    block.out = write<void>(out);
    const auto values = [this](const Tensor& weights) {
      if (weights.is_contiguous()) return weights.const_data_ptr();
      held_.push_back(torch::stable::contiguous(weights));
      return static_cast<const void*>(held_.back().const_data_ptr());
    };
    set_dense_values(block, t, values);
    block.expand = t.expand ? values(*t.expand) : nullptr;
    block.depthwise = values(t.depthwise);
    block.project = values(t.project);
    block.constants_ready = constants_ready() && held_.empty();
  }

  // Numbers of values of the workspaces. `expanded` may be empty in a plan that expands within.
  int64_t expanded_values() const {
    return block.expand ? block.images * block.x.height * block.x.width * block.hidden_stride : 0;
  }
  int64_t filtered_values() const { return block.images * block.out_height * block.out_width * block.hidden_stride; }
  int64_t gate_values() const { return block.images * block.hidden_stride; }

 private:
  std::vector<Tensor> held_;
};

// Compute one block by launches of its own.
inline void run_mbconv(MbconvBlock& of, const Tensor& x, Stream stream) {
  Mbconv& block = of.block;
  const MbconvPlan plan = mbconv_plan(block);
  const auto values = [&](int64_t count) { return torch::stable::new_empty(x, {count}); };
  Tensor expanded = values(plan.within ? 0 : of.expanded_values()), filtered = values(of.filtered_values()),
         gates = values(of.gate_values());
  Tensor partials = torch::stable::new_empty(x, {block.images, plan.tiling.sums(), block.squeezed}, ScalarType::Float);
  block.expanded = expanded.mutable_data_ptr();
  block.filtered = filtered.mutable_data_ptr();
  block.gates = gates.mutable_data_ptr();
  block.partials = static_cast<float*>(partials.mutable_data_ptr());
  mbconv(block, plan, stream);
}

}  // namespace hyperseg::cuda
