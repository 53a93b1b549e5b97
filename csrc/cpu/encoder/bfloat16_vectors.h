#pragma once

#include <immintrin.h>

#include <cstring>

#include "cpu/encoder/bfloat16_silu.h"
#include "cpu/encoder/mbconv_bfloat16_kernels.h"

// The matrix products of mbconv in bfloat16 by vdpbf16ps: each lane of a vector adds two products to its sum.
namespace hyperseg::cpu::bfloat16 {
namespace {

// Add to sums[pixel][vector] the products of pixels, `stride` values apart, with packed weights: rows of 16 pairs, of
// which those of the next vector follow after `apart` values.
template <int pixels, int vectors>
inline void multiply(const uint16_t* from, int64_t stride, int64_t pairs, const uint16_t* packed, int64_t apart,
                     vec (&sums)[pixels][vectors]) {
  for (int64_t pair = 0; pair < pairs; ++pair, from += 2, packed += kDepth) {
    __m512bh weights[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) weights[v] = (__m512bh)_mm512_loadu_si512(packed + v * apart);
#pragma GCC unroll 16
    for (int p = 0; p < pixels; ++p) {
      int32_t both;
      std::memcpy(&both, from + p * stride, sizeof(both));
      const __m512bh values = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[p][v] = _mm512_dpbf16_ps(sums[p][v], values, weights[v]);
    }
  }
}

void begin_expansion(const Block&, int64_t) {}

template <int pixels, int vectors>
inline void expand_pixels(const Block& block, const uint16_t* from, const uint16_t* packed, const float* bias,
                          float* to) {
  vec sums[pixels][vectors];
#pragma GCC unroll 16
  for (int p = 0; p < pixels; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) sums[p][v] = _mm512_load_ps(bias + v * 16);
  multiply(from, block.channels, block.channels / 2, packed, steps(block.channels) * kTileValues, sums);
#pragma GCC unroll 16
  for (int p = 0; p < pixels; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) _mm512_store_ps(to + (p * vectors + v) * 16, silu(sums[p][v]));
}

// Expand a row of pixels: to[pixel][vectors * 16].
template <int vectors>
void expand_row(const Block& block, const uint16_t* from, int64_t pixels, const uint16_t* packed, const float* bias,
                float* to) {
  constexpr int together = vectors == 1 ? 16 : 8;
  int64_t pixel = 0;
  for (; pixel + together <= pixels; pixel += together)
    expand_pixels<together, vectors>(block, from + pixel * block.channels, packed, bias, to + pixel * vectors * 16);
  for (; pixel + 4 <= pixels; pixel += 4)
    expand_pixels<4, vectors>(block, from + pixel * block.channels, packed, bias, to + pixel * vectors * 16);
  for (; pixel < pixels; ++pixel)
    expand_pixels<1, vectors>(block, from + pixel * block.channels, packed, bias, to + pixel * vectors * 16);
}

void begin_projection() {}

// Project kPixels pixels to the channels of `count` tiles: sums[tile][pixel][kTile].
template <int count>
void project_pixels(const uint16_t* filtered, int64_t depth_steps, const uint16_t* packed,
                    float (*sums)[kPixels * kTile]) {
  constexpr int together = count == 1 ? 16 : 8;
  const int64_t hidden = depth_steps * kDepth;
  for (int64_t pixel = 0; pixel < kPixels; pixel += together) {
    vec found[together][count];
#pragma GCC unroll 16
    for (int p = 0; p < together; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < count; ++v) found[p][v] = _mm512_setzero_ps();
    multiply(filtered + pixel * hidden, hidden, hidden / 2, packed, depth_steps * kTileValues, found);
#pragma GCC unroll 16
    for (int p = 0; p < together; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < count; ++v) _mm512_store_ps(sums[v] + (pixel + p) * kTile, found[p][v]);
  }
}

void end_products() {}

}  // namespace
}  // namespace hyperseg::cpu::bfloat16
