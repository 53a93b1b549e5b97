#include "common/contracts/decoder_level.h"

#include <tuple>

#include "cuda/decoder/generate_weights.h"
#include "cuda/training/folded_norm_backward.h"
#include "cuda/training/generate_weights_backward.h"

namespace hyperseg::cuda {
namespace {

constexpr char kName[] = "decoder_level_backward";

Tensor contiguous_like(const Tensor& t) {
  const auto sizes = t.sizes();
  return torch::stable::new_empty(t, sizes);
}

// Compute the gradients of input and weights of a 1x1 level; returns the gradient of the bias.
Tensor pointwise_backward(const Tensor& grad, const Tensor& x, const Tensor& weights, const Tensor& bias,
                          const InputGradient& d_x, void* d_weights, Stream stream) {
  const Type type = type_of(kName, x);
  const Map<const void> input = read<void>(x);
  const PatchGrid grid = grid_of(weights, input);
  const PatchPixels pixels(grid, false);
  const int outputs = static_cast<int>(grad.size(1)), inputs = static_cast<int>(x.size(1));
  Tensor norms = floats(grad, 2 * outputs), d_y = values(grad, grad.numel());
  folded_norms(vector_of(kName, bias), outputs, data(norms), data(norms) + outputs, kName, stream);

  PatchGemm forward;
  forward.grid = grid, forward.pixels = pixels;
  forward.matrix = matrix_at(weights, type, 0, outputs, inputs);
  forward.input = patches_of(input, grid);
  forward.other = patches_of(read<void>(grad), grid);
  forward.norm = {data(norms), data(norms) + outputs};
  forward.out = pixel_by_pixel(d_y.mutable_data_ptr(), grid, pixels, outputs);
  forward.stored = forward.split = outputs;
  const PartialRows rows = rows_of(forward);
  Tensor partial = floats(grad, rows.rows * 2 * outputs);
  patch_gemm(forward, Epilogue::kThroughRelu, data(partial), type, kName, stream);

  ChannelSums sums{nullptr, chunks_of(rows), outputs};
  Tensor added = torch::stable::new_empty(grad, {int64_t{2} * sums.chunks * outputs}, ScalarType::Double);
  sums.data = static_cast<double*>(added.mutable_data_ptr());
  add_rows(data(partial), rows, false, sums, kName, stream);
  Tensor d_bias = values(bias, outputs);
  bias_gradients({sums, {}, {}}, {outputs, 0, 0}, vector_of(kName, d_bias), kName, stream);

  const PatchedMap<const void> pulled = pixel_by_pixel<const void>(d_y.const_data_ptr(), grid, pixels, outputs);
  PatchWgrad wgrad{grid, pixels, pulled, forward.input, {}, outputs, inputs, d_weights};
  wgrad.parameters = int64_t{outputs} * inputs;
  patch_wgrad(wgrad, type, kName, stream);

  PatchGemm back;
  back.grid = grid, back.pixels = pixels;
  back.matrix = transposed(forward.matrix, d_x.first, type);
  back.input = pulled;
  back.out = patches_of(d_x.skip, grid), back.rest = patches_of(d_x.previous, grid);
  back.split = d_x.split, back.stored = back.matrix.outputs;
  patch_gemm(back, Epilogue::kPlain, nullptr, type, kName, stream);
  return d_bias;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> decoder_level_backward(
    const Tensor& grad, const Tensor& skip, std::optional<Tensor> previous, std::optional<Tensor> signal,
    std::optional<Tensor> generator, std::optional<Tensor> given_weights, const Tensor& bias, int64_t offset,
    int64_t groups, int64_t out_channels, int64_t hidden, std::string halo) {
  check_decoder_level(kName, skip, previous, signal, generator, given_weights, bias, offset, groups, out_channels,
                      hidden, halo);
  check_gradient(kName, grad, skip, out_channels);
  const Type type = type_of(kName, skip);
  const DeviceGuard device(skip);
  const Stream stream = device.stream();
  const int64_t images = skip.size(0), height = skip.size(2), width = skip.size(3);
  const int64_t channels = 2 + skip.size(1) + (previous ? previous->size(1) : 0);
  const int64_t size = hidden ? (channels + 9 + out_channels) * hidden : channels * out_channels;
  Tensor d_skip = contiguous_like(skip), d_previous = previous ? contiguous_like(*previous) : values(grad, 0);

  Tensor weights = signal ? torch::stable::new_empty(*signal, {images, signal->size(2), signal->size(3), size})
                          : contiguous_along(*given_weights, 3);
  if (signal) {
    generate_weights(read<void>(*signal), type, images, {generator_of(*generator, offset, groups, size)},
                     weights.mutable_data_ptr(), stream);
  }
  DecoderLevelArgs level;
  level.skip = read<void>(skip);
  if (previous) level.previous = read<void>(*previous);
  level.coordinates = true;
  level.images = static_cast<int>(images);
  Tensor x = new_map(skip, channels);
  level_input(level, write<void>(x), type, kName, stream);

  // The gradient of the resized previous.
  const bool resized = previous && (previous->size(2) != height || previous->size(3) != width);
  Tensor d_resized = resized ? torch::stable::new_empty(skip, {images, previous->size(1), height, width}) : d_previous;
  InputGradient d_x{2, static_cast<int>(skip.size(1)), write<void>(d_skip), {}};
  if (previous) d_x.previous = write<void>(d_resized);

  Tensor d_weights = contiguous_like(weights);
  Tensor d_bias = values(bias, 0);
  if (hidden) {
    const TrainingBlock block(kName, skip, read<void>(x), weights, hidden, out_channels, halo, stream);
    d_bias = folded_backward(kName, block, grad, bias, d_x, d_weights.mutable_data_ptr(), stream);
  } else {
    d_bias = pointwise_backward(grad, x, weights, bias, d_x, d_weights.mutable_data_ptr(), stream);
  }
  if (resized) resize_gradient(read<void>(d_resized), images, write<void>(d_previous), type, kName, stream);
  if (!signal) return {d_skip, d_previous, values(grad, 0), values(grad, 0), d_weights, d_bias};

  Tensor d_signal = contiguous_like(*signal), d_generator = contiguous_like(*generator);
  const auto signal_map = read<void>(*signal);
  const int64_t area = signal_map.height * signal_map.width;
  const GenerationBackward problem{
      type, images * area, FastDivmod(area), FastDivmod(signal_map.width), read<void>(d_weights), signal_map};
  Generators generators;
  generators.list[0] = {generator_of(*generator, offset, groups, size), d_generator.mutable_data_ptr(), 0};
  generators.count = 1;
  Tensor partial = floats(grad, partial_sums(problem, generators)),
         parts = floats(grad, passed_values(problem, generators));
  generator_gradients(problem, generators, data(partial), stream);
  signal_gradient(problem, generators, data(parts), {nullptr, d_signal.mutable_data_ptr(), true, true}, stream);
  return {d_skip, d_previous, d_signal, d_generator, values(grad, 0), d_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) {
  m.impl("decoder_level_backward", TORCH_BOX(&decoder_level_backward));
}

}  // namespace hyperseg::cuda
