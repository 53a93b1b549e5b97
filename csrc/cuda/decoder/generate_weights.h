#pragma once

#include <vector>

#include "cuda/decoder/generator.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

// out [images, fh, fw, sum of sizes] = the parameters that the generators make from each patch's signal, concatenated;
// see hyperseg/ops/generate_weights.py.
void generate_weights(const Map<const void>& signal, Type type, int64_t images,
                      const std::vector<GeneratorArgs>& generators, void* out, Stream stream);

}  // namespace hyperseg::cuda
