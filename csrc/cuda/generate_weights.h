#pragma once

#include <vector>

#include "../common/map.h"
#include "type.h"

namespace hyperseg::cuda {

// A grouped 1x1 convolution [rows, width] whose first `size` rows are wanted; group i reads signal channels
// offset + i * width and on.
struct Generator {
  const void* data;
  int64_t stride_row, stride_column;
  int rows, width, groups, offset, size;
};

// out [images, fh, fw, all sizes] = what each generator makes of the signal of each patch, side by side; see
// hyperseg/ops/generate_weights.py.
void generate_weights(const Map<const void>& signal, Type type, int64_t images,
                      const std::vector<Generator>& generators, void* out, Stream stream);

}  // namespace hyperseg::cuda
