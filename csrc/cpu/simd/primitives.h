#pragma once

#include <cstdint>

namespace hyperseg::cpu {

enum class Activation : int { kNone, kRelu, kRelu6, kSilu, kSigmoid };

// Rows of a matrix that are read in vectors must be readable up to a multiple of this many elements.
constexpr int64_t kPadding = 16;

// c[m, n] = act(sum_k a[m, k] * b[k, n] + row_bias[m] + column_bias[n] + start[m, n]); row-major. a is broadcast, b and
// column_bias are read in vectors along n (padded), start is read and c written exactly. c may be start.
template <typename T>
struct GemmArgs {
  int64_t m, n, k;
  const T* a;
  int64_t lda;
  const T* b;
  int64_t ldb = 0;
  T* c;
  int64_t ldc;
  const T* row_bias = nullptr;
  const T* column_bias = nullptr;
  const T* start = nullptr;
  int64_t start_stride = 0;
  Activation act = Activation::kNone;
  // The columns of a in blocks of a_block: the block of column k begins at a + k / a_block * a_stride. 0: one block.
  int64_t a_block = 0, a_stride = 0;
  // Whether a is far away, and contiguous in each block: the rows of the next tile are prefetched.
  bool prefetch = false;
  // b is the output of `pack`, of which these are the rows from b_first on. 0: row-major, with rows of ldb.
  int64_t b_depth = 0, b_first = 0;
};

// Rows [first, first + k) of a matrix [depth, n], packed for `gemm`: in panels as wide as its tiles, each with the rows
// one after the other. Lanes beyond n are zero: they are multiplied too, which takes a hundred times longer for
// denormal numbers. One of the strides of b is 1. out: packed_size(depth, n) values.
template <typename T>
struct PackArgs {
  int64_t k, n;
  const T* b;
  int64_t stride_k, stride_n;
  T* out;
  int64_t depth, first = 0;
  const T* scale = nullptr;  // of each of the k rows
};

inline int64_t packed_size(int64_t depth, int64_t n) { return depth * ((n + kPadding - 1) / kPadding * kPadding); }

// One row of a depthwise convolution of `size` x `size` taps: pixel p under tap row ky is at rows[ky] + (p * stride +
// kx) * padded. Weights are [size * size, padded]; then bias and activation. The values are written to out, exactly,
// and added to sums if not null. bias may be null.
template <typename T>
struct DepthwiseRow {
  int64_t channels, padded, pixels, size, stride;
  const T* const* rows;
  const T* weights;
  int64_t weights_stride;
  const T* bias;
  T* out;
  int64_t out_stride;
  Activation act;
  T* sums = nullptr;
};

// A depthwise convolution of 3x3 taps over planes: channel c is at in + c * in_plane, in rows of in_stride. Weights are
// [channels, 9], bias may be null. If whole vectors fit the columns, outputs are [rows, columns], dense. Otherwise they
// are in rows of in_stride as the input, with two columns between them that mean nothing, and in is read in vectors.
template <typename T>
struct DepthwisePlanes {
  int64_t channels, rows, columns;
  const T* in;
  int64_t in_stride, in_plane;
  const T* weights;
  const T* bias;
  T* out;
  int64_t out_plane;
  Activation act;
};

// Building blocks of the operators, for one instruction set and one type (float or double). Matrices are row-major;
// maps are stored pixel by pixel (channels last).
template <typename T>
struct Primitives {
  int64_t lanes;          // of a vector
  int64_t panel_columns;  // of the widest panel of `pack`
  void (*gemm)(const GemmArgs<T>& args);
  void (*pack)(const PackArgs<T>& args);
  // y[m] = act(sum_k a[m, k] * x[k] + bias[m])
  void (*gemv)(int64_t m, int64_t k, const T* a, int64_t lda, const T* x, T* y, const T* bias, Activation act);
  void (*depthwise_row)(const DepthwiseRow<T>& row);
  void (*depthwise_planes)(const DepthwisePlanes<T>& planes);
  // out[i] = a[i] * (1 - weight) + b[i] * weight
  void (*blend)(const T* a, const T* b, T weight, int64_t count, T* out);
  // Pixels xs[0 .. count) of a row whose pixels are `stride` apart.
  void (*copy_pixels)(int64_t channels, const T* row, int64_t stride, const int64_t* xs, int64_t count, T* out,
                      int64_t out_stride);
  // For pixels of `channels` values: out[i] = row[low[i]] * (1 - weight[i]) + row[high[i]] * weight[i]
  void (*widen)(const T* row, int64_t channels, const int32_t* low, const int32_t* high, const T* weight, int64_t count,
                T* out, int64_t out_stride);
  // out[j, i] = in[i, j] for i < rows, j < columns; strides in elements.
  void (*transpose)(int64_t rows, int64_t columns, const T* in, int64_t in_stride, T* out, int64_t out_stride);
};

template <typename T>
const Primitives<T>& primitives();

}  // namespace hyperseg::cpu
