#include "common/contracts/decoder_level.h"

#include "cuda/decoder/generate_weights.h"
#include "cuda/decoder/generated_pointwise.h"
#include "cuda/decoder/level_tensors.h"
#include "cuda/loss/upsample_argmax.h"

namespace hyperseg::cuda {
namespace {

// Level arguments and the tensors that their pointers refer to.
struct PreparedLevel {
  DecoderLevelArgs level;
  Type type;
  Tensor shift, weights;
};

PreparedLevel prepare(const char* op, const Tensor& skip, const std::optional<Tensor>& previous, const Tensor& bias,
                      int64_t out_channels, int64_t hidden, const std::string& halo) {
  const Tensor shift = contiguous_along(bias, 0);
  DecoderLevelArgs level;
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

// Set the weights of the level: the given ones, or the ones that the generator makes from the signal.
void prepare_weights(PreparedLevel& prepared, const std::optional<Tensor>& signal,
                     const std::optional<Tensor>& generator, const std::optional<Tensor>& weights, int64_t offset,
                     int64_t groups, Stream stream) {
  DecoderLevelArgs& level = prepared.level;
  if (weights) {
    prepared.weights = contiguous_along(*weights, 3);
  } else {
    const int64_t outputs = level.out.channels;
    const int64_t size = level.hidden ? (level.channels() + 9 + outputs) * level.hidden : level.channels() * outputs;
    prepared.weights = torch::stable::new_empty(*signal, {signal->size(0), signal->size(2), signal->size(3), size});
    generate_weights(read<void>(*signal), prepared.type, level.images, {generator_of(*generator, offset, groups, size)},
                     prepared.weights.mutable_data_ptr(), stream);
  }
  set_weights(level, prepared.weights);
}

Tensor decoder_level(const Tensor& skip, std::optional<Tensor> previous, std::optional<Tensor> signal,
                     std::optional<Tensor> generator, std::optional<Tensor> weights, const Tensor& bias, int64_t offset,
                     int64_t groups, int64_t out_channels, int64_t hidden, std::string halo) {
  constexpr const char* op = "decoder_level";
  check_decoder_level(op, skip, previous, signal, generator, weights, bias, offset, groups, out_channels, hidden, halo);
  Tensor out = new_map(skip, out_channels);
  const DeviceGuard device(skip);
  PreparedLevel prepared = prepare(op, skip, previous, bias, out_channels, hidden, halo);
  DecoderLevelArgs& level = prepared.level;
  level.out = write<void>(out);
  if (signal && !hidden) {
    level.grid_h = static_cast<int>(signal->size(2));
    level.grid_w = static_cast<int>(signal->size(3));
    const GeneratorArgs maker = generator_of(*generator, offset, groups, level.channels() * out_channels);
    if (generated_pointwise_level(level, read<void>(*signal), maker, prepared.type, op, device.stream())) return out;
  }
  prepare_weights(prepared, signal, generator, weights, offset, groups, device.stream());
  run_level(level, prepared.type, skip, op, device.stream());
  return out;
}

Tensor decoder_level_argmax(const Tensor& skip, std::optional<Tensor> previous, std::optional<Tensor> signal,
                            std::optional<Tensor> generator, std::optional<Tensor> weights, const Tensor& bias,
                            int64_t offset, int64_t groups, int64_t out_channels, int64_t hidden, std::string halo) {
  constexpr const char* op = "decoder_level_argmax";
  check_decoder_level(op, skip, previous, signal, generator, weights, bias, offset, groups, out_channels, hidden, halo);
  check(out_channels <= 256, op, ": labels are uint8, so out_channels can be 256 at most, got ", out_channels);
  const int64_t images = skip.size(0), height = skip.size(2), width = skip.size(3);
  Tensor labels = torch::stable::new_empty(skip, {images, height, width}, ScalarType::Byte);
  const DeviceGuard device(skip);
  if (hidden) {
    PreparedLevel prepared = prepare(op, skip, previous, bias, out_channels, hidden, halo);
    prepared.level.labels = static_cast<uint8_t*>(labels.mutable_data_ptr());
    prepare_weights(prepared, signal, generator, weights, offset, groups, device.stream());
    const LevelWorkspace workspace(prepared.level, prepared.type, skip);
    if (inverted_residual_mma_level(prepared.level, prepared.type, op, device.stream())) return labels;
    // The fused kernel does not support this level: go on with the weights that were generated for it.
    weights = prepared.weights;
    signal = generator = std::nullopt;
  }
  const Tensor scores =
      decoder_level(skip, previous, signal, generator, weights, bias, offset, groups, out_channels, hidden, halo);
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
