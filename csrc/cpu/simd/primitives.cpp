// Compiled once per instruction set, with HYPERSEG_ISA as its name.
#include "cpu/simd/primitives.h"

#include "cpu/simd/vectors.h"

namespace hyperseg::cpu {
namespace {

// float64 is only for gradient checks: a few small tiles, as all of them took longer to compile than the rest.
template <typename T>
constexpr bool is_double = sizeof(T) == 8;

// Not held in registers, which are full of sums: its constants need some.
template <typename T, int R, int C>
inline void store_silu(const GemmArgs<T>& p, int64_t i, int64_t j, const vec<T> (&sums)[R][C]) {
  constexpr int64_t L = Vector<T>::lanes;
  alignas(kBytes) T values[R * C * L];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) store(values + (r * C + c) * L, sums[r][c]);
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c)
      store(p.c + (i + r) * p.ldc + j + c * L, activate<T>(load(values + (r * C + c) * L), Activation::kSilu),
            p.n - j - c * L);
}

template <typename T, int R, int C>
inline void tile(const GemmArgs<T>& p, int64_t i, int64_t j) {
  constexpr int64_t L = Vector<T>::lanes;
  const T *a = p.a + i * p.lda, *b = p.b + j;
  vec<T> sums[R][C];
  // Unrolled, so that the accumulators stay in registers.
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sums[r][c] = splat(p.row_bias ? p.row_bias[i + r] : T(0));
  if (p.column_bias) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const vec<T> bias = load(p.column_bias + j + c * L);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sums[r][c] += bias;
    }
  }
  if (p.start) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sums[r][c] += load(p.start + (i + r) * p.start_stride + j + c * L, p.n - j - c * L);
  }
  const int64_t lda = p.lda, ldb = p.ldb;
  for (int64_t k = 0; k < p.k; ++k, ++a, b += ldb) {
    vec<T> column[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) column[c] = load(b + c * L);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const vec<T> value = splat(a[r * lda]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sums[r][c] += value * column[c];
    }
  }
  if (p.act == Activation::kSilu) return store_silu<T, R, C>(p, i, j, sums);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c)
      store(p.c + (i + r) * p.ldc + j + c * L, activate<T>(sums[r][c], p.act), p.n - j - c * L);
}

template <typename T, int R, int C>
inline void last_rows(const GemmArgs<T>& p, int64_t i, int64_t j) {
  if (p.m - i == R) return tile<T, R, C>(p, i, j);
  if constexpr (R > 1) last_rows<T, R - 1, C>(p, i, j);
}

template <typename T, int C>
void rows(const GemmArgs<T>& p, int64_t j) {
  // Fewer columns leave registers for more rows.
  constexpr int R = is_double<T> ? 4 : 2 * C <= kColumns ? 2 * kRows : kRows;
  int64_t i = 0;
  for (; i + R <= p.m; i += R) tile<T, R, C>(p, i, j);
  if (i < p.m) last_rows<T, R - 1, C>(p, i, j);
}

template <typename T, int C>
inline void last_columns(const GemmArgs<T>& p, int64_t j) {
  if (p.n - j > (C - 1) * Vector<T>::lanes) return rows<T, C>(p, j);
  if constexpr (C > 1) last_columns<T, C - 1>(p, j);
}

template <typename T>
void gemm(const GemmArgs<T>& p) {
  constexpr int C = is_double<T> ? 1 : kColumns;
  constexpr int64_t step = C * Vector<T>::lanes;
  int64_t j = 0;
  for (; j + step <= p.n; j += step) rows<T, C>(p, j);
  if (j < p.n) last_columns<T, C>(p, j);
}

template <typename T>
void gemv(int64_t m, int64_t k, const T* a, int64_t lda, const T* x, T* y, const T* bias, Activation act) {
  constexpr int64_t L = Vector<T>::lanes;
  for (int64_t i = 0; i < m; ++i) {
    const T* row = a + i * lda;
    vec<T> sums[2] = {};
    int64_t l = 0;
    for (; l + 2 * L <= k; l += 2 * L) {
      sums[0] += load(row + l) * load(x + l);
      sums[1] += load(row + l + L) * load(x + l + L);
    }
    for (; l < k; l += L) sums[0] += load(row + l, k - l) * load(x + l, k - l);
    y[i] = activate<T>(splat(total<T>(sums[0] + sums[1]) + (bias ? bias[i] : T(0))), act)[0];
  }
}

