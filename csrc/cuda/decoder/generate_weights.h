#pragma once

#include <vector>

#include "cuda/decoder/generator.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

// out [images, fh, fw, all sizes] = what each generator makes of the signal of each patch, side by side; see
// hyperseg/ops/generate_weights.py.
void generate_weights(const Map<const void>& signal, Type type, int64_t images,
                      const std::vector<Generator>& generators, void* out, Stream stream);

}  // namespace hyperseg::cuda
