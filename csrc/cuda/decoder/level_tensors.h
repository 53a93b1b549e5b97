#pragma once

#include "cuda/decoder/level.h"
#include "cuda/device/tensors.h"

// Level arguments from tensors.
namespace hyperseg::cuda {

// Return `t` itself if `dimension` is contiguous, else a contiguous copy.
inline Tensor contiguous_along(const Tensor& t, int64_t dimension) {
  return t.stride(dimension) == 1 || t.size(dimension) == 1 ? t : torch::stable::contiguous(t);
}

// Set weights with contiguous parameters: see contiguous_along.
inline void set_weights(DecoderLevelArgs& level, const Tensor& weights) {
  level.weights = weights.const_data_ptr();
  level.weights_n = weights.stride(0);
  level.weights_y = weights.stride(1);
  level.weights_x = weights.stride(2);
  level.grid_h = static_cast<int>(weights.size(1));
  level.grid_w = static_cast<int>(weights.size(2));
}

// Workspace of a level between two kernels, allocated while this object lives. `like`: a tensor of the level's type and
// device.
class LevelWorkspace {
 public:
  LevelWorkspace(DecoderLevelArgs& level, Type type, const Tensor& like) : map_(like) {
    const int64_t size = hidden_map_size(level, type);
    if (!size) return;
    map_ = torch::stable::new_empty(like, {size});
    level.hidden_map = map_.mutable_data_ptr();
  }

 private:
  Tensor map_;
};

inline void run_level(DecoderLevelArgs& level, Type type, const Tensor& like, const char* op, Stream stream) {
  if (!level.hidden) return pointwise_level(level, type, op, stream);
  const LevelWorkspace workspace(level, type, like);
  if (!inverted_residual_mma_level(level, type, op, stream)) inverted_residual_simt_level(level, type, op, stream);
}

}  // namespace hyperseg::cuda
