#pragma once

#include <cstdint>
#include <vector>

#include "common/acc.h"
#include "common/map.h"
#include "cpu/base/generator.h"
#include "cpu/base/patch_weights.h"
#include "cpu/base/tensors.h"
#include "cpu/simd/primitives.h"

// The implementation of decoder_level, patch_inverted_residual and 1x1 patch_conv2d. A task is a run of patches along a
// row of the grid. It reads its part of the level's input (upsampling as it reads) into a small tile, generates the
// run's weights if necessary, and computes each patch in tiles whose hidden maps stay in the caches.
namespace hyperseg::cpu {

template <typename S>
struct DecoderLevel {
  using T = acc_t<S>;

  Map<const S> skip, previous;  // previous may be empty
  bool with_coordinates = true;
  int64_t images = 0, grid_h = 0, grid_w = 0, hidden = 0, out_channels = 0;
  bool own_halo = true;
  Activation last = Activation::kNone;  // after a 1x1 level
  std::vector<T> bias;                  // empty, or [2 * hidden + out_channels]
  // Either weights [N, fh, fw, P] ...
  PatchWeights<S> weights;
  // ... or a signal and the generator that makes weights from it.
  Map<const S> signal;
  int64_t signal_offset = 0;
  const PackedGenerator<T>* generator = nullptr;
  Map<S> out;

  void set_weights(const Tensor& tensor) {
    weights = patch_weights<S>(tensor);
    grid_h = tensor.size(1);
    grid_w = tensor.size(2);
  }
  void run() const;
};

}  // namespace hyperseg::cpu
