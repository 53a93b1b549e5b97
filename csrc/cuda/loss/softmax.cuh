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
    const int wanted = label >= 0 && label < classes ? static_cast<int>(label) : -1;
    float total = 0.0f;
    for (int c = 0; c < classes; ++c) {
      const float value = scores(c);
      // One exponential per class, of the smaller value; two equal infinities have a difference of 0. Selections and no
      // branches, which the lanes of a warp would take differently.
      const float power = expf(-fabsf(value - maximum)), step = value == maximum ? 1.0f : power;
      const bool larger = value > maximum;
      total = (larger ? total : 1.0f) * step + (larger ? 1.0f : total);
      maximum = fmaxf(maximum, value);
      score = c == wanted ? value : score;
    }
    logarithm = logf(total);
  }
};

}  // namespace hyperseg::cuda
