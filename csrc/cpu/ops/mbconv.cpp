#include "cpu/encoder/mbconv.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/contracts/mbconv.h"
#include "cpu/base/tensors.h"
#include "cpu/encoder/nhwc.h"

namespace hyperseg::cpu {
namespace {

Tensor mbconv_op(const Tensor& x, std::optional<Tensor> expand, std::optional<Tensor> expand_bias,
                 const Tensor& depthwise, const Tensor& depthwise_bias, const Tensor& reduce, const Tensor& reduce_bias,
                 const Tensor& gate, const Tensor& gate_bias, const Tensor& projection, const Tensor& projection_bias,
                 int64_t stride, std::vector<int64_t> padding, bool residual) {
  check_mbconv(x, expand, expand_bias, depthwise, depthwise_bias, reduce, reduce_bias, gate, gate_bias, projection,
               projection_bias, stride, padding, residual);
  const MbconvShape shape = mbconv_shape(x, depthwise, reduce, projection, stride, padding);
  const Tensor input = precise(x, MemoryFormat::ChannelsLast);
  Tensor out = new_pixels(x, shape.out_channels, shape.out_height, shape.out_width);
  const auto run = [&](auto type) {
    using T = decltype(type);
    // Kept alive while the block refers to them.
    std::vector<Tensor> held;
    const auto weights = [&](const std::optional<Tensor>& t) {
      if (!t) return static_cast<const T*>(nullptr);
      held.push_back(precise(*t));
      return data<T>(held.back());
    };
    Mbconv<T> block{shape};
    block.in = {data<T>(input), x.size(1), x.size(2), x.size(3)};
    if (expand) block.expand = weight_matrix<T>(*expand, held);
    block.expand_bias = weights(expand_bias);
    block.depthwise = weights(depthwise);
    block.depthwise_bias = weights(depthwise_bias);
    block.reduce = weights(reduce);
    block.reduce_bias = weights(reduce_bias);
    block.gate = weights(gate);
    block.gate_bias = weights(gate_bias);
    block.project = weight_matrix<T>(projection, held);
    block.project_bias = weights(projection_bias);
    block.residual = residual;
    // Tensors rather than our own buffers: PyTorch's allocator reuses the memory for the next block.
    Tensor filtered = torch::stable::new_empty(out, {block.filtered_size()});
    Tensor gated = torch::stable::new_empty(out, {block.gated_size()});
    mbconv(block, mutable_data<T>(filtered), mutable_data<T>(gated), mutable_data<T>(out));
  };
  if (out.scalar_type() == ScalarType::Double) {
    run(double{});
  } else {
    run(float{});
  }
  return finish(out, x);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) { m.impl("mbconv", TORCH_BOX(&mbconv_op)); }

}  // namespace hyperseg::cpu