template <typename T, int P>
inline void filter_pixels(const DepthwiseRow<T>& r, int64_t first) {
  constexpr int64_t L = Vector<T>::lanes;
  const int64_t step = r.stride * r.padded;
  for (int64_t c = 0; c < r.channels; c += L) {
    vec<T> values[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) values[p] = r.bias ? load(r.bias + c) : vec<T>{};
    const T* w = r.weights + c;
    for (int64_t ky = 0; ky < r.size; ++ky) {
      const T* in = r.rows[ky] + first * step + c;
      for (int64_t kx = 0; kx < r.size; ++kx, w += r.weights_stride, in += r.padded) {
        const vec<T> tap = load(w);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) values[p] += tap * load(in + p * step);
      }
    }
    T* out = r.out + first * r.out_stride + c;
    vec<T> total{};
    for (int p = 0; p < P; ++p) {
      values[p] = activate<T>(values[p], r.act);
      total += values[p];
      store(out + p * r.out_stride, values[p], r.channels - c);
    }
    if (r.sums) store(r.sums + c, load(r.sums + c) + total);
  }
}

template <typename T, int P>
inline void last_pixels(const DepthwiseRow<T>& r, int64_t first) {
  if (r.pixels - first == P) return filter_pixels<T, P>(r, first);
  if constexpr (P > 1) last_pixels<T, P - 1>(r, first);
}

template <typename T>
void depthwise_row(const DepthwiseRow<T>& r) {
  int64_t first = 0;
  for (; first + 8 <= r.pixels; first += 8) filter_pixels<T, 8>(r, first);
  last_pixels<T, 7>(r, first);
}

template <typename T>
void blend(const T* a, const T* b, T weight, int64_t count, T* out) {
  const vec<T> first = splat(T(1) - weight), second = splat(weight);
  for (int64_t i = 0; i < count; i += Vector<T>::lanes)
    store(out + i, load(a + i, count - i) * first + load(b + i, count - i) * second, count - i);
}

template <typename T>
void copy_pixels(int64_t channels, const T* row, int64_t stride, const int64_t* xs, int64_t count, T* out,
                 int64_t out_stride) {
  for (int64_t i = 0; i < count; ++i) {
    const T* from = row + xs[i] * stride;
    for (int64_t c = 0; c < channels; c += Vector<T>::lanes)
      store(out + i * out_stride + c, load(from + c, channels - c), channels - c);
  }
}

template <typename T>
void widen(const T* __restrict row, int64_t channels, const int32_t* low, const int32_t* high, const T* weight,
           int64_t count, T* __restrict out, int64_t out_stride) {
  if (channels == 1 && out_stride == 1) {
    for (int64_t i = 0; i < count; ++i) out[i] = row[low[i]] * (T(1) - weight[i]) + row[high[i]] * weight[i];
    return;
  }
  for (int64_t i = 0; i < count; ++i)
    blend(row + low[i] * channels, row + high[i] * channels, weight[i], channels, out + i * out_stride);
}

// Transpose L rows of one vector each in registers: pairs of rows are interleaved at distances of 1, 2, 4, ... lanes.
template <typename T>
inline void transpose_registers(vec<T>* v) {
  using integers = typename Vector<T>::integers;
  constexpr int64_t L = Vector<T>::lanes;
#pragma GCC unroll 4
  for (int64_t step = 1; step < L; step *= 2) {
    integers first, second;
#pragma GCC unroll 16
    for (int64_t i = 0; i < L; ++i) {
      first[i] = i & step ? i - step + L : i;
      second[i] = i & step ? i + L : i + step;
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < L; ++i) {
      if (i & step) continue;
      const vec<T> a = v[i], b = v[i + step];
      v[i] = __builtin_shuffle(a, b, first);
      v[i + step] = __builtin_shuffle(a, b, second);
    }
  }
}

