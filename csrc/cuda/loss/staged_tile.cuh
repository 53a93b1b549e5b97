#pragma once

#include <cstdint>

#include "common/map.h"
#include "cuda/device/fast_divmod.h"
#include "cuda/device/vectors.cuh"

// A rectangle of a map's pixels in shared memory, as float and pixel by pixel, without a division by an unknown number
// per value.
namespace hyperseg::cuda {

// A tile has fewer than 1024 rows, so its bytes are less than 2^32 apart.
constexpr int64_t kMaxRowStride = 1 << 20;

struct TileStaging {
  // kRows: rows are contiguous and stored as they are, 16 bytes per load. kFours: four channels per load. kValues: any
  // strides.
  enum class Copy { kRows, kFours, kValues };
  Copy copy = Copy::kValues;
  bool by_pixel = false;          // kValues: channels are the fastest dimension
  int channels = 0, columns = 0;  // columns: the most that a tile has
  int row_stride = 0;             // kRows: of the map
  int pixel = 0, pitch = 0;       // floats per pixel and row; an odd number per pixel avoids bank conflicts
  FastDivmod inner, outer;

  TileStaging() = default;
  template <typename T>
  TileStaging(const Map<const T>& map, int64_t most_columns)
      : channels(static_cast<int>(map.channels)), columns(static_cast<int>(most_columns)) {
    constexpr int64_t kValues = kVector<T>;
    const int64_t c = map.channels;
    const auto aligned = [&](int64_t values) {
      const bool rows = map.stride_n % values == 0 && map.stride_h % values == 0;
      return rows && reinterpret_cast<uintptr_t>(map.data) % (values * sizeof(T)) == 0;
    };
    by_pixel = map.stride_c == 1;
    if (by_pixel && c % 2 && map.stride_w == c && aligned(kValues) && map.width * c % kValues == 0 &&
        map.stride_h >= map.width * c && map.stride_h < kMaxRowStride) {
      copy = Copy::kRows;
      row_stride = static_cast<int>(map.stride_h);
      const int64_t vectors = (most_columns * c + 2 * (kValues - 1)) / kValues;
      pixel = channels;
      pitch = pitch_of(vectors * kValues);
      inner = FastDivmod(vectors);
      return;
    }
    pixel = channels | 1;
    pitch = pitch_of(most_columns * pixel);
    if (by_pixel && c % 4 == 0 && map.stride_w % 4 == 0 && aligned(4)) {
      copy = Copy::kFours;
      inner = FastDivmod(c / 4), outer = FastDivmod(most_columns);
    } else {
      inner = FastDivmod(by_pixel ? c : most_columns), outer = FastDivmod(by_pixel ? most_columns : c);
    }
  }

  int64_t bytes(int64_t rows) const { return 4 * rows * pitch; }

 private:
  // Rows 16 banks apart, so that 16 pixels of two rows are in different banks.
  static int pitch_of(int64_t floats) { return static_cast<int>((floats + 15) / 32 * 32 + 16); }
};

template <typename T>
HYPERSEG_DEVICE void load4(const T* from, float (&v)[4]) {
  if constexpr (sizeof(T) == 4) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
  } else {
    const uint2 two = *reinterpret_cast<const uint2*>(from);
    const float2 low = unpack<T>(two.x), high = unpack<T>(two.y);
    v[0] = low.x, v[1] = low.y, v[2] = high.x, v[3] = high.y;
  }
}

// Stage rows x columns pixels from (y, x) on, by all THREADS threads of the block; synchronise the block before they
// are read. Returns the first value: channel c of pixel (i, j) is i * pitch + j * pixel + c further on. UNSIGNED_ZEROS,
// for float16: 0 instead of -0.
template <int THREADS, bool UNSIGNED_ZEROS = false, typename T>
HYPERSEG_DEVICE const float* stage_tile(const T* image, const Map<const T>& map, const TileStaging& how, int y, int x,
                                        int rows, int columns, float* staged) {
  using Copy = TileStaging::Copy;
  const int thread = threadIdx.x;
  if (how.copy == Copy::kRows) {
    constexpr int kValues = kVector<T>, kAhead = 3;
    const int vectors = how.inner.value(), count = rows * vectors, first = x * how.channels;
    const int skipped = first % kValues;  // values before the first aligned vector's pixel
    const char* const from =
        reinterpret_cast<const char*>(image + (static_cast<int64_t>(y) * how.row_stride + (first - skipped)));
    const int last = static_cast<int>(map.width) * how.channels - kValues - (first - skipped);
#pragma unroll 1
    for (int base = thread; base < count; base += kAhead * THREADS) {
      uint4 loaded[kAhead];
      int to[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int i = min(base + k * THREADS, count - 1);  // without branches, so that the loads are under way together
        const int row = how.inner.quotient(i), value = (i - row * vectors) * kValues;
        to[k] = row * how.pitch + value;
        const uint32_t offset = sizeof(T) * static_cast<uint32_t>(row * how.row_stride + min(value, last));
        loaded[k] = *reinterpret_cast<const uint4*>(from + offset);
      }
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (base + k * THREADS >= count) break;
        float4* const target = reinterpret_cast<float4*>(staged + to[k]);
        uint4 v = loaded[k];
        if constexpr (sizeof(T) == 4) {
          *target = float4{as_float(v.x), as_float(v.y), as_float(v.z), as_float(v.w)};
        } else {
          if constexpr (UNSIGNED_ZEROS)
            v = uint4{without_negative_zeros<half>(v.x), without_negative_zeros<half>(v.y),
                      without_negative_zeros<half>(v.z), without_negative_zeros<half>(v.w)};
          const float2 a = unpack<T>(v.x), b = unpack<T>(v.y), c = unpack<T>(v.z), d = unpack<T>(v.w);
          target[0] = float4{a.x, a.y, b.x, b.y};
          target[1] = float4{c.x, c.y, d.x, d.y};
        }
      }
    }
    return staged + skipped;
  }
  const T* const from = image + y * map.stride_h + x * map.stride_w;
  if (how.copy == Copy::kFours) {
    const int fours = how.inner.value(), count = rows * how.columns * fours;
#pragma unroll 2
    for (int i = thread; i < count; i += THREADS) {
      const int place = how.inner.quotient(i), c = 4 * (i - place * fours);
      const int dy = how.outer.quotient(place), dx = place - dy * how.columns;
      float v[4];
      load4(from + dy * map.stride_h + min(dx, columns - 1) * map.stride_w + c, v);
      float* const target = staged + dy * how.pitch + dx * how.pixel + c;
#pragma unroll
      for (int k = 0; k < 4; ++k) target[k] = UNSIGNED_ZEROS ? v[k] + 0.0f : v[k];
    }
    return staged;
  }
  const int count = rows * how.columns * how.channels, length = how.inner.value(), next = how.outer.value();
#pragma unroll 4
  for (int i = thread; i < count; i += THREADS) {
    const int place = how.inner.quotient(i), fast = i - place * length;
    const int slow = how.outer.quotient(place), middle = place - slow * next;
    const int c = how.by_pixel ? fast : middle, dx = how.by_pixel ? middle : fast;
    const float value = to_float(from[slow * map.stride_h + min(dx, columns - 1) * map.stride_w + c * map.stride_c]);
    staged[slow * how.pitch + dx * how.pixel + c] = UNSIGNED_ZEROS ? value + 0.0f : value;
  }
  return staged;
}

}  // namespace hyperseg::cuda
