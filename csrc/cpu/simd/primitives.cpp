// Compiled once per instruction set, with HYPERSEG_ISA as its name.
#include "cpu/simd/primitives.h"

#include "cpu/simd/vectors.h"

namespace hyperseg::cpu {
namespace {

// float64 is only for gradient checks: a few small tiles, as all of them took longer to compile than the rest.
template <typename T>
constexpr bool is_double = sizeof(T) == 8;

// SiLU of a tile's whole vectors where they were stored: its constants do not fit registers that are full of sums. It
// runs beside the multiplications of the next tile.
template <typename T, int C>
void silu_tile(T* to, int64_t stride, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r, to += stride) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      T* const p = to + c * Vector<T>::lanes;
      store(p, silu<T>(load(p)));
    }
  }
}

// The number of vectors across the next panel, of `left` vectors that are still to come.
template <typename T>
int64_t panel_vectors(int64_t left) {
  if constexpr (is_double<T>) return 1;
  if (left == kColumns + 1) return (kColumns + 3) / 2;  // not a last panel of one vector, which is slow
  return left < kColumns ? left : kColumns;
}
template <typename T>
constexpr int kWidest = is_double<T>   ? 1
                        : kColumns > 3 ? kColumns
                                       : 3;

// Call body(first column, width) for each panel of n columns.
template <typename T, typename Body>
inline void for_each_panel(int64_t n, const Body& body) {
  constexpr int64_t L = Vector<T>::lanes;
  const int64_t vectors = (n + L - 1) / L;
  for (int64_t v = 0, some; v < vectors; v += some) {
    some = panel_vectors<T>(vectors - v);
    body(v * L, some * L);
  }
}

// A panel of a GEMM: C vectors of columns from j on, their rows in b.
template <typename T>
struct Panel {
  const GemmArgs<T>& p;
  const T* b;
  int64_t ldb, j;
};

template <typename T, int R, int C>
inline void tile(const Panel<T>& panel, int64_t i) {
  constexpr int64_t L = Vector<T>::lanes;
  const GemmArgs<T>& p = panel.p;
  const int64_t j = panel.j, last = p.n - j - (C - 1) * L;  // columns of the last vector, of which some may be missing
  vec<T> sums[R][C];
  // Unrolled, so that the accumulators stay in registers.
  if (p.column_bias) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const vec<T> bias = load(p.column_bias + j + c * L);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sums[r][c] = bias;
    }
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sums[r][c] = vec<T>{};
  }
  if (p.row_bias) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sums[r][c] += splat(p.row_bias[i + r]);
  }
  if (p.start) {
    const T* start = p.start + i * p.start_stride + j;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c)
        sums[r][c] +=
            c + 1 < C ? load(start + r * p.start_stride + c * L) : load(start + r * p.start_stride + c * L, last);
  }
  const int64_t lda = p.lda, ldb = panel.ldb, block = p.a_block ? p.a_block : p.k;
  const T *from = p.a + i * lda, *b = panel.b;
  constexpr int64_t line = 64 / int64_t(sizeof(T));
  static_assert(R <= line);  // so that a line per step is enough
  const int64_t ahead = p.prefetch ? line : 0;
  for (int64_t first = 0; first < p.k; first += block, from += p.a_stride) {
    const T *a = from, *const end = from + (p.k - first < block ? p.k - first : block);
    const T* next = from + (p.prefetch ? R * lda : 0);
    for (; a != end; ++a, b += ldb, next += ahead) {
      __builtin_prefetch(next);
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
  }
  if (p.act == Activation::kRelu || p.act == Activation::kRelu6) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sums[r][c] = activate<T>(sums[r][c], p.act);
  }
  T* to = p.c + i * p.ldc + j;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c + 1 < C; ++c) store(to + r * p.ldc + c * L, sums[r][c]);
  if (last >= L) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store(to + r * p.ldc + (C - 1) * L, sums[r][C - 1]);
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) store(to + r * p.ldc + (C - 1) * L, sums[r][C - 1], last);
  }
  if (p.act != Activation::kSilu) return;
  if (last >= L) {
    silu_tile<T, C>(to, p.ldc, R);
  } else if constexpr (C > 1) {
    silu_tile<T, C - 1>(to, p.ldc, R);
  }
}

template <typename T, int R, int C>
inline void some_rows(const Panel<T>& panel, int64_t i, int64_t count) {
  if (count == R) return tile<T, R, C>(panel, i);
  if constexpr (R > 1) some_rows<T, R - 1, C>(panel, i, count);
}

