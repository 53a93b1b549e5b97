#pragma once

#include "common/map.h"
#include "cuda/device/type.h"

namespace hyperseg::cuda {

// The weights of pixels, [N, H, W] with any strides.
struct PixelWeights {
  const float* data;
  int64_t stride_n, stride_h, stride_w;

  HYPERSEG_HOST_DEVICE float at(int64_t n, int64_t y, int64_t x) const {
    return data[n * stride_n + y * stride_h + x * stride_w];
  }
};

// uint8 or int64 [N, H, W] with any strides.
struct Labels {
  const void* data;
  bool bytes;
  int64_t stride_n, stride_h, stride_w;

  HYPERSEG_HOST_DEVICE int64_t at(int64_t n, int64_t y, int64_t x) const {
    const int64_t i = n * stride_n + y * stride_h + x * stride_w;
    return bytes ? static_cast<const uint8_t*>(data)[i] : static_cast<const int64_t*>(data)[i];
  }
};

// Logits and labels; see hyperseg/ops/upsample_cross_entropy.py.
struct LossInputs {
  Map<const void> logits;
  Type type;
  Labels labels;
  int64_t images, height, width;  // of the labels
};

// [classes], or null: every class has a weight of 1.
struct ClassWeights {
  const float* data;
  int64_t stride;
};

// Return the number of blocks that compute the losses: the size of `sums` and `totals` below.
int64_t loss_blocks(const LossInputs& inputs);

// Write the mean loss of the pixels that count, and their weights [images, height, width]. `each`: workspace of one
// float.
void plain_cross_entropy(const LossInputs& inputs, const ClassWeights& of_class, int64_t ignore_index, float* sums,
                         float* totals, float* each, float* loss, float* weights, Stream stream);

// Write the loss of each pixel [images, height, width], as `bootstrapped` takes it, and with class weights each
// pixel's.
void pixel_losses(const LossInputs& inputs, const ClassWeights& of_class, int64_t ignore_index, float* losses,
                  float* weights, Stream stream);

// d_logits is contiguous. `log_sums`: workspace of one float per label.
void upsample_cross_entropy_backward(const LossInputs& inputs, const float* grad, const PixelWeights& weights,
                                     float* log_sums, void* d_logits, Stream stream);

}  // namespace hyperseg::cuda
