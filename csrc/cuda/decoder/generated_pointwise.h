#pragma once

#include "cuda/decoder/generate_weights.h"
#include "cuda/decoder/level.h"

namespace hyperseg::cuda {

// Run a level without hidden channels, with ReLU, from the signal and its generator. Returns false, without launching
// anything, if the weights must be generated first: for float32, for an output whose weights come from several groups,
// and for patches of more than 16 pixels. The level needs its grid set, but not its weights.
bool generated_pointwise_level(const DecoderLevelArgs& level, const Map<const void>& signal,
                               const GeneratorArgs& generator, Type type, const char* op, Stream stream);

}  // namespace hyperseg::cuda
