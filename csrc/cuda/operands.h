#pragma once

#include "generate_weights.h"
#include "level.h"
#include "tensors.h"

// Levels from tensors.
namespace hyperseg::cuda {

Generator generator_of(const Tensor& t, int64_t offset, int64_t groups, int64_t size);

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

}  // namespace hyperseg::cuda
