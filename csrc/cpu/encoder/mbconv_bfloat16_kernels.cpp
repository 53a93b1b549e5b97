#include "cpu/encoder/mbconv_bfloat16_kernels.h"

#include <immintrin.h>

#include <cstring>

#ifdef __AMX_BF16__
#include "cpu/encoder/bfloat16_tiles.h"
#else
#include "cpu/encoder/bfloat16_vectors.h"
#endif

// Compiled twice, for AVX512-BF16 and for AMX, with HYPERSEG_KERNELS as the name of its table. Like
// csrc/cpu/simd/vectors.h, this file has no inline functions with external linkage, of which the linker would keep one
// for every CPU.
namespace hyperseg::cpu::bfloat16 {
namespace {

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t between(int64_t value, int64_t low, int64_t high) { return larger(low, smaller(value, high)); }

inline __mmask16 lanes(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }

// Intrinsics with a mask of all lanes: those without one make gcc 12 warn of uninitialised values.
inline vec widen(__m256i v) {
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(-1, _mm512_maskz_cvtepu16_epi32(-1, v), 16));
}
inline __m256i narrow(vec v) { return (__m256i)_mm512_cvtneps_pbh(v); }
inline __m256i load16(const uint16_t* p, __mmask16 mask) { return _mm256_maskz_loadu_epi16(mask, p); }
inline vec load_wide(const uint16_t* p, __mmask16 mask) { return widen(load16(p, mask)); }

inline float total(vec v) {
  v = _mm512_add_ps(v, _mm512_maskz_shuffle_f32x4(-1, v, v, 0x4e));
  v = _mm512_add_ps(v, _mm512_maskz_shuffle_f32x4(-1, v, v, 0xb1));
  v = _mm512_add_ps(v, _mm512_maskz_permute_ps(-1, v, 0x4e));
  v = _mm512_add_ps(v, _mm512_maskz_permute_ps(-1, v, 0xb1));
  return v[0];
}

// Pairs of depths (k, k + 1) of 16 matrix rows, as a tile takes its second operand: packed[pair][row][2], for `pairs`
// pairs from `depth` on; beyond the matrix zero. With gates, values are scaled by those of their depth.
void pack_step(const Matrix& matrix, int64_t row, int64_t depth, const float* gates, uint16_t* packed) {
  const __mmask16 rows = lanes(matrix.rows - row);
  const int64_t depths = smaller(matrix.columns - depth, kDepth);
  if (matrix.column_stride == 1) {
    alignas(64) uint16_t values[kTileValues];
    const __mmask16 low = lanes(depths), high = lanes(depths - 16);
    for (int64_t r = 0; r < kTile; ++r) {
      __m256i a = _mm256_setzero_si256(), b = a;
      if (row + r < matrix.rows) {
        const uint16_t* from = matrix.data + (row + r) * matrix.row_stride + depth;
        a = load16(from, low), b = load16(from + 16, high);
        if (gates) {
          a = narrow(_mm512_mul_ps(widen(a), _mm512_maskz_loadu_ps(low, gates + depth)));
          b = narrow(_mm512_mul_ps(widen(b), _mm512_maskz_loadu_ps(high, gates + depth + 16)));
        }
      }
      _mm256_store_si256((__m256i*)(values + r * kDepth), a);
      _mm256_store_si256((__m256i*)(values + r * kDepth + 16), b);
    }
    const __m512i index = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                             _mm512_set1_epi32(kTile));
    for (int64_t pair = 0; pair < kTile; ++pair)
      _mm512_storeu_si512(packed + pair * kDepth,
                          _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), -1, index, values + 2 * pair, 4));
    return;
  }
  for (int64_t pair = 0; pair < kTile; ++pair) {
    __m512i both = _mm512_setzero_si512();
    for (int64_t i = 0; i < 2 && 2 * pair + i < depths; ++i) {
      const int64_t k = depth + 2 * pair + i;
      __m256i values = load16(matrix.data + k * matrix.column_stride + row, rows);
      if (gates) values = narrow(_mm512_mul_ps(widen(values), _mm512_set1_ps(gates[k])));
      const __m512i wide = _mm512_maskz_cvtepu16_epi32(-1, values);
      both = _mm512_or_si512(both, i ? _mm512_maskz_slli_epi32(-1, wide, 16) : wide);
    }
    _mm512_storeu_si512(packed + pair * kDepth, both);
  }
}

// Memory of a slice.
struct Layout {
  int64_t vectors, padded, columns, packed, expand_bias, depthwise, bias, totals, ring, all;

