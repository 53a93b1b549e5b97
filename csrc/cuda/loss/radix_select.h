#pragma once

#include <cstdint>

#include "cuda/device/type.h"

// Selection of the pixels that count in a bootstrapped loss: the largest losses of each image (SPEC A.3).
namespace hyperseg::cuda {

struct BootstrapSpec {
  int64_t images, pixels;  // per image
  int64_t count;           // minimum number of pixels that count, 1 to `pixels`
  float threshold;         // if more losses than `count` are above it, all of those count

  // Return the bytes of workspace needed.
  int64_t workspace() const;
};

// Write the weight of each pixel, 0 if it was ignored, and the weighted sum of the losses. Losses are not negative; -0
// marks an ignored pixel, which takes part in the ranking. A NaN loss has a NaN weight. `scaled`: the losses have been
// multiplied by class weights, which `weights` contains and which are to be part of the pixels' weights.
void bootstrapped(const char* op, const BootstrapSpec& bootstrap, const float* losses, bool scaled, void* workspace,
                  float* weights, float* loss, Stream stream);

}  // namespace hyperseg::cuda
