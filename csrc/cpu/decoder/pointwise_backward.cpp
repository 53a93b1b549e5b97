#include "cpu/decoder/pointwise_backward.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>

#include "cpu/simd/primitives_backward.h"

namespace hyperseg::cpu {

constexpr int64_t kFew = 64;  // pixels; fewer do not fill the vectors

template <typename S>
struct PointwiseBackward<S>::Memory {
  explicit Memory(const PointwiseBackward& p)
      : channels(p.input_.channels()),
        padded(round_up(channels, kPadding)),
        pixels(p.windows_.rows * p.windows_.stride),
        x(channels * p.windows_.map + 4 * kPadding),
        x_transposed(pixels * padded + 4 * kPadding),
        d(p.outputs_ * p.windows_.map + 4 * kPadding),
        d_transposed(pixels * p.outputs_),
        y(p.outputs_ * p.windows_.map),
        d_x(channels * p.windows_.map),
        d_x_transposed(pixels * channels),
        weights(p.weights_.parameters + 4 * kPadding),
        weights_padded(p.relu_ && pixels < kFew ? p.outputs_ * padded : 0),
        weights_transposed(p.weights_.parameters) {}
  int64_t channels, padded, pixels;
  std::vector<T> x, x_transposed, d, d_transposed, y, d_x, d_x_transposed, weights, weights_padded, weights_transposed;
};

template <typename S>
void PointwiseBackward<S>::one(Memory& m, const Windows::PatchIndex& at, const Map<const S>& gradient, T* d_weights,
                               const Map<T>& d_input, T* sum) const {
  const PrimitivesBackward<T>& back = primitives_backward<T>();
  const int64_t map = windows_.map;
  input_.read(windows_, at, m.x.data());
  weights_.read(at.n, at.gy, at.gx, 0, weights_.parameters, m.weights.data());
  windows_.read_results(gradient, at, map, m.d.data(), map);
  if (m.pixels < kFew)
    primitives<T>().transpose(m.channels, m.pixels, m.x.data(), map, m.x_transposed.data(), m.padded);
  if (relu_) stop_at_relu(m);
  back.gradient_sums(outputs_, map, m.d.data(), map, nullptr, 0, nullptr, sum, nullptr);
  if (m.pixels < kFew) {
    by_pixel(m, d_weights);
  } else {
    by_channel(m, d_weights);
  }
  windows_.write_results(m.d_x.data() + input_.first() * map, map, at, d_input);
}

template <typename S>
void PointwiseBackward<S>::stop_at_relu(Memory& m) const {
  const int64_t map = windows_.map;
  if (m.pixels < kFew) {
    for (int64_t o = 0; o < outputs_; ++o)
      std::copy_n(&m.weights[o * m.channels], m.channels, &m.weights_padded[o * m.padded]);
    primitives_backward<T>().gemm_nt(outputs_, m.pixels, m.padded, m.weights_padded.data(), m.padded,
                                     m.x_transposed.data(), m.padded, m.y.data(), map);
  } else {
    primitives<T>().gemm({.m = outputs_,
                          .n = map,
                          .k = m.channels,
                          .a = m.weights.data(),
                          .lda = m.channels,
                          .b = m.x.data(),
                          .ldb = map,
                          .c = m.y.data(),
                          .ldc = map});
  }
  for (int64_t o = 0; o < outputs_; ++o)
    for (int64_t p = o * map; p < o * map + m.pixels; ++p)
      if (m.y[p] + bias_[o] <= T(0)) m.d[p] = T(0);  // not where it is NaN
}

template <typename S>
void PointwiseBackward<S>::by_pixel(Memory& m, T* d_weights) const {
  const Primitives<T>& run = primitives<T>();
  const int64_t map = windows_.map;
  run.transpose(outputs_, m.pixels, m.d.data(), map, m.d_transposed.data(), outputs_);
  run.gemm({.m = outputs_,
            .n = m.channels,
            .k = m.pixels,
            .a = m.d.data(),
            .lda = map,
            .b = m.x_transposed.data(),
            .ldb = m.padded,
            .c = d_weights,
            .ldc = m.channels});
  run.gemm({.m = m.pixels,
            .n = m.channels,
            .k = outputs_,
            .a = m.d_transposed.data(),
            .lda = outputs_,
            .b = m.weights.data(),
            .ldb = m.channels,
            .c = m.d_x_transposed.data(),
            .ldc = m.channels});
  run.transpose(m.pixels, m.channels, m.d_x_transposed.data(), m.channels, m.d_x.data(), map);
}

template <typename S>
void PointwiseBackward<S>::by_channel(Memory& m, T* d_weights) const {
  const int64_t map = windows_.map;
  primitives<T>().transpose(outputs_, m.channels, m.weights.data(), m.channels, m.weights_transposed.data(), outputs_);
  primitives_backward<T>().gemm_nt(outputs_, m.channels, map, m.d.data(), map, m.x.data(), map, d_weights, m.channels);
  primitives<T>().gemm({.m = m.channels,
                        .n = map,
                        .k = outputs_,
                        .a = m.weights_transposed.data(),
                        .lda = outputs_,
                        .b = m.d.data(),
                        .ldb = map,
                        .c = m.d_x.data(),
                        .ldc = map});
}

template <typename S>
void PointwiseBackward<S>::backward(const Map<const S>& gradient, T* d_weights) {
  const int64_t passed = input_.channels() - input_.first(), area = windows_.height * windows_.width;
  d_input_ = uninitialised<T>(windows_.images * passed * area);
  const Map<T> d_input{d_input_.get(), passed, windows_.height, windows_.width, passed * area, area, windows_.width, 1};
  Partials<T> sums(windows_.patches, outputs_);
  torch::stable::parallel_for(0, windows_.patches, 1, [&](int64_t begin, int64_t end) {
    Memory memory(*this);
    for (int64_t patch = begin; patch < end; ++patch)
      one(memory, windows_.index_of(patch), gradient, d_weights + patch * weights_.parameters, d_input, sums.of(patch));
  });
  d_bias = sums.total();
}

template class PointwiseBackward<float>;
template class PointwiseBackward<double>;
template class PointwiseBackward<torch::headeronly::Half>;
template class PointwiseBackward<torch::headeronly::BFloat16>;

}  // namespace hyperseg::cpu
