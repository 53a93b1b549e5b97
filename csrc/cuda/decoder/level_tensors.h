#pragma once

#include "cuda/decoder/level.h"
#include "cuda/device/tensors.h"

// Levels from tensors.
namespace hyperseg::cuda {

// A dimension whose values lie side by side, perhaps as a copy.
inline Tensor side_by_side(const Tensor& t, int64_t dimension) {
  return t.stride(dimension) == 1 || t.size(dimension) == 1 ? t : torch::stable::contiguous(t);
}

inline void set_weights(Level& level, const Tensor& weights) {  // which side_by_side(t, 3) gave
  level.weights = weights.const_data_ptr();
  level.weights_n = weights.stride(0);
  level.weights_y = weights.stride(1);
  level.weights_x = weights.stride(2);
  level.grid_h = static_cast<int>(weights.size(1));
  level.grid_w = static_cast<int>(weights.size(2));
}

// Memory that a level wants between two kernels, while this lives. `like`: of the level's type and device.
class Room {
 public:
  Room(Level& level, Type type, const Tensor& like) : map_(like) {
    const int64_t size = hidden_map_size(level, type);
    if (!size) return;
    map_ = torch::stable::new_empty(like, {size});
    level.hidden_map = map_.mutable_data_ptr();
  }

 private:
  Tensor map_;
};

inline void run_level(Level& level, Type type, const Tensor& like, const char* op, Stream stream) {
  if (!level.hidden) return pointwise_level(level, type, op, stream);
  const Room room(level, type, like);
  if (!inverted_residual_tensor_level(level, type, op, stream)) inverted_residual_level(level, type, op, stream);
}

}  // namespace hyperseg::cuda
