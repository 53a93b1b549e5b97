#pragma once

#include "cuda/decoder/generate_weights.h"
#include "cuda/decoder/level.h"

namespace hyperseg::cuda {

// A level without hidden channels, with ReLU, whose weights the generator makes of the signal. False, and nothing done,
// where they have to be generated first: in float32, where an output's weights come from several groups, or where the
// patches are of other sizes than 1, 4 and 16 pixels. The level needs no weights, but the grid.
bool generated_pointwise_level(const Level& level, const Map<const void>& signal, const Generator& generator, Type type,
                               const char* op, Stream stream);

}  // namespace hyperseg::cuda