// A multiply-add takes four cycles, and two begin in each: a tile of fewer sums waits.
constexpr int64_t kLeastSums = 8;

template <typename T, int C>
void rows(const Panel<T>& panel) {
  // Fewer columns leave registers for more rows.
  constexpr int R = is_double<T> ? 4 : C == 1 ? 12 : kAccumulators / C;
  const int64_t m = panel.p.m, left = m % R;
  const bool share = left && left < R - 1 && left * C < kLeastSums && m > R;  // the last two tiles share their rows
  int64_t i = 0;
  for (; i < m - left - share * R; i += R) tile<T, R, C>(panel, i);
  if (share) {
    const int64_t half = (R + left + 1) / 2;
    some_rows<T, R - 1, C>(panel, i, half);
    i += half;
  }
  if (i < m) some_rows<T, R - 1, C>(panel, i, m - i);
  // A part of a vector that has just been stored cannot be loaded at once: later.
  const int64_t j = panel.j + (C - 1) * Vector<T>::lanes, last = panel.p.n - j;
  if (panel.p.act != Activation::kSilu || last >= Vector<T>::lanes) return;
  for (i = 0; i < m; ++i) {
    T* const end = panel.p.c + i * panel.p.ldc + j;
    store(end, silu<T>(load(end, last)), last);
  }
}

template <typename T, int C>
inline void panel_rows(const Panel<T>& panel, int64_t vectors) {
  if (vectors == C) return rows<T, C>(panel);
  if constexpr (C > 1) panel_rows<T, C - 1>(panel, vectors);
}

template <typename T>
void gemm(const GemmArgs<T>& p) {
  for_each_panel<T>(p.n, [&](int64_t j, int64_t width) {
    const Panel<T> panel =
        p.b_depth ? Panel<T>{p, p.b + j * p.b_depth + p.b_first * width, width, j} : Panel<T>{p, p.b + j, p.ldb, j};
    panel_rows<T, kWidest<T>>(panel, width / Vector<T>::lanes);
  });
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
    y[i] = total<T>(sums[0] + sums[1]) + (bias ? bias[i] : T(0));
  }
  for (int64_t i = 0; i < m; i += L) store(y + i, activate<T>(load(y + i, m - i), act), m - i);
}

// Chosen once for all of the values.
template <typename T, int P>
inline void activate_all(vec<T> (&values)[P], Activation act) {
  if (act == Activation::kSilu) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) values[p] = silu<T>(values[p]);
  } else if (act == Activation::kRelu6) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) values[p] = clamp_high(clamp_low(values[p], T(0)), T(6));
  } else if (act != Activation::kNone) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) values[p] = activate<T>(values[p], act);
  }
}

// P pixels of the row, all channels. K taps and stride S; 0: any.
template <typename T, int P, int K, int S>
inline void filter_pixels(const DepthwiseRow<T>& r, int64_t first) {
  constexpr int64_t L = Vector<T>::lanes;
  const int64_t size = K ? K : r.size, stride = S ? S : r.stride, padded = r.padded, taps_stride = r.weights_stride;
  for (int64_t c = 0; c < r.channels; c += L) {
    vec<T> values[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) values[p] = r.bias ? load(r.bias + c) : vec<T>{};
    for (int64_t ky = 0; ky < size; ++ky) {
      const T* in = r.rows[ky] + first * stride * padded + c;
      const T* w = r.weights + ky * size * taps_stride + c;
      if constexpr (K > 0) {
        vec<T> taps[K];
#pragma GCC unroll 8
        for (int kx = 0; kx < K; ++kx) taps[kx] = load(w + kx * taps_stride);
        // Each input pixel is loaded once, for all of its taps.
#pragma GCC unroll 32
        for (int x = 0; x < (P - 1) * S + K; ++x) {
          const vec<T> v = load(in + x * padded);
#pragma GCC unroll 8
          for (int kx = 0; kx < K; ++kx)
            if (x >= kx && (x - kx) % S == 0 && (x - kx) / S < P) values[(x - kx) / S] += taps[kx] * v;
        }
      } else {
        for (int64_t kx = 0; kx < size; ++kx, w += taps_stride, in += padded) {
          const vec<T> tap = load(w);
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p) values[p] += tap * load(in + p * stride * padded);
        }
      }
    }
    activate_all<T>(values, r.act);
    if (r.sums) {
      vec<T> total = values[0];
#pragma GCC unroll 8
      for (int p = 1; p < P; ++p) total += values[p];
      store(r.sums + c, load(r.sums + c) + total);
    }
    T* out = r.out + first * r.out_stride + c;
    if (r.channels - c >= L) {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) store(out + p * r.out_stride, values[p]);
    } else {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) store(out + p * r.out_stride, values[p], r.channels - c);
    }
  }
}

