#pragma once

#include <vector>

#include "cpu/base/patch_weights.h"
#include "cpu/decoder/level_input.h"

// Backward pass of a 1x1 convolution with per-patch weights, and of the ReLU after it. Patches of many pixels are
// vectorized along the pixels, patches of few pixels along the channels.
namespace hyperseg::cpu {

template <typename S>
class PointwiseBackward {
 public:
  using T = acc_t<S>;

  // `bias` and `relu` as in the forward pass; the bias is used only by the ReLU.
  PointwiseBackward(const LevelInput<S>& input, const PatchWeights<S>& weights, const Windows& windows, int64_t outputs,
                    const std::vector<T>& bias, bool relu)
      : input_(input), weights_(weights), windows_(windows), outputs_(outputs), bias_(bias), relu_(relu) {}

  // d_weights: [patches, outputs * channels].
  void backward(const Map<const S>& gradient, T* d_weights);

  std::vector<double> d_bias;

  const T* input_gradient(int64_t n, int64_t c, T*) const {
    return d_input_.get() + (n * (input_.channels() - input_.first()) + c) * windows_.height * windows_.width;
  }

 private:
  struct Memory;
  void one(Memory& m, const Windows::PatchIndex& at, const Map<const S>& gradient, T* d_weights, const Map<T>& d_input,
           T* sum) const;
  void stop_at_relu(Memory& m) const;
  void by_pixel(Memory& m, T* d_weights) const;
  void by_channel(Memory& m, T* d_weights) const;

  const LevelInput<S>& input_;
  PatchWeights<S> weights_;
  const Windows& windows_;
  int64_t outputs_;
  std::vector<T> bias_;
  bool relu_;
  std::unique_ptr<T[]> d_input_;  // [N, skip and previous channels, H, W]
};

}  // namespace hyperseg::cpu
