#pragma once

#include <cstdint>

namespace hyperseg::cpu {

// Building blocks of the backward operators and the batch norms, in addition to Primitives. "Maps" are [channels, map]
// with `map` a multiple of kPadding; counts are multiples of kPadding too, so that vectors are always full.
template <typename T>
struct PrimitivesBackward {
  // c[m, n] = sum_k a[m, k] * b[n, k]: GEMM along the pixels, for weight gradients; `k` a multiple of kPadding.
  void (*gemm_nt)(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc);
  // out[c][p] = sum_t weights[c, t] * in[c][p + t / 3 * stride + t % 3]: a depthwise 3x3 without anything else.
  void (*filter)(int64_t channels, int64_t count, int64_t stride, const T* in, int64_t in_map, const T* weights, T* out,
                 int64_t out_map);
  // out[c, t] = sum_p gradient[c][p] * in[c][p + t / 3 * stride + t % 3]: the gradient of the filter's weights.
  void (*filter_weights)(int64_t channels, int64_t count, int64_t stride, const T* in, int64_t in_map,
                         const T* gradient, int64_t gradient_map, T* out);
  // out[c][p] = relu6((z[c][p] - mean[c]) * factor[c] + shift[c])
  void (*norm_relu6)(int64_t channels, int64_t count, const T* z, int64_t map, const T* mean, const T* factor,
                     const T* shift, T* out);
  // gradient[c][p] = 0 where ReLU6 was flat: its output is 0 or 6
  void (*relu6_gradient)(int64_t channels, int64_t count, const T* activated, int64_t map, T* gradient,
                         int64_t gradient_map);
  // gradient[c][p] = valid[p] * (slope[c] * gradient[c][p] + tilt[c] * (z[c][p] - mean[c]) + level[c])
  void (*norm_gradient)(int64_t channels, int64_t count, const T* valid, const T* z, int64_t map, const T* mean,
                        const T* slope, const T* tilt, const T* level, T* gradient, int64_t gradient_map);
  // sum[c] = sum_p gradient[c][p], and if z is given by_value[c] = sum_p gradient[c][p] * (z[c][p] - mean[c])
  void (*gradient_sums)(int64_t channels, int64_t count, const T* gradient, int64_t gradient_map, const T* z,
                        int64_t map, const T* mean, T* sum, T* by_value);
  // The mean of the `valid` (1, else 0) positions, of which there are `number`, and the sum of squares around it.
  void (*statistics)(int64_t channels, int64_t count, const T* valid, int64_t number, const T* z, int64_t map, T* mean,
                     T* squares);
  // scores[c][p] = upper[c][p] * (1 - weight) + lower[c][p] * weight; then exps = exp(scores - their maximum over c).
  void (*softmax)(int64_t classes, int64_t count, const T* upper, const T* lower, int64_t map, T weight, T* exps,
                  int64_t exps_map, T* maximum, T* sum);
  // first[c][p] += exps[c][p] * factor[p] * (1 - weight), second[c][p] += exps[c][p] * factor[p] * weight
  void (*spread)(int64_t classes, int64_t count, const T* exps, int64_t exps_map, const T* factor, T weight, T* first,
                 T* second, int64_t map);
};

template <typename T>
const PrimitivesBackward<T>& primitives_backward();

}  // namespace hyperseg::cpu
