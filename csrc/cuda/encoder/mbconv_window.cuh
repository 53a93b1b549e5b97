#pragma once

#include "common/map.h"
#include "cuda/device/activation.cuh"
#include "cuda/device/vectors.cuh"
#include "cuda/encoder/mbconv_plan.h"

// The input of a tile of the depthwise convolution in shared memory, for 16-bit floats: each channel is a plane of its
// own, as the tensor cores need it, with zeros around the map. It is copied from a hidden map, or computed from the
// block's input, so that the expanded map is never stored. Pixels shared by neighbouring tiles are expanded by each.
namespace hyperseg::cuda {

// The channel of a slice that is in plane `plane`. In this order a lane that reads 8x8 matrices of planes x pixels,
// transposed, has eight contiguous channels of a pixel.
HYPERSEG_DEVICE int channel_of_plane(int plane) { return plane % 8 / 2 * 8 + plane / 8 * 2 + plane % 2; }

template <typename T>
struct Expansion {
  const T *weights, *bias;  // [channels, depth], [channels]; null: no expansion
  int depth, stride_n, stride_h, stride_w;
};

// A mask of those of two adjacent values that are inside the map.
HYPERSEG_DEVICE uint32_t inside(int first, int end) {
  const unsigned at = static_cast<unsigned>(first), count = static_cast<unsigned>(end);
  return (at < count ? 0xffffu : 0u) | (at + 1 < count ? 0xffff0000u : 0u);
}

// See opaque(int): without it the compiler computes an address anew for each load under a condition.
template <typename T>
HYPERSEG_DEVICE const T* opaque(const T* p) {
  const uint64_t bits = reinterpret_cast<uint64_t>(p);
  const uint32_t low = static_cast<uint32_t>(opaque(static_cast<int>(bits)));
  const uint32_t high = static_cast<uint32_t>(opaque(static_cast<int>(bits >> 32)));
  return reinterpret_cast<const T*>(uint64_t{high} << 32 | low);
}
HYPERSEG_DEVICE uint32_t opaque(uint32_t v) { return static_cast<uint32_t>(opaque(static_cast<int>(v))); }

HYPERSEG_DEVICE int clamp_to(int i, int end) { return min(max(i, 0), end - 1); }

// Fill the window of a tile, whose first pixel is at (y, x) of the map. A warp writes sixteen pixels of all planes at a
// time, two groups of eight: of a row, and then of the kExtra columns after the last sixteen, several rows at once. A
// lane loads pixel lane / 4 of a group, or outside the map the nearest one, and writes pixels lane % 4 * 2 and the next
// one of planes lane / 4 + 8 i.
template <typename W, typename T, typename Source>
HYPERSEG_DEVICE void fill_window(Source& source, const Map<const T>& map, int y, int x, T* window, int warp,
                                 unsigned lane) {
  using Offset = typename Source::Offset;
  const int height = static_cast<int>(map.height), width = static_cast<int>(map.width);
  const Offset stride_h = source.stride_h(), stride_w = source.stride_w();
  const int own = static_cast<int>(lane / 4), pair = static_cast<int>(lane % 4 * 2);
  T* const planes = window + own * W::kPlane;

  const int first = warp % W::kUnitsAcross * 16;
  constexpr int kStep = kMmaWarps / W::kUnitsAcross;  // rows
  Offset columns[2];
  uint32_t keep[2];
#pragma unroll
  for (int group = 0; group < 2; ++group) {
    columns[group] = clamp_to(x + first + 8 * group + own, width) * stride_w;
    keep[group] = opaque(inside(x + first + 8 * group + pair, width));
  }
  const auto load_row = [&](int row) {
    const Offset line = clamp_to(y + row, height) * stride_h;
    source.load(line + columns[0], line + columns[1]);
  };
  int row = warp / W::kUnitsAcross;
  T* to = planes + W::line(row) * W::kPitch + first + pair;
  load_row(row);
#pragma unroll 1
  for (; row < W::kRows; row += kStep, to += W::line(kStep) * W::kPitch) {
    const bool more = row + kStep < W::kRows;
    if (static_cast<unsigned>(y + row) < static_cast<unsigned>(height)) {
      const typename Source::Result result(source);
      if (more) load_row(row + kStep);
#pragma unroll
      for (int i = 0; i < 8; ++i)
        *reinterpret_cast<uint32_t*>(to + i % 4 * 8 * W::kPlane + i / 4 * 8) = result.pair(i / 4, i % 4) & keep[i / 4];
    } else {
      if (more) load_row(row + kStep);
#pragma unroll
      for (int i = 0; i < 8; ++i) *reinterpret_cast<uint32_t*>(to + i % 4 * 8 * W::kPlane + i / 4 * 8) = 0;
    }
  }

  constexpr int kGroupRows = 8 / W::kExtra;
  static_assert(kGroupRows % 2 == 0);  // so that the lines of groups are equally far apart
#pragma unroll 1
  for (int unit = kMmaWarps - 1 - warp; unit < W::kEdgeUnits; unit += kMmaWarps) {
    const int top = unit * 2 * kGroupRows, column = W::kMain + pair % W::kExtra;
    const Offset from = clamp_to(x + W::kMain + own % W::kExtra, width) * stride_w;
    const int row = top + own / W::kExtra;
    source.load(clamp_to(y + row, height) * stride_h + from, clamp_to(y + row + kGroupRows, height) * stride_h + from);
    const typename Source::Result result(source);
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      const int line = top + pair / W::kExtra + group * kGroupRows;
      const bool valid = static_cast<unsigned>(y + line) < static_cast<unsigned>(height);
      const uint32_t kept = valid ? inside(x + column, width) : 0u;
      T* const at = planes + W::line(line) * W::kPitch + column;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t two = result.pair(group, i) & kept;
        if (line < W::kRows) *reinterpret_cast<uint32_t*>(at + i * 8 * W::kPlane) = two;
      }
    }
  }
}

