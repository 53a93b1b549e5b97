#pragma once

#include "common/map.h"

namespace hyperseg::cuda {

// A grouped 1x1 convolution [groups * rows, width] with any strides, of which the first `size` rows are used; group i
// reads signal channels from offset + i * width on.
struct GeneratorArgs {
  const void* data;
  int64_t stride_row, stride_column;
  int groups, rows, width, offset, size;

  int64_t count() const { return int64_t{groups} * rows * width; }
  HYPERSEG_HOST_DEVICE int channels() const { return groups * width; }
};

}  // namespace hyperseg::cuda
