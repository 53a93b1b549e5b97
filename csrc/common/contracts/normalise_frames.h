#pragma once

#include "common/tensor_checks.h"

namespace hyperseg {

inline void check_normalise_frames(const torch::stable::Tensor& frames, const torch::stable::Tensor& scale,
                                   const torch::stable::Tensor& shift, const torch::stable::Tensor& like,
                                   int64_t height, int64_t width) {
  using torch::headeronly::ScalarType;
  constexpr const char* op = "normalise_frames";
  check(frames.dim() == 4 && frames.size(3) == 3, op, ": frames must be [N, H, W, 3], got ", shape_of(frames));
  check(frames.scalar_type() == ScalarType::Byte, op, ": frames must be uint8, got ",
        torch::headeronly::toString(frames.scalar_type()));
  for (int64_t i = 0; i < 4; ++i)
    check(frames.size(i) >= 1 && frames.size(i) <= kLargest, op, ": every side of frames must be 1 to 2^24, got ",
          shape_of(frames));
  check_floating(op, "like", like);
  check_same_device(op, "like", like, "frames", frames);
  const ScalarType wide = like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const auto expect = [&](const char* name, const torch::stable::Tensor& t) {
    check_same_device(op, name, t, "frames", frames);
    check(t.scalar_type() == wide, op, ": ", name, " must be ", torch::headeronly::toString(wide),
          " for these images, got ", torch::headeronly::toString(t.scalar_type()));
    check_shape(op, name, t, {3});
  };
  expect("scale", scale);
  expect("shift", shift);
  check(height >= frames.size(1) && width >= frames.size(2), op, ": the images, ", height, "x", width,
        ", must be at least as large as the frames, ", frames.size(1), "x", frames.size(2));
  check_count(op, "height", height);
  check_count(op, "width", width);
}

}  // namespace hyperseg
