#pragma once

#include "cuda/decoder/generator.h"
#include "cuda/device/fast_divmod.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

struct DifferentiatedGenerator : GeneratorArgs {
  void* gradient;  // [groups * rows, width], contiguous
  int64_t start;   // the first parameter it generates
};

// A kernel argument rather than a table in global memory, which would need a copy that a CUDA graph cannot capture.
struct Generators {
  static constexpr int kMost = 32;
  DifferentiatedGenerator list[kMost];
  int count = 0;
};

// See hyperseg/ops/generate_weights.py.
struct GenerationBackward {
  Type type;
  int64_t patches;         // of all images
  FastDivmod area, width;  // of the grid of an image
  Map<const void> grad;    // [N, grid height, grid width, parameters]
  Map<const void> signal;  // [N, channels, grid height, grid width]
};

// Compute the gradients of the generators. `partial`: workspace of partial_sums() floats.
int64_t partial_sums(const GenerationBackward& problem, const Generators& generators);
void generator_gradients(const GenerationBackward& problem, const Generators& generators, float* partial,
                         Stream stream);

// Add the gradients from these generators to `sum` [N, channels, grid], float32, or start it with them (`first`); with
// the `last` ones write d_signal, contiguous. `parts`: workspace of passed_values() floats.
struct SignalGradient {
  float* sum;
  void* d_signal;
  bool first, last;
};
int64_t passed_values(const GenerationBackward& problem, const Generators& generators);
void signal_gradient(const GenerationBackward& problem, const Generators& generators, float* parts,
                     const SignalGradient& result, Stream stream);

}  // namespace hyperseg::cuda
