#include <torch/csrc/stable/library.h>

#include <string>

#include "common/contracts/decoder_level.h"
#include "cpu/base/tensors.h"
#include "cpu/decoder/generate_weights.h"
#include "cpu/decoder/level.h"

namespace hyperseg::cpu {
namespace {

Tensor decoder_level(const Tensor& skip, std::optional<Tensor> previous, std::optional<Tensor> signal,
                     std::optional<Tensor> generator, std::optional<Tensor> weights, const Tensor& bias, int64_t offset,
                     int64_t groups, int64_t out_channels, int64_t hidden, std::string halo) {
  check_decoder_level("decoder_level", skip, previous, signal, generator, weights, bias, offset, groups, out_channels,
                      hidden, halo);
  Tensor out = new_map(skip, out_channels);
  const int64_t channels = 2 + skip.size(1) + (previous ? previous->size(1) : 0);
  const int64_t size = hidden ? (channels + 9 + out_channels) * hidden : channels * out_channels;
  // A patch that reads its neighbours' weights needs all weights in memory.
  if (signal && hidden && halo != "own") weights = generate_weights(*signal, {*generator}, {offset}, {groups}, {size});
  with_type(skip, "decoder_level", [&](auto type) {
    using scalar_t = decltype(type);
    DecoderLevel<scalar_t> level;
    level.skip = read<scalar_t>(skip);
    if (previous) level.previous = read<scalar_t>(*previous);
    level.images = skip.size(0);
    level.hidden = hidden;
    level.out_channels = out_channels;
    level.own_halo = halo == "own";
    level.last = Activation::kRelu;
    level.bias = values<scalar_t>(bias);
    level.out = write<scalar_t>(out);
    if (!weights) {
      const PackedGenerator<acc_t<scalar_t>> transposed(static_cast<const scalar_t*>(generator->const_data_ptr()),
                                                        generator->stride(0), generator->stride(1), generator->size(0),
                                                        generator->size(1), groups, size);
      level.generator = &transposed;
      level.signal = read<scalar_t>(*signal);
      level.signal_offset = offset;
      level.grid_h = signal->size(2);
      level.grid_w = signal->size(3);
      level.run();
    } else {
      level.set_weights(*weights);
      level.run();
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) { m.impl("decoder_level", TORCH_BOX(&decoder_level)); }

}  // namespace hyperseg::cpu