// The channels of a map as they are.
template <typename T>
class CopiedPixels {
 public:
  using Offset = int64_t;

  HYPERSEG_DEVICE CopiedPixels(const Map<const T>& in, bool vectors, int n, int first, unsigned lane)
      : in_(in), vectors_(vectors) {
    const int channel = first + static_cast<int>(lane % 4 * 8);
    count_ = static_cast<int>(in.channels) - channel;
    from_ = in.at(n, count_ > 0 ? channel : 0, 0, 0);
  }
  HYPERSEG_DEVICE int64_t stride_h() const { return in_.stride_h; }
  HYPERSEG_DEVICE int64_t stride_w() const { return in_.stride_w; }

  HYPERSEG_DEVICE void load(int64_t first, int64_t second) {
    const int64_t offsets[2] = {first, second};
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      const T* from = from_ + offsets[group];
      if (vectors_) {
        values_[group] = count_ > 0 ? *reinterpret_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
      } else {
        float v[8];
        load8(from, in_.stride_c, count_, v);
        values_[group] = uint4{pack<T>(v[0], v[1]), pack<T>(v[2], v[3]), pack<T>(v[4], v[5]), pack<T>(v[6], v[7])};
      }
    }
  }
  // Of the last loads: a lane had eight channels of a pixel of each group, and gets two pixels of four channels.
  class Result {
   public:
    explicit HYPERSEG_DEVICE Result(const CopiedPixels& of) {
#pragma unroll
      for (int group = 0; group < 2; ++group) {
        const uint4& v = of.values_[group];
        pairs_[group][0] = transposed(v.x), pairs_[group][1] = transposed(v.y);
        pairs_[group][2] = transposed(v.z), pairs_[group][3] = transposed(v.w);
      }
    }
    HYPERSEG_DEVICE uint32_t pair(int group, int i) const { return pairs_[group][i]; }

   private:
    uint32_t pairs_[2][4];
  };

 private:
  const Map<const T>& in_;
  bool vectors_;
  int count_;
  const T* from_;
  uint4 values_[2];
};

// silu(weights x + bias), with weights and biases halved: see silu2_of_halves.
template <typename T>
class ExpandedPixels {
 public:
  using Offset = int;

  // `weights` and `bias`: see stage_expansion.
  HYPERSEG_DEVICE ExpandedPixels(const T* in, const Expansion<T>& expansion, int n, const char* weights,
                                 const float4* bias, unsigned lane)
      : expansion_(expansion),
        in_(opaque(in + n * expansion.stride_n + lane % 4 * 4)),
        weights_(weights + opaque(lane * 16)),
        bias_(bias + opaque(lane / 4)),
        steps_((expansion.depth + 15) / 16),
        own_(static_cast<int>(lane % 4 * 4)) {
    // Channels after the last one remain zero.
#pragma unroll
    for (int i = 0; i < 2 * kAhead; ++i) values_[i / 2][i % 2] = uint2{0, 0};
  }
  HYPERSEG_DEVICE int stride_h() const { return expansion_.stride_h; }
  HYPERSEG_DEVICE int stride_w() const { return expansion_.stride_w; }

