#include "../common/decoder_level.h"

#include "generate_weights.h"
#include "generated_pointwise.h"
#include "operands.h"
#include "upsample_argmax.h"

namespace hyperseg::cuda {
namespace {

// A level, and the tensors that its pointers lead to.
struct Prepared {
  Level level;
  Type type;
  Tensor shift, weights;
};

Prepared prepare(const char* op, const Tensor& skip, const std::optional<Tensor>& previous, const Tensor& bias,
                 int64_t out_channels, int64_t hidden, const std::string& halo) {
  const Tensor shift = side_by_side(bias, 0);
  Level level;
  level.skip = read<void>(skip);
  if (previous) level.previous = read<void>(*previous);
  level.coordinates = true;
  level.out = Map<void>{.channels = out_channels, .height = skip.size(2), .width = skip.size(3)};
  level.bias = shift.const_data_ptr();
  level.images = static_cast<int>(skip.size(0));
  level.hidden = static_cast<int>(hidden);
  level.own_halo = halo == "own";
  level.last_relu = hidden == 0;
  return {level, type_of(op, skip), shift, shift};
}

// The weights: `source` itself, or what the generator makes of it.
void give_weights(Prepared& prepared, const Tensor& source, const std::optional<Tensor>& generator, int64_t offset,
                  int64_t groups, Stream stream) {
  Level& level = prepared.level;
  if (!generator) {
    prepared.weights = side_by_side(source, 3);
  } else {
    const int64_t outputs = level.out.channels;
    const int64_t size = level.hidden ? (level.channels() + 9 + outputs) * level.hidden : level.channels() * outputs;
    prepared.weights = torch::stable::new_empty(source, {source.size(0), source.size(2), source.size(3), size});
    generate_weights(read<void>(source), prepared.type, level.images, {generator_of(*generator, offset, groups, size)},
                     prepared.weights.mutable_data_ptr(), stream);
  }
  set_weights(level, prepared.weights);
}

Tensor decoder_level(const Tensor& skip, std::optional<Tensor> previous, const Tensor& source,
                     std::optional<Tensor> generator, const Tensor& bias, int64_t offset, int64_t groups,
                     int64_t out_channels, int64_t hidden, std::string halo) {
  constexpr const char* op = "decoder_level";
  check_decoder_level(op, skip, previous, source, generator, bias, offset, groups, out_channels, hidden, halo);
  Tensor out = new_map(skip, out_channels);
  const OnDeviceOf device(skip);
  Prepared prepared = prepare(op, skip, previous, bias, out_channels, hidden, halo);
  Level& level = prepared.level;
  level.out = write<void>(out);
  if (generator && !hidden) {
    level.grid_h = static_cast<int>(source.size(2));
    level.grid_w = static_cast<int>(source.size(3));
    const Generator maker = generator_of(*generator, offset, groups, level.channels() * out_channels);
    if (generated_pointwise_level(level, read<void>(source), maker, prepared.type, op, device.stream())) return out;
  }
  give_weights(prepared, source, generator, offset, groups, device.stream());
  run_level(level, prepared.type, skip, op, device.stream());
  return out;
}

Tensor decoder_level_argmax(const Tensor& skip, std::optional<Tensor> previous, const Tensor& source,
                            std::optional<Tensor> generator, const Tensor& bias, int64_t offset, int64_t groups,
                            int64_t out_channels, int64_t hidden, std::string halo) {
  constexpr const char* op = "decoder_level_argmax";
  check_decoder_level(op, skip, previous, source, generator, bias, offset, groups, out_channels, hidden, halo);
  check(out_channels <= 256, op, ": labels are uint8, so out_channels can be 256 at most, got ", out_channels);
  const int64_t images = skip.size(0), height = skip.size(2), width = skip.size(3);
  Tensor labels = torch::stable::new_empty(skip, {images, height, width}, ScalarType::Byte);
  const OnDeviceOf device(skip);
  std::optional<Tensor> made;  // weights that are there when the kernel for labels does not suit
  if (hidden) {
    Prepared prepared = prepare(op, skip, previous, bias, out_channels, hidden, halo);
    prepared.level.labels = static_cast<uint8_t*>(labels.mutable_data_ptr());
    give_weights(prepared, source, generator, offset, groups, device.stream());
    const Room room(prepared.level, prepared.type, skip);
    if (inverted_residual_tensor_level(prepared.level, prepared.type, op, device.stream())) return labels;
    made = prepared.weights;
  }
  const Tensor scores =
      made ? decoder_level(skip, previous, *made, std::nullopt, bias, 0, 1, out_channels, hidden, halo)
           : decoder_level(skip, previous, source, generator, bias, offset, groups, out_channels, hidden, halo);
  upsample_argmax(read<void>(scores), type_of(op, scores), images, static_cast<uint8_t*>(labels.mutable_data_ptr()),
                  height, width, device.stream());
  return labels;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) {
  m.impl("decoder_level", TORCH_BOX(&decoder_level));
  m.impl("decoder_level_argmax", TORCH_BOX(&decoder_level_argmax));
}

}  // namespace hyperseg::cuda
