#pragma once

#include <cmath>

#include "cuda/device/device.cuh"

namespace hyperseg::cuda {

// Log-softmax over the classes: the maximum score, log(sum of exp(score - maximum)), and the label's score.
struct Softmax {
  float maximum, logarithm, score;

  // NaN if the label is not a class.
  template <typename Scores>
  HYPERSEG_DEVICE Softmax(const Scores& scores, int classes, int64_t label)
      : maximum(-INFINITY), logarithm(0.0f), score(NAN) {
    float total = 0.0f;
    for (int c = 0; c < classes; ++c) {
      const float value = scores(c);
      // One exponential per class, of the smaller value; two equal infinities have a difference of 0.
      const float step = value == maximum ? 1.0f : expf(-fabsf(value - maximum));
      total = value > maximum ? total * step + 1.0f : total + step;
      maximum = fmaxf(maximum, value);
      if (c == label) score = value;
    }
    logarithm = logf(total);
  }
};

}  // namespace hyperseg::cuda
