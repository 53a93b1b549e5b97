#include "cpu/encoder/mbconv_tensors.h"

#include <vector>

#include "cpu/encoder/mbconv.h"
#include "cpu/encoder/mbconv_bfloat16.h"
#include "cpu/encoder/nhwc.h"
#include "cpu/simd/bfloat16.h"

namespace hyperseg::cpu {
namespace {

Tensor run_bfloat16(const Tensor& x, const MbconvTensors& tensors) {
  using torch::stable::contiguous;
  std::vector<Tensor> held;  // kept alive while the block refers to them
  const auto values = [&](const Tensor& t) {
    held.push_back(contiguous(t));
    return data<uint16_t>(held.back());
  };
  const auto matrix = [&](const Tensor& t) {
    held.push_back(t.stride(0) == 1 || t.stride(1) == 1 ? t : contiguous(t));
    const Tensor& dense = held.back();
    return bfloat16::Matrix{data<uint16_t>(dense), t.size(0), t.size(1), dense.stride(0), dense.stride(1)};
  };
  const Tensor input = contiguous(x, MemoryFormat::ChannelsLast);
  bfloat16::Block block{mbconv_shape(x, tensors)};
  Tensor out = torch::stable::new_empty(x, {block.images, block.out_height, block.out_width, block.out_channels});
  block.channels = x.size(1), block.height = x.size(2), block.width = x.size(3);
  block.in = data<uint16_t>(input);
  set_dense_values(block, tensors, values);
  if (tensors.expand) block.expand = matrix(*tensors.expand);
  held.push_back(tensors.depthwise.stride(1) == block.size * tensors.depthwise.stride(2)
                     ? tensors.depthwise
                     : contiguous(tensors.depthwise));
  block.depthwise = {data<uint16_t>(held.back()), block.hidden, block.size * block.size, held.back().stride(0),
                     held.back().stride(2)};
  block.project = matrix(tensors.project);
  Tensor filtered = torch::stable::new_empty(x, {filtered_size(block)});
  Tensor packed = torch::stable::new_empty(x, {packed_size(block)});
  mbconv_bfloat16(block, mutable_data<uint16_t>(filtered), mutable_data<uint16_t>(packed), mutable_data<uint16_t>(out));
  return finish(out, x);
}

}  // namespace

Tensor run_mbconv(const Tensor& x, const MbconvTensors& tensors) {
  check_mbconv(x, tensors);
  const MbconvShape shape = mbconv_shape(x, tensors);
  // Its products take channels in pairs.
  if (x.scalar_type() == ScalarType::BFloat16 && bfloat16_level() != Bfloat16::kNone &&
      (!tensors.expand || x.size(1) % 2 == 0))
    return run_bfloat16(x, tensors);
  const Tensor input = precise(x, MemoryFormat::ChannelsLast);
  Tensor out = new_pixels(x, shape.out_channels, shape.out_height, shape.out_width);
  const auto run = [&](auto type) {
    using T = decltype(type);
    // Kept alive while the block refers to them.
    std::vector<Tensor> held;
    const auto values = [&](const Tensor& t) {
      held.push_back(precise(t));
      return data<T>(held.back());
    };
    Mbconv<T> block{shape};
    block.in = {data<T>(input), x.size(1), x.size(2), x.size(3)};
    set_dense_values(block, tensors, values);
    if (tensors.expand) block.expand = weight_matrix<T>(*tensors.expand, held);
    block.depthwise = values(tensors.depthwise);
    block.project = weight_matrix<T>(tensors.project, held);
    // Tensors rather than our own buffers: PyTorch's allocator reuses the memory for the next block.
    Tensor filtered = torch::stable::new_empty(out, {block.filtered_size()});
    Tensor gated = torch::stable::new_empty(out, {block.gated_size()});
    mbconv(block, mutable_data<T>(filtered), mutable_data<T>(gated), mutable_data<T>(out));
  };
  with_precise(out, run);
  return finish(out, x);
}

}  // namespace hyperseg::cpu
