#pragma once

#include "common/map.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

// What decoder_level and patch_inverted_residual compute once there are weights; see hyperseg/ops/decoder_level.py.
struct Level {
  Map<const void> skip, previous;  // previous, which may be absent, is resized to skip and follows its channels
  bool coordinates = false;        // two more channels before those of skip
  Map<void> out;
  // Of patch (image, y, x): weights + image * weights_n + y * weights_y + x * weights_x, parameters side by side.
  const void* weights = nullptr;
  int64_t weights_n = 0, weights_y = 0, weights_x = 0;
  const void* bias = nullptr;  // none, or 2 * hidden + out channels side by side
  int images = 0, grid_h = 0, grid_w = 0;
  int hidden = 0;        // 0: one matrix a patch
  bool own_halo = true;  // around its patch, an inverted residual sees what the patch's own weights make of the input
  bool last_relu = false;
  uint8_t* labels = nullptr;  // where given, [images, height, width]: what to write instead of out, which has no memory
  void* hidden_map = nullptr;  // room for hidden_map_size values

  int channels() const {
    return static_cast<int>(2 * coordinates + skip.channels + (previous ? previous.channels : 0));
  }
  int patch_h() const { return static_cast<int>(skip.height / grid_h); }
  int patch_w() const { return static_cast<int>(skip.width / grid_w); }
};

// hidden == 0.
void pointwise_level(const Level& level, Type type, const char* op, Stream stream);
// hidden > 0; any shape, any type.
void inverted_residual_level(const Level& level, Type type, const char* op, Stream stream);

// How many values of its type the level wants to keep between two kernels.
int64_t hidden_map_size(const Level& level, Type type);
// The same on tensor cores; false, and nothing done, where the shape or type does not suit it. Only this writes labels.
bool inverted_residual_tensor_level(const Level& level, Type type, const char* op, Stream stream);

}  // namespace hyperseg::cuda