template <typename T, int P, int K, int S>
inline void last_pixels(const DepthwiseRow<T>& r, int64_t first) {
  if (r.pixels - first == P) return filter_pixels<T, P, K, S>(r, first);
  if constexpr (P > 1) last_pixels<T, P - 1, K, S>(r, first);
}

template <typename T, int K, int S>
void filter_row(const DepthwiseRow<T>& r) {
  int64_t first = 0;
  for (; first + 8 <= r.pixels; first += 8) filter_pixels<T, 8, K, S>(r, first);
  for (; first + 4 <= r.pixels; first += 4) filter_pixels<T, 4, K, S>(r, first);
  last_pixels<T, 3, K, S>(r, first);
}

template <typename T>
void depthwise_row(const DepthwiseRow<T>& r) {
  if constexpr (!is_double<T>) {
    if (r.size == 3 && r.stride == 1) return filter_row<T, 3, 1>(r);
    if (r.size == 3 && r.stride == 2) return filter_row<T, 3, 2>(r);
    if (r.size == 5 && r.stride == 1) return filter_row<T, 5, 1>(r);
    if (r.size == 5 && r.stride == 2) return filter_row<T, 5, 2>(r);
  }
  filter_row<T, 0, 0>(r);
}

// P vectors of a plane, one below the other. Each row is loaded once for all of its taps.
template <typename T, int P>
inline void filter_column(const DepthwisePlanes<T>& d, const T* in, const T* weights, vec<T> bias, T* out) {
  vec<T> values[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) values[p] = bias;
#pragma GCC unroll 3
  for (int kx = 0; kx < 3; ++kx) {
    const vec<T> taps[3] = {splat(weights[kx]), splat(weights[3 + kx]), splat(weights[6 + kx])};
#pragma GCC unroll 16
    for (int y = 0; y < P + 2; ++y) {
      const vec<T> v = load(in + y * d.in_stride + kx);
#pragma GCC unroll 3
      for (int ky = 0; ky < 3; ++ky)
        if (y >= ky && y - ky < P) values[y - ky] += taps[ky] * v;
    }
  }
  activate_all<T>(values, d.act);
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) store(out + p * d.columns, values[p]);
}

// P vectors of a plane, one after the other, whatever its rows.
template <typename T, int P>
inline void filter_stretch(const DepthwisePlanes<T>& d, const T* in, const T* weights, vec<T> bias, T* out) {
  constexpr int64_t L = Vector<T>::lanes;
  vec<T> values[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) values[p] = bias;
#pragma GCC unroll 3
  for (int ky = 0; ky < 3; ++ky, in += d.in_stride, weights += 3) {
#pragma GCC unroll 3
    for (int kx = 0; kx < 3; ++kx) {
      const vec<T> tap = splat(weights[kx]);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) values[p] += tap * load(in + kx + p * L);
    }
  }
  activate_all<T>(values, d.act);
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) store(out + p * L, values[p]);
}