#ifdef __AVX512F__
// 16 x 16 by quarters of four columns: rows 4k + r move to lane k of vector r, and each lane is transposed by itself,
// which takes half the shuffles, all of them cheap.
inline void transpose_block(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    __m512 v[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const float* p = in + r * in_stride + 4 * g;
      v[r] = _mm512_castps128_ps512(_mm_loadu_ps(p));
      v[r] = _mm512_maskz_insertf32x4(-1, v[r], _mm_loadu_ps(p + 4 * in_stride), 1);
      v[r] = _mm512_maskz_insertf32x4(-1, v[r], _mm_loadu_ps(p + 8 * in_stride), 2);
      v[r] = _mm512_maskz_insertf32x4(-1, v[r], _mm_loadu_ps(p + 12 * in_stride), 3);
    }
    const __m512 a = _mm512_maskz_unpacklo_ps(-1, v[0], v[1]), b = _mm512_maskz_unpackhi_ps(-1, v[0], v[1]);
    const __m512 c = _mm512_maskz_unpacklo_ps(-1, v[2], v[3]), d = _mm512_maskz_unpackhi_ps(-1, v[2], v[3]);
    const auto low = [](__m512 x, __m512 y) {
      return _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(-1, _mm512_castps_pd(x), _mm512_castps_pd(y)));
    };
    const auto high = [](__m512 x, __m512 y) {
      return _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(-1, _mm512_castps_pd(x), _mm512_castps_pd(y)));
    };
    _mm512_storeu_ps(out + (4 * g + 0) * out_stride, low(a, c));
    _mm512_storeu_ps(out + (4 * g + 1) * out_stride, high(a, c));
    _mm512_storeu_ps(out + (4 * g + 2) * out_stride, low(b, d));
    _mm512_storeu_ps(out + (4 * g + 3) * out_stride, high(b, d));
  }
}
#endif

template <typename T>
inline void transpose_block(const T* in, int64_t in_stride, T* out, int64_t out_stride) {
  constexpr int64_t L = Vector<T>::lanes;
  vec<T> block[L];
#pragma GCC unroll 16
  for (int64_t r = 0; r < L; ++r) block[r] = load(in + r * in_stride);
  transpose_registers<T>(block);
#pragma GCC unroll 16
  for (int64_t r = 0; r < L; ++r) store(out + r * out_stride, block[r]);
}

template <typename T>
void transpose(int64_t rows, int64_t columns, const T* in, int64_t in_stride, T* out, int64_t out_stride) {
  constexpr int64_t L = Vector<T>::lanes;
  for (int64_t i = 0; i < rows; i += L)
    for (int64_t j = 0; j < columns; j += L) {
      const int64_t left = columns - j, above = rows - i;
      if (above >= L && left >= L) {
        transpose_block(in + i * in_stride + j, in_stride, out + j * out_stride + i, out_stride);
      } else if (above * left < 4 * L) {
        for (int64_t c = j; c < columns && c < j + L; ++c)
          for (int64_t r = i; r < rows && r < i + L; ++r) out[c * out_stride + r] = in[r * in_stride + c];
      } else {
        vec<T> block[L];
        for (int64_t r = 0; r < L; ++r) block[r] = r < above ? load(in + (i + r) * in_stride + j, left) : vec<T>{};
        transpose_registers<T>(block);
        for (int64_t r = 0; r < L && r < left; ++r) store(out + (j + r) * out_stride + i, block[r], above);
      }
    }
}

}  // namespace

#define HYPERSEG_JOIN_(a, b) a##b
#define HYPERSEG_JOIN(a, b) HYPERSEG_JOIN_(a, b)
#define HYPERSEG_TABLE(T)                                                                   \
  extern const Primitives<T> HYPERSEG_JOIN(T##_, HYPERSEG_ISA);                             \
  const Primitives<T> HYPERSEG_JOIN(T##_, HYPERSEG_ISA) = {                                 \
      gemm<T>, gemv<T>, depthwise_row<T>, blend<T>, copy_pixels<T>, widen<T>, transpose<T>, \
  };
HYPERSEG_TABLE(float)
HYPERSEG_TABLE(double)

}  // namespace hyperseg::cpu
