#pragma once

#include <cstdint>

#include "cuda/device/type.h"

// Which pixels are among the worst of their image, and so count in a bootstrapped loss (SPEC A.3).
namespace hyperseg::cuda {

struct Bootstrap {
  int64_t images, pixels;  // of an image
  int64_t count;           // of pixels that count at least, 1 to `pixels`
  float threshold;         // all above it count if they are more than that

  // So many bytes it needs to work in.
  int64_t room() const;
};

// How much each pixel counts, 0 where it was ignored; and the sum of losses by these weights. The losses are not
// negative: -0 is the loss of an ignored pixel, which takes part in the ranking.
void bootstrapped(const char* op, const Bootstrap& bootstrap, const float* losses, void* room, float* weights,
                  float* loss, Stream stream);

}  // namespace hyperseg::cuda
