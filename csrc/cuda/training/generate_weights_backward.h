#pragma once

#include "cuda/decoder/generator.h"
#include "cuda/device/fast_divmod.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

struct DifferentiatedGenerator : Generator {
  void* gradient;  // [groups * rows, width], contiguous
  int64_t start;   // the first parameter it makes
};

// An argument of a kernel: a table in the GPU's memory would have to be copied there, which a CUDA graph cannot do.
struct Generators {
  static constexpr int kMost = 32;
  DifferentiatedGenerator list[kMost];
  int count = 0;
};

// See hyperseg/ops/generate_weights.py.
struct GenerationBackward {
  Type type;
  int64_t patches;         // of all images
  Divisor area, width;     // of the grid of an image
  Map<const void> grad;    // [N, grid height, grid width, parameters]
  Map<const void> signal;  // [N, channels, grid height, grid width]
};

// The generators' gradients. `partial`: room for so many sums.
int64_t partial_sums(const GenerationBackward& problem, const Generators& generators);
void generator_gradients(const GenerationBackward& problem, const Generators& generators, float* partial,
                         Stream stream);

// Add to `sum` [N, channels, grid], float32, what these generators pass back to the signal, or begin with it; with the
// last ones, put it into d_signal, contiguous. `parts`: room for passed_values().
struct SignalGradient {
  float* sum;
  void* d_signal;
  bool first, last;
};
int64_t passed_values(const GenerationBackward& problem, const Generators& generators);
void signal_gradient(const GenerationBackward& problem, const Generators& generators, float* parts,
                     const SignalGradient& result, Stream stream);

}  // namespace hyperseg::cuda