  Layout(const Block& block, int64_t some, int64_t out_width)
      : vectors(tiles(some)), padded(vectors * kTile), columns((out_width - 1) * block.stride + block.size) {
    packed = 0;
    expand_bias = block.expand.data ? vectors * steps(block.channels) * kTileValues / 2 : 0;
    depthwise = expand_bias + padded;
    bias = depthwise + block.size * block.size * padded;
    totals = bias + padded;
    ring = totals + padded;
    all = ring + block.size * columns * padded;
  }
};

struct Row {
  const float* const* rows;  // of the ring, from the filter's first column on
  const float* weights;      // [tap][padded]
  const float* bias;
  int64_t padded, size, stride;
  uint16_t* out;
  int64_t out_stride;
  float* totals;
};

// Filter `pixels` pixels of one vector of channels. A size of 0 is that of the row.
template <int size_, int stride_, int pixels>
inline void filter_pixels(const Row& row, int64_t x, int64_t channel, vec bias, vec& total) {
  const int64_t padded = row.padded;
  vec sums[pixels];
#pragma GCC unroll 8
  for (int p = 0; p < pixels; ++p) sums[p] = bias;
  if constexpr (size_ > 0) {
    for (int ky = 0; ky < size_; ++ky) {
      const float* from = row.rows[ky] + x * stride_ * padded + channel;
      const float* weights = row.weights + ky * size_ * padded + channel;
      vec taps[size_];
#pragma GCC unroll 8
      for (int kx = 0; kx < size_; ++kx) taps[kx] = _mm512_load_ps(weights + kx * padded);
#pragma GCC unroll 32
      for (int c = 0; c < (pixels - 1) * stride_ + size_; ++c) {
        const vec value = _mm512_load_ps(from + c * padded);
#pragma GCC unroll 8
        for (int kx = 0; kx < size_; ++kx) {
          const int p = (c - kx) / stride_;
          if (c >= kx && (c - kx) % stride_ == 0 && p < pixels) sums[p] = _mm512_fmadd_ps(value, taps[kx], sums[p]);
        }
      }
    }
  } else {
    for (int64_t ky = 0; ky < row.size; ++ky)
      for (int64_t kx = 0; kx < row.size; ++kx) {
        const vec tap = _mm512_load_ps(row.weights + (ky * row.size + kx) * padded + channel);
#pragma GCC unroll 8
        for (int p = 0; p < pixels; ++p)
          sums[p] = _mm512_fmadd_ps(_mm512_load_ps(row.rows[ky] + ((x + p) * row.stride + kx) * padded + channel), tap,
                                    sums[p]);
      }
  }
#pragma GCC unroll 8
  for (int p = 0; p < pixels; ++p) {
    const vec value = silu(sums[p]);
    total = _mm512_add_ps(total, value);
    _mm256_storeu_si256((__m256i*)(row.out + (x + p) * row.out_stride + channel), narrow(value));
  }
}

template <int size, int stride>
void filter_row(const Row& row, int64_t pixels) {
  for (int64_t channel = 0; channel < row.padded; channel += 16) {
    const vec bias = _mm512_load_ps(row.bias + channel);
    vec total = _mm512_load_ps(row.totals + channel);
    int64_t x = 0;
    for (; x + 8 <= pixels; x += 8) filter_pixels<size, stride, 8>(row, x, channel, bias, total);
    if (x + 4 <= pixels) filter_pixels<size, stride, 4>(row, x, channel, bias, total), x += 4;
    for (; x < pixels; ++x) filter_pixels<size, stride, 1>(row, x, channel, bias, total);
    _mm512_store_ps(row.totals + channel, total);
  }
}

using Filter = void (*)(const Row&, int64_t);

Filter filter_of(int64_t size, int64_t stride) {
  if (size == 3 && stride == 1) return filter_row<3, 1>;
  if (size == 3 && stride == 2) return filter_row<3, 2>;
  if (size == 5 && stride == 1) return filter_row<5, 1>;
  if (size == 5 && stride == 2) return filter_row<5, 2>;
  return filter_row<0, 0>;
}

// Add a bias and, if there is one, the block's input, and store pixels of 16 channels, `stride` values apart.
template <bool whole>
inline void store_sums(const float* sums, int64_t count, vec bias, const uint16_t* added, uint16_t* to, int64_t stride,
                       __mmask16 mask) {
  for (int64_t p = 0; p < count; ++p) {
    vec value = _mm512_add_ps(_mm512_load_ps(sums + p * kTile), bias);
    if (added) {
      const __m256i other =
          whole ? _mm256_loadu_si256((const __m256i*)(added + p * stride)) : load16(added + p * stride, mask);
      value = _mm512_add_ps(value, widen(other));
    }
    if (whole) {
      _mm256_storeu_si256((__m256i*)(to + p * stride), narrow(value));
    } else {
      _mm256_mask_storeu_epi16(to + p * stride, mask, narrow(value));
    }
  }
}

