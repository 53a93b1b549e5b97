#pragma once

#include "device.cuh"
#include "patches.h"

// Operands of products in half types, laid into shared memory by eight values of 16 bytes.
namespace hyperseg::cuda {

// A line of values: `count` of them `stride` apart. WHOLE: side by side, each eight on 16 bytes, and zeros up to the
// end of the last eight. PAIRED: side by side, every two on 4 bytes.
enum class Side { kWhole, kPaired, kApart };

template <Side SIDE, typename T>
HYPERSEG_DEVICE uint4 eight_of(const T* line, int first, int count, int64_t stride) {
  if constexpr (SIDE == Side::kWhole) {
    return first < count ? *reinterpret_cast<const uint4*>(line + first) : uint4{};
  } else {
    uint32_t two[4] = {};
    const int left = count - first;
    if constexpr (SIDE == Side::kPaired) {
      const uint32_t* from = reinterpret_cast<const uint32_t*>(line + first);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (2 * i < left) two[i] = from[i];
    } else {
      // An address after the other: products with the stride would take thrice as many instructions.
      const uint16_t* from = reinterpret_cast<const uint16_t*>(line) + first * stride;
      uint16_t one[8];
      if (left >= 8) {
#pragma unroll
        for (int i = 0; i < 8; ++i, from += stride) one[i] = *from;
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i, from += stride) one[i] = i < left ? *from : 0;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) two[i] = one[2 * i] | uint32_t{one[2 * i + 1]} << 16;
    }
    return uint4{two[0], two[1], two[2], two[3]};
  }
}

// Lays `groups` times eight values of `lines` lines from `shared` on, STRIDE apart; zeros in lines from `known` on. A
// line's values begin at line(number), a pointer; finish(eight, first value's number) is what is laid. Threads go along
// lines or from line to line.
template <Side SIDE, int THREADS, int STRIDE, typename T, typename Line, typename Finish>
HYPERSEG_DEVICE void lay_eights(T* shared, int lines, int known, int groups, int count, int64_t stride, bool along,
                                const Line& line, const Finish& finish) {
  // Of numbers this small the quotient is exact.
  const int across = along ? groups : lines, thread = threadIdx.x;
  const float part = fast_reciprocal(static_cast<float>(across));
  const int steps_up = static_cast<int>((THREADS + 0.5f) * part), steps_on = THREADS - steps_up * across;
  int up = static_cast<int>((thread + 0.5f) * part), on = thread - up * across;
  const int down = along ? lines : groups;
#pragma unroll 2
  while (up < down) {
    const int number = along ? up : on, first = 8 * (along ? on : up);
    uint4 v{};
    if (number < known) v = finish(eight_of<SIDE>(line(number), first, count, stride), first);
    *reinterpret_cast<uint4*>(shared + number * STRIDE + first) = v;
    on += steps_on, up += steps_up;
    if (on >= across) on -= across, ++up;
  }
}

struct AsItIs {
  HYPERSEG_DEVICE uint4 operator()(uint4 v, int) const { return v; }
};

// relu6 of the norm of eight channels, whose scale and shift lie in shared memory.
template <typename T>
struct Normalised8 {
  const float *scale, *shift;

  HYPERSEG_DEVICE uint4 operator()(uint4 v, int first) const {
    const float4 *a = reinterpret_cast<const float4*>(scale + first),
                 *b = reinterpret_cast<const float4*>(shift + first);
    const float4 a0 = a[0], a1 = a[1], b0 = b[0], b1 = b[1];
    return uint4{two(v.x, a0.x, b0.x, a0.y, b0.y), two(v.y, a0.z, b0.z, a0.w, b0.w), two(v.z, a1.x, b1.x, a1.y, b1.y),
                 two(v.w, a1.z, b1.z, a1.w, b1.w)};
  }

 private:
  // The corners are exact in half types: it does not matter whether they are rounded before or after.
  HYPERSEG_DEVICE static uint32_t two(uint32_t v, float scale0, float shift0, float scale1, float shift1) {
    const float2 both = unpack<T>(v);
    return relu6_of_two<T>(pack<T>(fmaf(both.x, scale0, shift0), fmaf(both.y, scale1, shift1)));
  }
};

// Whether eight channels of every pixel of a map may be read at once.
template <typename S>
bool by_eights(const PatchedMap<S>& map, int channels) {
  const int64_t all = map.stride_n | map.stride_row | map.stride_column | map.stride_y | map.stride_x;
  return map.stride_c == 1 && all % 8 == 0 && (channels % 8 == 0 || map.padded) &&
         reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
}

}  // namespace hyperseg::cuda
