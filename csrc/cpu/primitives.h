#pragma once

#include <cstdint>

namespace hyperseg::cpu {

enum class Activation : int { kNone, kRelu, kRelu6 };

// Rows of a matrix that vectors read must be readable up to a multiple of this many elements.
constexpr int64_t kPadding = 16;

// What the operators are made of, for one instruction set and one type (float or double). Matrices are row-major.
template <typename T>
struct Primitives {
  // c[m, n] = act(sum_k a[m, k] * b[k, n] + bias[m]): a broadcast, b read in vectors along n (padded), c written
  // exactly.
  void (*gemm)(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
               const T* bias, Activation act);
  // c[m, n] = act(sum_k a[m, k] * b[n, k] + bias[m]) for few n: dot products along k.
  void (*dots)(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
               const T* bias, Activation act);
  // Depthwise 3x3 of maps [channels, rows + 2, stride] with weights [channels, 9], at every position of the first
  // `count` of each map, counted in the map's own stride; then bias and ReLU6.
  void (*depthwise)(int64_t channels, int64_t count, int64_t stride, const T* in, int64_t in_map, const T* weights,
                    T* out, int64_t out_map, const T* bias);
  // out[i] = a[i] * (1 - weight) + b[i] * weight
  void (*blend)(const T* a, const T* b, T weight, int64_t count, T* out);
  // out[i] = row[low[i]] * (1 - weight[i]) + row[high[i]] * weight[i]
  void (*widen)(const T* row, const int32_t* low, const int32_t* high, const T* weight, int64_t count, T* out);
};

template <typename T>
const Primitives<T>& primitives();

}  // namespace hyperseg::cpu
