#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "common/contracts/decoder_level.h"
#include "cpu/base/generator_backward.h"
#include "cpu/base/gradients.h"
#include "cpu/decoder/block_training.h"
#include "cpu/decoder/generate_weights.h"
#include "cpu/decoder/pointwise_backward.h"

namespace hyperseg::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> decoder_level_backward(
    const Tensor& grad, const Tensor& skip, std::optional<Tensor> previous, std::optional<Tensor> signal,
    std::optional<Tensor> generator, std::optional<Tensor> given_weights, const Tensor& bias, int64_t offset,
    int64_t groups, int64_t out_channels, int64_t hidden, std::string halo) {
  constexpr char kName[] = "decoder_level_backward";
  check_decoder_level(kName, skip, previous, signal, generator, given_weights, bias, offset, groups, out_channels,
                      hidden, halo);
  check_gradient(kName, grad, skip, out_channels);
  const int64_t images = skip.size(0), height = skip.size(2), width = skip.size(3);
  const int64_t channels = 2 + skip.size(1) + (previous ? previous->size(1) : 0);
  const int64_t size = hidden ? (channels + 9 + out_channels) * hidden : channels * out_channels;
  const Tensor weights = signal ? generate_weights(*signal, {*generator}, {offset}, {groups}, {size}) : *given_weights;
  const int64_t grid_h = weights.size(1), grid_w = weights.size(2);
  Tensor d_skip = dense_like(skip), d_previous = previous ? dense_like(*previous) : empty_tensor(grad);
  Tensor d_signal = signal ? dense_like(*signal) : empty_tensor(grad);
  Tensor d_generator = signal ? dense_like(*generator) : empty_tensor(grad);
  Tensor d_given_weights = signal ? empty_tensor(grad) : dense_like(*given_weights), d_bias;
  with_type(skip, kName, [&](auto type) {
    using S = decltype(type);
    using T = acc_t<S>;
    const LevelInput<S> input(true, read<S>(skip), previous ? read<S>(*previous) : Map<const S>(), images);
    const std::vector<T> shifts = values<S>(bias);
    const auto finish = [&](auto& level, T* d_weights) {
      level.backward(read<S>(grad), d_weights);
      const auto plane = [&](int64_t n, int64_t c, T* buffer) { return level.input_gradient(n, c, buffer); };
      input.scatter(images, plane, static_cast<S*>(d_skip.mutable_data_ptr()),
                    static_cast<S*>(d_previous.mutable_data_ptr()));
    };
    const auto differentiate = [&](T* d_weights) {
      if (hidden) {
        InvertedResidualTraining<S> block(input, patch_weights<S>(weights), images, height, width, grid_h, grid_w,
                                          hidden, out_channels, halo == "own");
        block.fold_norms(shifts);
        finish(block, d_weights);
        d_bias = vector_like(bias, block.d_shift);
      } else {
        const Windows windows(images, height, width, grid_h, grid_w, 0, 0, "zeros");
        PointwiseBackward<S> block(input, patch_weights<S>(weights), windows, out_channels, shifts, true);
        finish(block, d_weights);
        d_bias = vector_like(bias, block.d_bias);
      }
    };
    if (signal) {
      const auto d_weights = uninitialised<T>(images * grid_h * grid_w * size);
      differentiate(d_weights.get());
      SignalBackward<S> backward(read<S>(*signal), images);
      backward.through({static_cast<const S*>(generator->const_data_ptr()), generator->stride(0), generator->stride(1),
                        generator->size(0), generator->size(1), groups, size, offset},
                       d_weights.get(), size, static_cast<S*>(d_generator.mutable_data_ptr()));
      backward.write(static_cast<S*>(d_signal.mutable_data_ptr()));
    } else {
      Accumulated<S> d_weights(d_given_weights);
      differentiate(d_weights.data());
      d_weights.finish();
    }
  });
  return {d_skip, d_previous, d_signal, d_generator, d_given_weights, d_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) {
  m.impl("decoder_level_backward", TORCH_BOX(&decoder_level_backward));
}

}  // namespace hyperseg::cpu
