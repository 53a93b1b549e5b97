#pragma once

#include <immintrin.h>

#include "cpu/encoder/bfloat16_silu.h"
#include "cpu/encoder/mbconv_bfloat16_kernels.h"

// The matrix products of mbconv in bfloat16 by AMX's tiles.
namespace hyperseg::cpu::bfloat16 {
namespace {

constexpr int64_t kBytes = 64;  // of a tile's row

// gcc's intrinsics that load and store tiles do not say that they access memory.
inline void finish_stores() { asm volatile("" ::: "memory"); }

struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t tile_rows, int64_t bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};

// Tiles of the expansion: 0 to 2 sums, 3 and 4 operands, 5 and 6 operands of the last, smaller depth.
void begin_expansion(const Block& block, int64_t pixels) {
  const int64_t rows = pixels < kTile ? pixels : kTile, tail = block.channels % kDepth;
  Configuration c;
  for (int tile = 0; tile < 3; ++tile) c.set(tile, rows, kBytes);
  c.set(3, rows, kBytes);
  c.set(4, kTile, kBytes);
  if (tail) {
    c.set(5, rows, tail * 2);
    c.set(6, tail / 2, kBytes);
  }
  _tile_loadconfig(&c);
}

void activate(float* values, int64_t count) {
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
#pragma GCC unroll 4
    for (int j = 0; j < 64; j += 16) _mm512_store_ps(values + i + j, silu(_mm512_load_ps(values + i + j)));
  }
  for (; i < count; i += 16) _mm512_store_ps(values + i, silu(_mm512_load_ps(values + i)));
}

// Expand a row of pixels: to[pixel][vectors * 16].
template <int vectors>
void expand_row(const Block& block, const uint16_t* from, int64_t pixels, const uint16_t* packed, const float* bias,
                float* to) {
  const int64_t whole = block.channels / kDepth, tail = block.channels % kDepth, bytes = block.channels * 2;
  const int64_t all = whole + (tail > 0), rows = pixels < kTile ? pixels : kTile;
  finish_stores();
  for (int64_t begin = 0; begin < pixels; begin += kTile) {
    const int64_t pixel = begin < pixels - rows ? begin : pixels - rows;  // the last tile may compute some pixels again
    _tile_loadd(0, bias, 0);
    if constexpr (vectors > 1) _tile_loadd(1, bias + 16, 0);
    if constexpr (vectors > 2) _tile_loadd(2, bias + 32, 0);
    const uint16_t* a = from + pixel * block.channels;
    const uint16_t* b = packed;
    for (int64_t step = 0; step < whole; ++step, a += kDepth, b += kTileValues) {
      _tile_loadd(3, a, bytes);
      _tile_loadd(4, b, kBytes);
      _tile_dpbf16ps(0, 3, 4);
      if constexpr (vectors > 1) {
        _tile_loadd(4, b + all * kTileValues, kBytes);
        _tile_dpbf16ps(1, 3, 4);
      }
      if constexpr (vectors > 2) {
        _tile_loadd(4, b + 2 * all * kTileValues, kBytes);
        _tile_dpbf16ps(2, 3, 4);
      }
    }
    if (tail) {
      _tile_loadd(5, a, bytes);
      _tile_loadd(6, b, kBytes);
      _tile_dpbf16ps(0, 5, 6);
      if constexpr (vectors > 1) {
        _tile_loadd(6, b + all * kTileValues, kBytes);
        _tile_dpbf16ps(1, 5, 6);
      }
      if constexpr (vectors > 2) {
        _tile_loadd(6, b + 2 * all * kTileValues, kBytes);
        _tile_dpbf16ps(2, 5, 6);
      }
    }
    float* sums = to + pixel * vectors * 16;
    _tile_stored(0, sums, vectors * kBytes);
    if constexpr (vectors > 1) _tile_stored(1, sums + 16, vectors * kBytes);
    if constexpr (vectors > 2) _tile_stored(2, sums + 32, vectors * kBytes);
  }
  finish_stores();
  activate(to, pixels * vectors * 16);
}

void begin_projection() {
  Configuration c;
  for (int tile = 0; tile < 8; ++tile) c.set(tile, kTile, kBytes);
  _tile_loadconfig(&c);
  finish_stores();
}

// Project kPixels pixels to the channels of `count` tiles: sums[tile][pixel][kTile].
template <int count>
void project_pixels(const uint16_t* filtered, int64_t depth_steps, const uint16_t* packed,
                    float (*sums)[kPixels * kTile]) {
  const int64_t hidden = depth_steps * kDepth;
  const uint16_t* const lower = filtered + kTile * hidden;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < depth_steps; ++step) {
    _tile_loadd(4, filtered + step * kDepth, hidden * 2);
    _tile_loadd(6, packed + step * kTileValues, kBytes);
    _tile_loadd(5, lower + step * kDepth, hidden * 2);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    if constexpr (count > 1) {
      _tile_loadd(7, packed + (depth_steps + step) * kTileValues, kBytes);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0], kBytes);
  _tile_stored(1, sums[0] + kTile * kTile, kBytes);
  if constexpr (count > 1) {
    _tile_stored(2, sums[1], kBytes);
    _tile_stored(3, sums[1] + kTile * kTile, kBytes);
  }
}

void end_products() { _tile_release(); }

}  // namespace
}  // namespace hyperseg::cpu::bfloat16
