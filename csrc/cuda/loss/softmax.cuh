#pragma once

#include <cmath>

#include "cuda/device/device.cuh"

namespace hyperseg::cuda {

// Over the scores of all classes: their maximum, the logarithm of the sum of exp(score - maximum), the label's score.
struct Softmax {
  float maximum, logarithm, score;

  // The score of a label that is no class is NaN.
  template <typename Scores>
  HYPERSEG_DEVICE Softmax(const Scores& scores, int classes, int64_t label)
      : maximum(-INFINITY), logarithm(0.0f), score(NAN) {
    float total = 0.0f;
    for (int c = 0; c < classes; ++c) {
      const float value = scores(c);
      // One exponential a class, of whichever is smaller; two infinities that are equal differ by nothing.
      const float step = value == maximum ? 1.0f : expf(-fabsf(value - maximum));
      total = value > maximum ? total * step + 1.0f : total + step;
      maximum = fmaxf(maximum, value);
      if (c == label) score = value;
    }
    logarithm = logf(total);
  }
};

}  // namespace hyperseg::cuda
