#pragma once

#include <vector>

#include "cuda/device/tensors.h"

// Tensors of the convolutions of encoder and context head.
namespace hyperseg::cuda {

// Data of dense tensors; copies are kept until the kernels are launched, as the allocator reuses memory in stream
// order.
class DenseTensors {
 public:
  const void* operator()(const Tensor& t) {
    if (t.is_contiguous()) return t.const_data_ptr();
    held_.push_back(torch::stable::contiguous(t));
    return held_.back().const_data_ptr();
  }

 private:
  std::vector<Tensor> held_;
};

// [N, height, width, channels] in the type of `like`.
inline Tensor new_pixels(const Tensor& like, int64_t channels, int64_t height, int64_t width) {
  return torch::stable::new_empty(like, {like.size(0), height, width, channels});
}

// The same memory as [N, channels, height, width].
inline Tensor as_map(const Tensor& pixels) {
  return torch::stable::transpose(torch::stable::transpose(pixels, 2, 3), 1, 2);
}

inline Map<void> pixels_of(Tensor& t) {
  return {t.mutable_data_ptr(),  t.size(3), t.size(1), t.size(2), t.size(1) * t.size(2) * t.size(3), 1,
          t.size(2) * t.size(3), t.size(3)};
}

// The kernels count pixels in 32 bits.
inline void check_conv_pixels(const char* op, int64_t height, int64_t width) {
  check(height * width <= int64_t{1} << 30, op, ": the CUDA kernels take maps of at most 2^30 pixels, got ", height,
        "x", width);
}

}  // namespace hyperseg::cuda
