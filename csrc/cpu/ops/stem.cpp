#include "cpu/encoder/stem.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "common/contracts/stem.h"
#include "cpu/base/tensors.h"
#include "cpu/encoder/nhwc.h"

namespace hyperseg::cpu {
namespace {

// [channels, 3, size, size] as [size * size * 3, channels], packed; then the bias, padded.
template <typename T>
void pack(const T* weight, const T* bias, int64_t channels, int64_t size, T* to) {
  const int64_t taps = size * size;
  std::vector<T> last(channels * taps * 3);
  for (int64_t i = 0; i < channels * 3; ++i)
    for (int64_t tap = 0; tap < taps; ++tap) last[(i / 3 * taps + tap) * 3 + i % 3] = weight[i * taps + tap];
  primitives<T>().pack({.k = 3 * taps,
                        .n = channels,
                        .b = last.data(),
                        .stride_k = 1,
                        .stride_n = 3 * taps,
                        .out = to,
                        .depth = 3 * taps});
  std::fill(std::copy_n(bias, channels, to + packed_size(3 * taps, channels)), to + packed_size(3 * taps + 1, channels),
            T(0));
}

Tensor stem_op(const Tensor& frames, const Tensor& scale, const Tensor& shift, const Tensor& weight, const Tensor& bias,
               int64_t height, int64_t width, int64_t stride, std::vector<int64_t> padding) {
  check_stem(frames, scale, shift, weight, bias, height, width, stride, padding);
  const StemShape shape = stem_shape(frames, weight, height, width, stride, padding);
  const int64_t channels = shape.channels, size = shape.size;
  const ScalarType type = precise_type(weight.scalar_type());
  Tensor out = torch::stable::new_empty(weight, {shape.images, shape.out_height, shape.out_width, channels}, type);
  with_type(weight, "stem", [&](auto value) {
    using S = decltype(value);
    using T = acc_t<S>;
    const Tensor dense = precise(weight), dense_bias = precise(bias);
    std::vector<T> packed(packed_size(3 * size * size + 1, channels)), normalised(3 * 256);
    pack(data<T>(dense), data<T>(dense_bias), channels, size, packed.data());
    const std::vector<T> factor = values<T>(scale), offset = values<T>(shift);
    for (int64_t i = 0; i < 3 * 256; ++i)
      normalised[i] = static_cast<T>(static_cast<S>(static_cast<T>(i % 256) * factor[i / 256] + offset[i / 256]));
    Stem<T> problem{shape};
    problem.frames = map_of_frames(frames);
    problem.normalised = normalised.data();
    problem.weights = packed.data();
    problem.bias = packed.data() + packed_size(3 * size * size, channels);
    stem(problem, mutable_data<T>(out));
  });
  if (type != weight.scalar_type()) out = torch::stable::to(out, weight.scalar_type());
  return torch::stable::transpose(torch::stable::transpose(out, 2, 3), 1, 2);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) { m.impl("stem", TORCH_BOX(&stem_op)); }

}  // namespace hyperseg::cpu
