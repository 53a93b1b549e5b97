#include "cpu/encoder/mbconv.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "common/contracts/mbconv.h"
#include "cpu/base/tensors.h"
#include "cpu/encoder/mbconv_bfloat16.h"
#include "cpu/encoder/nhwc.h"
#include "cpu/simd/amx.h"

namespace hyperseg::cpu {
namespace {

Tensor run_bfloat16(const MbconvShape& shape, const Tensor& x, const std::optional<Tensor>& expand,
                    const std::optional<Tensor>& expand_bias, const Tensor& depthwise, const Tensor& depthwise_bias,
                    const Tensor& reduce, const Tensor& reduce_bias, const Tensor& gate, const Tensor& gate_bias,
                    const Tensor& projection, const Tensor& projection_bias, bool residual) {
  using torch::stable::contiguous;
  std::vector<Tensor> held;  // kept alive while the block refers to them
  const auto values = [&](const Tensor& t) {
    held.push_back(contiguous(t));
    return data<uint16_t>(held.back());
  };
  const auto matrix = [&](const Tensor& t) {
    held.push_back(t.stride(0) == 1 || t.stride(1) == 1 ? t : contiguous(t));
    const Tensor& dense = held.back();
    return amx::Matrix{data<uint16_t>(dense), t.size(0), t.size(1), dense.stride(0), dense.stride(1)};
  };
  const Tensor input = contiguous(x, MemoryFormat::ChannelsLast);
  Tensor out = torch::stable::new_empty(x, {x.size(0), shape.out_height, shape.out_width, shape.out_channels});
  amx::Block block{shape};
  block.channels = x.size(1), block.height = x.size(2), block.width = x.size(3);
  block.in = data<uint16_t>(input);
  if (expand) {
    block.expand = matrix(*expand);
    block.expand_bias = values(*expand_bias);
  }
  held.push_back(depthwise.stride(1) == shape.size * depthwise.stride(2) ? depthwise : contiguous(depthwise));
  block.depthwise = {data<uint16_t>(held.back()), shape.hidden, shape.size * shape.size, held.back().stride(0),
                     held.back().stride(2)};
  block.depthwise_bias = values(depthwise_bias);
  block.reduce = values(reduce);
  block.reduce_bias = values(reduce_bias);
  block.gate = values(gate);
  block.gate_bias = values(gate_bias);
  block.project = matrix(projection);
  block.project_bias = values(projection_bias);
  block.residual = residual;
  Tensor filtered = torch::stable::new_empty(x, {filtered_size(block)});
  Tensor packed = torch::stable::new_empty(x, {packed_size(block)});
  mbconv_bfloat16(block, mutable_data<uint16_t>(filtered), mutable_data<uint16_t>(packed), mutable_data<uint16_t>(out));
  return finish(out, x);
}

Tensor mbconv_op(const Tensor& x, std::optional<Tensor> expand, std::optional<Tensor> expand_bias,
                 const Tensor& depthwise, const Tensor& depthwise_bias, const Tensor& reduce, const Tensor& reduce_bias,
                 const Tensor& gate, const Tensor& gate_bias, const Tensor& projection, const Tensor& projection_bias,
                 int64_t stride, std::vector<int64_t> padding, bool residual) {
  check_mbconv(x, expand, expand_bias, depthwise, depthwise_bias, reduce, reduce_bias, gate, gate_bias, projection,
               projection_bias, stride, padding, residual);
  const MbconvShape shape = mbconv_shape(x, depthwise, reduce, projection, stride, padding);
  // Its tiles take channels in pairs.
  if (x.scalar_type() == ScalarType::BFloat16 && has_amx() && (!expand || x.size(1) % 2 == 0))
    return run_bfloat16(shape, x, expand, expand_bias, depthwise, depthwise_bias, reduce, reduce_bias, gate, gate_bias,
                        projection, projection_bias, residual);
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
  with_precise(out, run);
  return finish(out, x);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) { m.impl("mbconv", TORCH_BOX(&mbconv_op)); }

}  // namespace hyperseg::cpu