  // Each lane loads four channels of its pixels per step. As the order of the depth is free, they are two pairs of the
  // right operand.
  HYPERSEG_DEVICE void load(int first, int second) {
    from_[0] = opaque(in_ + first), from_[1] = opaque(in_ + second);
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (i * 16 + own_ < expansion_.depth) {
#pragma unroll
        for (int group = 0; group < 2; ++group)
          values_[i][group] = *reinterpret_cast<const uint2*>(from_[group] + i * 16);
      }
  }

  // Of the last loads.
  class Result {
   public:
    explicit HYPERSEG_DEVICE Result(ExpandedPixels& of) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const float4 bias = of.bias_[8 * part];
        uint32_t w[4];
        of.weights(0, part, w);
#pragma unroll
        for (int group = 0; group < 2; ++group)
          mma16<T>(sums_[part][group], w, of.values_[0][group].x, of.values_[0][group].y, bias);
      }
      of.multiply(0, 1, sums_);
#pragma unroll 1
      for (int first = kAhead; first < of.steps_; first += kAhead) {
        of.load_more(first);
        of.multiply(first, 0, sums_);
      }
    }
    HYPERSEG_DEVICE uint32_t pair(int group, int i) const {
      float a = sums_[i / 2][group][i % 2 * 2], b = sums_[i / 2][group][i % 2 * 2 + 1];
      silu2_of_halves(a, b);
      return pack<T>(a, b);
    }

   private:
    float sums_[2][2][4];  // of 16 planes, of a group
  };

 private:
  static constexpr int kAhead = 4;  // steps of the depth, of sixteen channels each, whose loads are in flight

  HYPERSEG_DEVICE void load_more(int first) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int depth = (first + i) * 16;
#pragma unroll
      for (int group = 0; group < 2; ++group)
        values_[i][group] =
            depth + own_ < expansion_.depth ? *reinterpret_cast<const uint2*>(from_[group] + depth) : uint2{0, 0};
    }
  }
  // The left operand of a step, for the first or the last 16 planes.
  HYPERSEG_DEVICE void weights(int step, int part, uint32_t (&w)[4]) const {
    const uint4 v = *reinterpret_cast<const uint4*>(weights_ + (2 * step + part) * 512);
    w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
  }
  // Steps first + i, from i = begin on.
  HYPERSEG_DEVICE void multiply(int first, int begin, float (&sums)[2][2][4]) const {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i < begin) continue;
      if (first + i >= steps_) break;
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        uint32_t w[4];
        weights(first + i, part, w);
#pragma unroll
        for (int group = 0; group < 2; ++group)
          mma16<T>(sums[part][group], w, values_[i][group].x, values_[i][group].y);
      }
    }
  }

  const Expansion<T>& expansion_;
  const T* in_;
  const char* weights_;
  const float4* bias_;
  int steps_, own_;
  const T* from_[2];
  uint2 values_[kAhead][2];
};

// Stage the halved weights of a slice in the order in which ExpandedPixels reads them, [steps of the depth, twice 16
// planes, lanes, 16 bytes], and the biases of two planes each as its accumulators have them.
template <typename T>
HYPERSEG_DEVICE void stage_expansion(const Expansion<T>& expansion, int first, int channels, char* weights,
                                     float4* bias, int thread) {
  const int steps = (expansion.depth + 15) / 16;
  const int plane = thread / 8, channel = first + channel_of_plane(plane);
  const bool real = channel < channels;
  const T* from = expansion.weights + static_cast<int64_t>(real ? channel : 0) * expansion.depth;
  char* to = weights + (plane / 16 * 32 + plane % 8 * 4) * 16 + plane / 8 % 2 * 4;
  const uint32_t halves = pack<T>(0.5f, 0.5f);
#pragma unroll 2
  for (int k = thread % 8 * 4; k < steps * 16; k += 32) {
    const uint2 v = real && k < expansion.depth ? *reinterpret_cast<const uint2*>(from + k) : uint2{0, 0};
    char* at = to + (k / 16 * 64 + k / 4 % 4) * 16;
    *reinterpret_cast<uint32_t*>(at) = multiply2<T>(v.x, halves);
    *reinterpret_cast<uint32_t*>(at + 8) = multiply2<T>(v.y, halves);
  }
  if (thread < kSlice) {
    const int own = first + channel_of_plane(thread);
    const float value = own < channels ? 0.5f * to_float(expansion.bias[own]) : 0.0f;
    store2(reinterpret_cast<float*>(bias + thread / 16 * 8 + thread % 8) + thread / 8 % 2 * 2, float2{value, value});
  }
}

}  // namespace hyperseg::cuda