using Expand = void (*)(const Block&, const uint16_t*, int64_t, const uint16_t*, const float*, float*);

int64_t slice_scratch(const Block& block, int64_t out_width) {
  return Layout(block, smaller(kChannels, block.hidden), out_width).all;
}

void expand_and_filter(const Slice& slice) {
  const Block& block = slice.block;
  const int64_t some = smaller(kChannels, block.hidden - slice.first), size = block.size, stride = block.stride;
  for (int64_t c = 0; c < some; ++c) slice.sums[slice.first + c] = 0;
  if (slice.y0 >= slice.y1 || slice.x0 >= slice.x1) return;
  const Layout layout(block, some, slice.x1 - slice.x0);
  const int64_t padded = layout.padded, columns = layout.columns;
  float* const memory = slice.scratch;
  uint16_t* const packed = reinterpret_cast<uint16_t*>(memory + layout.packed);
  const auto widen_vectors = [&](const uint16_t* from, float* to) {
    for (int64_t c = 0; c < padded; c += 16)
      _mm512_store_ps(to + c, load_wide(from + slice.first + c, lanes(some - c)));
  };
  widen_vectors(block.depthwise_bias, memory + layout.bias);
  std::memset(memory + layout.totals, 0, padded * sizeof(float));
  const Matrix& filter_weights = block.depthwise;
  const uint16_t* const taps = filter_weights.data + slice.first * filter_weights.row_stride;
  for (int64_t tap = 0; tap < size * size; ++tap) {
    float* const to = memory + layout.depthwise + tap * padded;
    const uint16_t* const from = taps + tap * filter_weights.column_stride;
    for (int64_t c = 0; c < padded; ++c) {
      const uint32_t bits = c < some ? uint32_t(from[c * filter_weights.row_stride]) << 16 : 0;
      std::memcpy(to + c, &bits, sizeof(bits));
    }
  }
  // Columns of the ring [begin, end) are in the map, which begins at column `left`.
  const int64_t left = slice.x0 * stride - block.left;
  const int64_t begin = between(-left, 0, columns), end = between(block.width - left, begin, columns);
  const Expand expand = layout.vectors == 1 ? expand_row<1> : layout.vectors == 2 ? expand_row<2> : expand_row<3>;
  if (block.expand.data) {
    widen_vectors(block.expand_bias, memory + layout.expand_bias);
    const int64_t depth_steps = steps(block.channels);
    for (int64_t v = 0; v < layout.vectors; ++v)
      for (int64_t step = 0; step < depth_steps; ++step) {
        Matrix rows = block.expand;  // beyond this slice there is nothing
        rows.rows = slice.first + some;
        pack_step(rows, slice.first + v * kTile, step * kDepth, nullptr,
                  packed + (v * depth_steps + step) * kTileValues);
      }
    if (begin < end) begin_expansion(block, end - begin);
  }
  float* const ring = memory + layout.ring;
  const auto fill = [&](int64_t y, float* to) {
    if (y < 0 || y >= block.height || begin == end) {
      std::memset(to, 0, columns * padded * sizeof(float));
      return;
    }
    std::memset(to, 0, begin * padded * sizeof(float));
    std::memset(to + end * padded, 0, (columns - end) * padded * sizeof(float));
    const uint16_t* from = block.in + ((slice.image * block.height + y) * block.width + left + begin) * block.channels;
    float* const first = to + begin * padded;
    if (block.expand.data) {
      expand(block, from, end - begin, packed, memory + layout.expand_bias, first);
    } else {
      for (int64_t x = 0; x < end - begin; ++x) widen_vectors(from + x * block.channels, first + x * padded);
    }
  };
  const Filter filter = filter_of(size, stride);
  const int64_t hidden = steps(block.hidden) * kDepth;
  const bool pad = slice.first + some == block.hidden && slice.first + padded < hidden;
  const float* rows[kMaximumSize];
  int64_t next = slice.y0 * stride - block.top;
  for (int64_t y = slice.y0; y < slice.y1; ++y) {
    const int64_t top = y * stride - block.top;
    const auto slot = [&](int64_t row) { return ring + (row + size * kMaximumSize) % size * columns * padded; };
    for (; next < top + size; ++next) fill(next, slot(next));
    for (int64_t ky = 0; ky < size; ++ky) rows[ky] = slot(top + ky);
    uint16_t* const out = slice.filtered + (y * block.out_width + slice.x0) * hidden + slice.first;
    filter({.rows = rows,
            .weights = memory + layout.depthwise,
            .bias = memory + layout.bias,
            .padded = padded,
            .size = size,
            .stride = stride,
            .out = out,
            .out_stride = hidden,
            .totals = memory + layout.totals},
           slice.x1 - slice.x0);
    if (pad)
      for (int64_t x = 0; x < slice.x1 - slice.x0; ++x)
        _mm256_storeu_si256((__m256i*)(out + x * hidden + padded), _mm256_setzero_si256());
  }
  std::memcpy(slice.sums + slice.first, memory + layout.totals, some * sizeof(float));
  if (block.expand.data) end_products();
}

