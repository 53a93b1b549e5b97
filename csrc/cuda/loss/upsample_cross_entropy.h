#pragma once

#include "common/map.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

// A [N, H, W] tensor with any strides.
template <typename S>
struct Plane {
  const S* data;
  int64_t stride_n, stride_h, stride_w;

  HYPERSEG_HOST_DEVICE S at(int64_t n, int64_t y, int64_t x) const {
    return data[n * stride_n + y * stride_h + x * stride_w];
  }
};

// Logits and labels; see hyperseg/ops/upsample_cross_entropy.py.
struct LossInputs {
  Map<const void> logits;
  Type type;
  Plane<int64_t> labels;
  int64_t images, height, width;  // of the labels
};

// Return the number of blocks that compute the losses: the size of `sums` and `counts` below.
int64_t loss_blocks(const LossInputs& inputs);

// Write the mean loss of the pixels that count, and their weights [images, height, width]. `each`: workspace of one
// float.
void plain_cross_entropy(const LossInputs& inputs, int64_t ignore_index, float* sums, int* counts, float* each,
                         float* loss, float* weights, Stream stream);

// Write the loss of each pixel [images, height, width], as `bootstrapped` takes it.
void pixel_losses(const LossInputs& inputs, int64_t ignore_index, float* losses, Stream stream);

// d_logits is contiguous. `log_sums`: workspace of one float per label.
void upsample_cross_entropy_backward(const LossInputs& inputs, const float* grad, const Plane<float>& weights,
                                     float* log_sums, void* d_logits, Stream stream);

}  // namespace hyperseg::cuda
