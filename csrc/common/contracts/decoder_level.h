#pragma once

#include "common/contracts/generate_weights.h"
#include "common/tensor_checks.h"

namespace hyperseg {

inline void check_decoder_level(const char* op, const torch::stable::Tensor& skip,
                                const std::optional<torch::stable::Tensor>& previous,
                                const std::optional<torch::stable::Tensor>& signal,
                                const std::optional<torch::stable::Tensor>& generator,
                                const std::optional<torch::stable::Tensor>& weights, const torch::stable::Tensor& bias,
                                int64_t offset, int64_t groups, int64_t out_channels, int64_t hidden,
                                const std::string& halo) {
  check_map(op, "skip", skip);
  if (previous) {
    check_map(op, "previous", *previous);
    check_same_kind(op, "previous", *previous, "skip", skip);
    check(previous->size(0) == skip.size(0), op, ": skip has ", skip.size(0), " images but previous ",
          previous->size(0));
  }
  check_count(op, "out_channels", out_channels);
  check_count(op, "hidden", hidden, 0);
  check_halo(op, halo);
  check_same_kind(op, "bias", bias, "skip", skip);
  check_shape(op, "bias", bias, {2 * hidden + out_channels});
  if (hidden) check_reflectable(op, skip, 1, 1);
  const int64_t channels = 2 + skip.size(1) + (previous ? previous->size(1) : 0);
  const int64_t parameters = hidden ? (channels + 9 + out_channels) * hidden : channels * out_channels;
  check(signal.has_value() != weights.has_value(), op, ": give either signal and generator, or weights");
  if (weights) {
    check(!generator, op, ": a generator is for a signal, which was not given");
    return check_patch_weights(op, *weights, skip, parameters);
  }
  check(generator.has_value(), op, ": a signal needs a generator to make weights from it");
  check_map(op, "signal", *signal, "[N, C, fh, fw]");
  check_same_kind(op, "signal", *signal, "skip", skip);
  check(signal->size(0) == skip.size(0), op, ": the signal has ", signal->size(0), " images but skip ", skip.size(0));
  check_generator(op, *signal, *generator, offset, groups, parameters);
  check_grid(op, signal->size(2), signal->size(3), skip);
}

}  // namespace hyperseg
