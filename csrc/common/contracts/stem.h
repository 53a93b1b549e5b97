#pragma once

#include "common/encoder_shapes.h"
#include "common/map.h"
#include "common/tensor_checks.h"

namespace hyperseg {

inline void check_stem(const torch::stable::Tensor& frames, const torch::stable::Tensor& scale,
                       const torch::stable::Tensor& shift, const torch::stable::Tensor& weight,
                       const torch::stable::Tensor& bias, int64_t height, int64_t width, int64_t stride,
                       const std::vector<int64_t>& padding) {
  using torch::headeronly::ScalarType;
  constexpr const char* op = "stem";
  check(frames.dim() == 4 && frames.size(3) == 3, op, ": frames must be [N, H, W, 3], got ", shape_of(frames));
  check(frames.scalar_type() == ScalarType::Byte, op, ": frames must be uint8, got ",
        torch::headeronly::toString(frames.scalar_type()));
  for (int64_t i = 0; i < 4; ++i)
    check(frames.size(i) >= 1 && frames.size(i) <= kLargest, op, ": every side of frames must be 1 to 2^24, got ",
          shape_of(frames));
  check_floating(op, "weight", weight);
  check(weight.dim() == 4 && weight.size(1) == 3 && weight.size(2) == weight.size(3), op,
        ": weight must be [C, 3, size, size], got ", shape_of(weight));
  const int64_t channels = weight.size(0), size = weight.size(2);
  check_count(op, "the number of channels", channels);
  check(size >= 1 && size <= 7, op, ": the convolution must have 1x1 to 7x7 taps, got ", size);
  check_same_device(op, "weight", weight, "frames", frames);
  check_same_kind(op, "bias", bias, "weight", weight);
  check_shape(op, "bias", bias, {channels});
  const ScalarType wide = weight.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const auto expect = [&](const char* name, const torch::stable::Tensor& t) {
    check_same_device(op, name, t, "frames", frames);
    check(t.scalar_type() == wide, op, ": ", name, " must be ", torch::headeronly::toString(wide),
          " for this weight, got ", torch::headeronly::toString(t.scalar_type()));
    check_shape(op, name, t, {3});
  };
  expect("scale", scale);
  expect("shift", shift);
  check(height >= frames.size(1) && width >= frames.size(2), op, ": the padded image, ", height, "x", width,
        ", must be at least as large as the frames, ", frames.size(1), "x", frames.size(2));
  check_count(op, "height", height);
  check_count(op, "width", width);
  check_count(op, "stride", stride);
  check(padding.size() == 4, op, ": padding must be left, right, top and bottom, got ", padding.size(), " numbers");
  for (int64_t p : padding) check(p >= 0 && p < size, op, ": padding must be 0 to ", size - 1, ", got ", p);
  check(height + padding[2] + padding[3] >= size && width + padding[0] + padding[1] >= size, op, ": an image of ",
        height, "x", width, " is smaller than the convolution");
}

inline StemShape stem_shape(const torch::stable::Tensor& frames, const torch::stable::Tensor& weight, int64_t height,
                            int64_t width, int64_t stride, const std::vector<int64_t>& padding) {
  const int64_t size = weight.size(2);
  return {.images = frames.size(0),
          .height = height,
          .width = width,
          .size = size,
          .stride = stride,
          .left = padding[0],
          .top = padding[2],
          .channels = weight.size(0),
          .out_height = convolved_extent(height, padding[2], padding[3], size, stride),
          .out_width = convolved_extent(width, padding[0], padding[1], size, stride)};
}

// Frames [N, H, W, 3] as a map.
inline Map<const uint8_t> map_of_frames(const torch::stable::Tensor& frames) {
  return {static_cast<const uint8_t*>(frames.const_data_ptr()),
          3,
          frames.size(1),
          frames.size(2),
          frames.stride(0),
          frames.stride(3),
          frames.stride(1),
          frames.stride(2)};
}

}  // namespace hyperseg
