#include "../common/decoder_level.h"

#include "generated_pointwise.h"
#include "operands.h"

namespace hyperseg::cuda {
namespace {

Tensor decoder_level(const Tensor& skip, std::optional<Tensor> previous, const Tensor& source,
                     std::optional<Tensor> generator, const Tensor& bias, int64_t offset, int64_t groups,
                     int64_t out_channels, int64_t hidden, std::string halo) {
  constexpr const char* op = "decoder_level";
  check_decoder_level(op, skip, previous, source, generator, bias, offset, groups, out_channels, hidden, halo);
  const Type type = type_of(op, skip);
  Tensor out = new_map(skip, out_channels);
  const OnDeviceOf device(skip);
  const int64_t channels = 2 + skip.size(1) + (previous ? previous->size(1) : 0);
  const int64_t size = hidden ? (channels + 9 + out_channels) * hidden : channels * out_channels;
  const Tensor shift = side_by_side(bias, 0);
  Level level;
  level.skip = read<void>(skip);
  if (previous) level.previous = read<void>(*previous);
  level.coordinates = true;
  level.out = write<void>(out);
  level.bias = shift.const_data_ptr();
  level.images = static_cast<int>(skip.size(0));
  level.hidden = static_cast<int>(hidden);
  level.own_halo = halo == "own";
  level.last_relu = hidden == 0;
  if (!generator) {
    const Tensor weights = side_by_side(source, 3);
    set_weights(level, weights);
    run_level(level, type, skip, op, device.stream());
    return out;
  }
  const Map<const void> signal = read<void>(source);
  const Generator maker = generator_of(*generator, offset, groups, size);
  level.grid_h = static_cast<int>(signal.height);
  level.grid_w = static_cast<int>(signal.width);
  if (!hidden && generated_pointwise_level(level, signal, maker, type, op, device.stream())) return out;
  Tensor weights = torch::stable::new_empty(source, {source.size(0), source.size(2), source.size(3), size});
  generate_weights(signal, type, level.images, {maker}, weights.mutable_data_ptr(), device.stream());
  set_weights(level, weights);
  run_level(level, type, skip, op, device.stream());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) { m.impl("decoder_level", TORCH_BOX(&decoder_level)); }

}  // namespace hyperseg::cuda
