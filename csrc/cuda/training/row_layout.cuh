#pragma once

#include "common/check.h"
#include "cuda/device/device.cuh"
#include "cuda/training/patches.h"

// Staging of 16-bit GEMM operands in shared memory, in 8-element (16-byte) vectors.
namespace hyperseg::cuda {

// Call body(value of the C++ type), which is one of the 16-bit floats.
template <typename Body>
void with_16_bit_type(Type type, Body&& body) {
  type == Type::kHalf ? body(half{}) : body(bfloat16{});
}

// Memory layout of a row: kVectorized (contiguous, 16-byte aligned, zero-padded to a multiple of 8), kContiguous, or
// kTransposed (the other dimension is contiguous).
enum class Layout { kVectorized, kContiguous, kTransposed };

template <Layout LAYOUT, typename T>
HYPERSEG_DEVICE uint4 load_vector(const T* line, int first, int count, int stride) {
  if constexpr (LAYOUT == Layout::kVectorized) {
    return first < count ? *reinterpret_cast<const uint4*>(line + first) : uint4{};
  } else {
    const int64_t step = LAYOUT == Layout::kTransposed ? stride : 1;
    const uint16_t* from = reinterpret_cast<const uint16_t*>(line);
    from +=
        LAYOUT == Layout::kTransposed ? uint64_t{static_cast<uint32_t>(first)} * static_cast<uint32_t>(stride) : first;
    const int left = count - first;
    uint16_t one[8];
    if (left >= 8) {
#pragma unroll
      for (int i = 0; i < 8; ++i, from += step) one[i] = *from;
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i, from += step) one[i] = i < left ? *from : 0;
    }
    uint32_t two[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) two[i] = one[2 * i] | uint32_t{one[2 * i + 1]} << 16;
    return uint4{two[0], two[1], two[2], two[3]};
  }
}

// Stage `groups` vectors of each of `lines` rows at `shared`, STRIDE apart; zeros in rows from `known` on and after
// `count` values. line(number) is a pointer to a row; finish(vector, index of its first value) is stored. Threads go
// along the contiguous dimension.
template <Layout LAYOUT, int THREADS, int STRIDE, typename T, typename Line, typename Finish>
HYPERSEG_DEVICE void stage_vectors(T* shared, int lines, int known, int groups, int count, int stride, const Line& line,
                                   const Finish& finish) {
  constexpr bool kAlong = LAYOUT != Layout::kTransposed;
  const int across = kAlong ? groups : lines, down = kAlong ? lines : groups, thread = threadIdx.x;
  const float part = fast_reciprocal(static_cast<float>(across));  // the quotient is exact for numbers this small
  const int steps_up = static_cast<int>((THREADS + 0.5f) * part), steps_on = THREADS - steps_up * across;
  int up = static_cast<int>((thread + 0.5f) * part), on = thread - up * across;
#pragma unroll 2
  while (up < down) {
    const int number = kAlong ? up : on, first = 8 * (kAlong ? on : up);
    uint4 v{};
    if (number < known) v = finish(load_vector<LAYOUT>(line(number), first, count, stride), first);
    *reinterpret_cast<uint4*>(shared + number * STRIDE + first) = v;
    on += steps_on, up += steps_up;
    if (on >= across) on -= across, ++up;
  }
}

// The same for a map or matrix in any of the layouts.
template <int THREADS, int STRIDE, bool MAY_BE_VECTORIZED, typename T, typename Line, typename Finish>
HYPERSEG_DEVICE void stage_vectors(T* shared, int lines, int known, int groups, int count, int stride, bool vectorized,
                                   const Line& line, const Finish& finish) {
  if (MAY_BE_VECTORIZED && vectorized)
    stage_vectors<Layout::kVectorized, THREADS, STRIDE>(shared, lines, known, groups, count, 1, line, finish);
  else if (stride == 1)
    stage_vectors<Layout::kContiguous, THREADS, STRIDE>(shared, lines, known, groups, count, 1, line, finish);
  else
    stage_vectors<Layout::kTransposed, THREADS, STRIDE>(shared, lines, known, groups, count, stride, line, finish);
}

struct Identity {
  HYPERSEG_DEVICE uint4 operator()(uint4 v, int) const { return v; }
};

// relu6(norm) of eight channels, with scale and shift in shared memory.
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
  // 0 and 6 are exact in 16-bit floats, so rounding may come before or after.
  HYPERSEG_DEVICE static uint32_t two(uint32_t v, float scale0, float shift0, float scale1, float shift1) {
    const float2 both = unpack<T>(v);
    return pack_relu6<T>(fmaf(both.x, scale0, shift0), fmaf(both.y, scale1, shift1));
  }
};

// Eight factors of adjacent channels; zeros for channels that only pad.
HYPERSEG_DEVICE void load_factors(const float* from, int channel, int channels, float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = channel + i < channels ? from[channel + i] : 0.0f;
}

// relu6(norm(v)) of eight packed values.
template <typename T>
HYPERSEG_DEVICE uint4 normalised(uint4 v, const float (&scale)[8], const float (&shift)[8]) {
  const auto two = [&](uint32_t both, int i) {
    const float2 z = unpack<T>(both);
    return pack_relu6<T>(fmaf(z.x, scale[i], shift[i]), fmaf(z.y, scale[i + 1], shift[i + 1]));
  };
  return uint4{two(v.x, 0), two(v.y, 2), two(v.z, 4), two(v.w, 6)};
}

// factors[0] * a + factors[1] * b + factors[2] of eight packed values each.
template <typename T>
HYPERSEG_DEVICE uint4 affine(uint4 a, uint4 b, const float (&factors)[3][8]) {
  const auto two = [&](uint32_t a, uint32_t b, int i) {
    const float2 u = unpack<T>(a), v = unpack<T>(b);
    return pack<T>(fmaf(u.x, factors[0][i], fmaf(v.x, factors[1][i], factors[2][i])),
                   fmaf(u.y, factors[0][i + 1], fmaf(v.y, factors[1][i + 1], factors[2][i + 1])));
  };
  return uint4{two(a.x, b.x, 0), two(a.y, b.y, 2), two(a.z, b.z, 4), two(a.w, b.w, 6)};
}

// A stride of 32 bits, with which an address takes one instruction instead of three.
inline int stride_of(const char* op, int64_t stride) {
  check(stride < int64_t{1} << 31, op, ": a stride of ", stride, " is too large for a GPU; make its tensor contiguous");
  return static_cast<int>(stride);
}

// Whether eight channels of every pixel of a map are one aligned load.
template <typename S>
bool is_vectorized(const PatchedMap<S>& map, int channels) {
  const int64_t all = map.stride_n | map.stride_row | map.stride_column | map.stride_y | map.stride_x;
  return map.stride_c == 1 && all % 8 == 0 && (channels % 8 == 0 || map.padded) &&
         reinterpret_cast<uintptr_t>(map.data) % 16 == 0;
}

}  // namespace hyperseg::cuda
