#pragma once

#include "common/map.h"

namespace hyperseg::cuda {

// A grouped 1x1 convolution [groups * rows, width] with any strides, whose first `size` rows are wanted; group i reads
// signal channels offset + i * width and on.
struct Generator {
  const void* data;
  int64_t stride_row, stride_column;
  int groups, rows, width, offset, size;

  int64_t count() const { return int64_t{groups} * rows * width; }
  HYPERSEG_ANYWHERE int channels() const { return groups * width; }
};

}  // namespace hyperseg::cuda