void compute_gates(const Block& block, const float* means, float* squeezed, float* gates) {
  const auto dot = [](const uint16_t* weights, const float* values, int64_t count) {
    vec sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < count; i += 16) {
      const __mmask16 mask = lanes(count - i);
      sum = _mm512_fmadd_ps(load_wide(weights + i, mask), _mm512_maskz_loadu_ps(mask, values + i), sum);
    }
    return total(sum);
  };
  for (int64_t s = 0; s < block.squeezed; ++s) squeezed[s] = dot(block.reduce + s * block.hidden, means, block.hidden);
  for (int64_t s = 0; s < block.squeezed; s += 16) {
    const __mmask16 mask = lanes(block.squeezed - s);
    const vec sums = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, squeezed + s), load_wide(block.reduce_bias + s, mask));
    _mm512_mask_storeu_ps(squeezed + s, mask, silu(sums));
  }
  for (int64_t c = 0; c < block.hidden; ++c) gates[c] = dot(block.gate + c * block.squeezed, squeezed, block.squeezed);
  for (int64_t c = 0; c < block.hidden; c += 16) {
    const __mmask16 mask = lanes(block.hidden - c);
    const vec x = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, gates + c), load_wide(block.gate_bias + c, mask));
    const vec y = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f));
    const vec f = _mm512_maskz_reduce_ps(-1, y, _MM_FROUND_TO_NEG_INF);
    vec p = _mm512_fmadd_ps(f, _mm512_set1_ps(1.35341685e-2f), _mm512_set1_ps(5.2011472e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4144274e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.93003841e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.00000259f));
    const vec one = _mm512_set1_ps(1.0f);
    _mm512_mask_storeu_ps(gates + c, mask, _mm512_div_ps(one, _mm512_add_ps(one, _mm512_maskz_scalef_ps(-1, p, y))));
  }
}

void pack_projection(const Block& block, const float* gates, int64_t tile, uint16_t* packed) {
  const int64_t depth_steps = steps(block.hidden);
  for (int64_t step = 0; step < depth_steps; ++step)
    pack_step(block.project, tile * kTile, step * kDepth, gates, packed + (tile * depth_steps + step) * kTileValues);
}

void project(const Block& block, int64_t image, int64_t begin, int64_t end, const uint16_t* filtered,
             const uint16_t* packed, uint16_t* out) {
  const int64_t depth_steps = steps(block.hidden), hidden = depth_steps * kDepth, outputs = block.out_channels;
  const int64_t pixels = block.out_height * block.out_width;
  alignas(64) float sums[2][kPixels * kTile];
  begin_projection();
  for (int64_t pixel = begin; pixel < end; pixel += kPixels) {
    for (int64_t tile = 0; tile < tiles(outputs); tile += 2) {
      const bool both = tile + 1 < tiles(outputs);
      const uint16_t* const weights = packed + tile * depth_steps * kTileValues;
      (both ? project_pixels<2> : project_pixels<1>)(filtered + pixel * hidden, depth_steps, weights, sums);
      const int64_t count = smaller(kPixels, end - pixel);
      for (int64_t side = 0; side < 1 + both; ++side) {
        const int64_t channel = (tile + side) * kTile, place = (image * pixels + pixel) * outputs + channel;
        const uint16_t* const added = block.residual ? block.in + place : nullptr;
        const __mmask16 mask = lanes(outputs - channel);
        const vec bias = load_wide(block.project_bias + channel, mask);
        const auto store = mask == 0xffff ? store_sums<true> : store_sums<false>;
        store(sums[side], count, bias, added, out + place, outputs, mask);
      }
    }
  }
  end_products();
}

}  // namespace

extern const Kernels HYPERSEG_KERNELS;
const Kernels HYPERSEG_KERNELS = {slice_scratch, expand_and_filter, compute_gates, pack_projection, project};

}  // namespace hyperseg::cpu::bfloat16
