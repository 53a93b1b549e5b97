#pragma once

#include "common/map.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

// Arguments of decoder_level and patch_inverted_residual once the weights exist; see hyperseg/ops/decoder_level.py.
struct DecoderLevelArgs {
  Map<const void> skip, previous;  // previous is optional; it is resized to skip and its channels follow those of skip
  bool coordinates = false;        // two coordinate channels before those of skip
  Map<void> out;
  // Weights of patch (image, y, x): weights + image * weights_n + y * weights_y + x * weights_x, with contiguous
  // parameters.
  const void* weights = nullptr;
  int64_t weights_n = 0, weights_y = 0, weights_x = 0;
  const void* bias = nullptr;  // nullptr, or 2 * hidden + out channels, contiguous
  int images = 0, grid_h = 0, grid_w = 0;
  int hidden = 0;        // 0: one 1x1 convolution per patch
  bool own_halo = true;  // the halo of a patch is expanded by the patch's own weights
  bool last_relu = false;
  uint8_t* labels = nullptr;   // optional, [images, height, width]: written instead of out, which then has no memory
  void* hidden_map = nullptr;  // workspace of hidden_map_size values

  int channels() const {
    return static_cast<int>(2 * coordinates + skip.channels + (previous ? previous.channels : 0));
  }
  int patch_h() const { return static_cast<int>(skip.height / grid_h); }
  int patch_w() const { return static_cast<int>(skip.width / grid_w); }
};

// For hidden == 0.
void pointwise_level(const DecoderLevelArgs& level, Type type, const char* op, Stream stream);
// For hidden > 0; any shape and type.
void inverted_residual_simt_level(const DecoderLevelArgs& level, Type type, const char* op, Stream stream);

// Return the size of the workspace between two kernels, in values of the level's type.
int64_t hidden_map_size(const DecoderLevelArgs& level, Type type);
// Run the level on tensor cores. Returns false, without launching anything, if shape or type is not supported. Only
// this kernel writes labels.
bool inverted_residual_mma_level(const DecoderLevelArgs& level, Type type, const char* op, Stream stream);

}  // namespace hyperseg::cuda