template <typename T>
void depthwise_planes(const DepthwisePlanes<T>& d) {
  constexpr int64_t L = Vector<T>::lanes;
  constexpr int P = is_double<T> ? 1 : 8, Q = is_double<T> ? 1 : 4;
  for (int64_t c = 0; c < d.channels; ++c) {
    const T *in = d.in + c * d.in_plane, *weights = d.weights + c * 9;
    T* const out = d.out + c * d.out_plane;
    const vec<T> bias = splat(d.bias ? d.bias[c] : T(0));
    if (d.columns % L == 0) {
      for (int64_t x = 0; x < d.columns; x += L) {
        int64_t y = 0;
        for (; y + P <= d.rows; y += P)
          filter_column<T, P>(d, in + y * d.in_stride + x, weights, bias, out + y * d.columns + x);
        for (; y + Q <= d.rows; y += Q)
          filter_column<T, Q>(d, in + y * d.in_stride + x, weights, bias, out + y * d.columns + x);
        for (; y < d.rows; ++y)
          filter_column<T, 1>(d, in + y * d.in_stride + x, weights, bias, out + y * d.columns + x);
      }
    } else {
      const int64_t vectors = ((d.rows - 1) * d.in_stride + d.columns + L - 1) / L;
      int64_t v = 0;
      for (; v + P <= vectors; v += P) filter_stretch<T, P>(d, in + v * L, weights, bias, out + v * L);
      for (; v + Q <= vectors; v += Q) filter_stretch<T, Q>(d, in + v * L, weights, bias, out + v * L);
      for (; v < vectors; ++v) filter_stretch<T, 1>(d, in + v * L, weights, bias, out + v * L);
    }
  }
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
  if (channels % Vector<T>::lanes == 0) {
    for (int64_t i = 0; i < count; ++i) {
      const T *a = row + low[i] * channels, *b = row + high[i] * channels;
      const vec<T> first = splat(T(1) - weight[i]), second = splat(weight[i]);
      for (int64_t c = 0; c < channels; c += Vector<T>::lanes)
        store(out + i * out_stride + c, load(a + c) * first + load(b + c) * second);
    }
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

#ifdef __AVX2__
// A vector of L floats as parts of four. Rows of L x L are transposed by four columns: rows 4k + r move to part k of
// vector r, and each part is transposed by itself, which takes half the shuffles, all of them cheap.
#ifdef __AVX512F__
using Floats = __m512;
inline Floats first_part(__m128 part) { return _mm512_castps128_ps512(part); }
template <int k>
inline Floats with_part(Floats v, __m128 part) {
  return _mm512_maskz_insertf32x4(-1, v, part, k);
}
inline __m128 load_part(const float* p, int64_t count) {
  return _mm_maskz_loadu_ps(static_cast<__mmask8>((1u << count) - 1), p);
}
inline Floats low(Floats a, Floats b) { return _mm512_maskz_unpacklo_ps(-1, a, b); }
inline Floats high(Floats a, Floats b) { return _mm512_maskz_unpackhi_ps(-1, a, b); }
inline Floats low_pairs(Floats a, Floats b) {
  return _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(-1, _mm512_castps_pd(a), _mm512_castps_pd(b)));
}
inline Floats high_pairs(Floats a, Floats b) {
  return _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(-1, _mm512_castps_pd(a), _mm512_castps_pd(b)));
}
#else
using Floats = __m256;
inline Floats first_part(__m128 part) { return _mm256_castps128_ps256(part); }
template <int k>
inline Floats with_part(Floats v, __m128 part) {
  return _mm256_insertf128_ps(v, part, k);
}
inline __m128 load_part(const float* p, int64_t count) {
  const __m128i lane = _mm_setr_epi32(0, 1, 2, 3);
  return _mm_maskload_ps(p, _mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int>(count)), lane));
}
inline Floats low(Floats a, Floats b) { return _mm256_unpacklo_ps(a, b); }
inline Floats high(Floats a, Floats b) { return _mm256_unpackhi_ps(a, b); }
inline Floats low_pairs(Floats a, Floats b) {
  return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
inline Floats high_pairs(Floats a, Floats b) {
  return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
#endif

// Four columns of 4 * Q rows; row(r) is where row r begins, read(p) reads four of its columns.
template <int Q, typename Row, typename Read>
inline void transpose_columns(const Row& row, const Read& read, Floats (&out)[4]) {
  Floats v[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    v[r] = first_part(read(row(r)));
    if constexpr (Q > 1) v[r] = with_part<1>(v[r], read(row(4 + r)));
    if constexpr (Q > 2) v[r] = with_part<2>(v[r], read(row(8 + r)));
    if constexpr (Q > 3) v[r] = with_part<3>(v[r], read(row(12 + r)));
  }
  const Floats a = low(v[0], v[1]), b = high(v[0], v[1]), c = low(v[2], v[3]), d = high(v[2], v[3]);
  out[0] = low_pairs(a, c), out[1] = high_pairs(a, c), out[2] = low_pairs(b, d), out[3] = high_pairs(b, d);
}

constexpr int kParts = kBytes / 16;

inline void transpose_block(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
#pragma GCC unroll 4
  for (int j = 0; j < 4 * kParts; j += 4) {
    Floats to[4];
    transpose_columns<kParts>([&](int r) { return in + r * in_stride + j; },
                              [](const float* at) { return _mm_loadu_ps(at); }, to);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) store(out + (j + c) * out_stride, to[c]);
  }
}

// The same for fewer rows, at most 4 * Q, or fewer columns.
template <int Q>
inline void transpose_part(const float* in, int64_t in_stride, float* out, int64_t out_stride, int64_t rows,
                           int64_t columns) {
  const float* from[4 * Q];
#pragma GCC unroll 16
  for (int r = 0; r < 4 * Q; ++r) from[r] = in + (r < rows ? r : 0) * in_stride;
  for (int64_t j = 0; j < columns; j += 4) {
    const int64_t some = columns - j < 4 ? columns - j : 4;
    Floats to[4];
    transpose_columns<Q>([&](int r) { return from[r] + j; }, [&](const float* p) { return load_part(p, some); }, to);
    float* const row = out + j * out_stride;
    store(row, to[0], rows);
    if (some > 1) store(row + out_stride, to[1], rows);
    if (some > 2) store(row + 2 * out_stride, to[2], rows);
    if (some > 3) store(row + 3 * out_stride, to[3], rows);
  }
}

inline void transpose_part(const float* in, int64_t in_stride, float* out, int64_t out_stride, int64_t rows,
                           int64_t columns) {
  if (rows <= 4) return transpose_part<1>(in, in_stride, out, out_stride, rows, columns);
  if (kParts == 2 || rows <= 8) return transpose_part<2>(in, in_stride, out, out_stride, rows, columns);
  if constexpr (kParts > 2) {
    if (rows <= 12) return transpose_part<3>(in, in_stride, out, out_stride, rows, columns);
    transpose_part<4>(in, in_stride, out, out_stride, rows, columns);
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
inline void transpose_part(const T* in, int64_t in_stride, T* out, int64_t out_stride, int64_t rows, int64_t columns) {
  constexpr int64_t L = Vector<T>::lanes;
  vec<T> block[L];
#pragma GCC unroll 16
  for (int64_t r = 0; r < L; ++r) block[r] = load(in + (r < rows ? r : 0) * in_stride, columns);
  transpose_registers<T>(block);
#pragma GCC unroll 16
  for (int64_t r = 0; r < L; ++r)
    if (r < columns) store(out + r * out_stride, block[r], rows);
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
        transpose_part(in + i * in_stride + j, in_stride, out + j * out_stride + i, out_stride, above < L ? above : L,
                       left < L ? left : L);
      }
    }
}

template <typename T>
void pack(const PackArgs<T>& p) {
  constexpr int64_t L = Vector<T>::lanes;
  for_each_panel<T>(p.n, [&](int64_t j, int64_t width) {
    T* const out = p.out + j * p.depth + p.first * width;
    const int64_t some = p.n - j < width ? p.n - j : width;
    if (p.stride_n == 1) {
      for (int64_t k = 0; k < p.k; ++k) {
        const T* const from = p.b + k * p.stride_k + j;
        const vec<T> scale = splat(p.scale ? p.scale[k] : T(1));
        for (int64_t c = 0; c < width; c += L) store(out + k * width + c, load(from + c, some - c) * scale);
      }
      return;
    }
    transpose(some, p.k, p.b + j * p.stride_n, p.stride_n, out, width);
    for (int64_t k = 0; k < p.k; ++k) {
      T* const row = out + k * width;
      for (int64_t c = some; c < width; ++c) row[c] = T(0);
      if (!p.scale) continue;
      for (int64_t c = 0; c < width; c += L) store(row + c, load(row + c) * splat(p.scale[k]));
    }
  });
}

}  // namespace

#define HYPERSEG_JOIN_(a, b) a##b
#define HYPERSEG_JOIN(a, b) HYPERSEG_JOIN_(a, b)
#define HYPERSEG_TABLE(T)                                                                  \
  extern const Primitives<T> HYPERSEG_JOIN(T##_, HYPERSEG_ISA);                            \
  const Primitives<T> HYPERSEG_JOIN(T##_, HYPERSEG_ISA) = {                                \
      Vector<T>::lanes, kWidest<T> * Vector<T>::lanes, gemm<T>,  pack<T>,        gemv<T>,  \
      depthwise_row<T>, depthwise_planes<T>,           blend<T>, copy_pixels<T>, widen<T>, \
      transpose<T>,                                                                        \
  };
HYPERSEG_TABLE(float)
HYPERSEG_TABLE(double)

}  // namespace hyperseg::cpu
