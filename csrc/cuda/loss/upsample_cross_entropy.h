#pragma once

#include "common/map.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

// [N, H, W] with any strides.
template <typename S>
struct Plane {
  const S* data;
  int64_t stride_n, stride_h, stride_w;

  HYPERSEG_ANYWHERE S at(int64_t n, int64_t y, int64_t x) const {
    return data[n * stride_n + y * stride_h + x * stride_w];
  }
};

// Logits and the labels they are compared with; see hyperseg/ops/upsample_cross_entropy.py.
struct Compared {
  Map<const void> logits;
  Type type;
  Plane<int64_t> labels;
  int64_t images, height, width;  // of the labels
};

// How many blocks compute the losses: so many sums and counts the next function needs room for.
int64_t loss_blocks(const Compared& compared);

// The mean loss of the pixels that count, and their weights [images, height, width]. `each`: room for one float.
void plain_cross_entropy(const Compared& compared, int64_t ignore_index, float* sums, int* counts, float* each,
                         float* loss, float* weights, Stream stream);

// The loss of each pixel [images, height, width], as `bootstrapped` takes it.
void pixel_losses(const Compared& compared, int64_t ignore_index, float* losses, Stream stream);

// d_logits, contiguous. `log_sums`: room for a float a label.
void upsample_cross_entropy_backward(const Compared& compared, const float* grad, const Plane<float>& weights,
                                     float* log_sums, void* d_logits, Stream stream);

}  // namespace hyperseg::cuda
