#include <type_traits>

#include "cuda/device/elementwise.cuh"
#include "cuda/device/vectors.cuh"
#include "cuda/training/batch_norm.h"

// Elementwise kernels of batch norm: apply it, and its gradient, to a feature map.
namespace hyperseg::cuda {
namespace {

constexpr int kThreads = 256;

HYPERSEG_DEVICE int remainder(int n, const FastDivmod& divisor) { return n - divisor.quotient(n) * divisor.value(); }

template <typename T>
HYPERSEG_KERNEL(kThreads, 2)
pass_hidden_kernel(T* gradient, const T* values, const float* factors, int64_t count, FastDivmod vectors) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int block = static_cast<int>(blockIdx.x), thread = threadIdx.x;
  const int64_t i = static_cast<int64_t>(block) * kThreads + thread;  // vectors of eight values
  if (i >= count) return;
  const int stored = 8 * vectors.value(), c = remainder(remainder(block, vectors) * kThreads + thread, vectors) * 8;
  Packed8<T> packed_d, packed_z;
  packed_d.load(gradient + 8 * i);
  packed_z.load(values + 8 * i);
  float d[8], z[8], factor[3][8];
#pragma unroll
  for (int k = 0; k < 3; ++k) load8(factors + k * stored + c, factor[k]);
  packed_d.unpack_to(d);
  packed_z.unpack_to(z);
#pragma unroll
  for (int j = 0; j < 8; ++j) d[j] = fmaf(d[j], factor[0][j], fmaf(z[j], factor[1][j], factor[2][j]));
  store8(gradient + 8 * i, d);
}

// Maps of the same, dense memory layout, in pieces of eight values. A plane is a channel of an image, or with
// CHANNELS_LAST an image.
struct DensePlanes {
  FastDivmod blocks, channels;  // blocks of a plane
  int values;                   // of a plane
};

// out = factors[0] * value + factors[1], or with a gradient factors[0] * gradient + factors[1] * value + factors[2].
template <typename T, bool GRADIENT, bool CHANNELS_LAST>
HYPERSEG_KERNEL(kThreads, 2)
affine_kernel(DensePlanes planes, const T* gradient, const float* values, const float* of_gradient,
              const float* of_value, const float* added, T* out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int block = static_cast<int>(blockIdx.x), plane = planes.blocks.quotient(block), thread = threadIdx.x;
  const int first = ((block - plane * planes.blocks.value()) * kThreads + thread) * 8;
  float4* factors = reinterpret_cast<float4*>(shared_memory());
  if constexpr (CHANNELS_LAST) {
    for (int c = thread; c < planes.channels.value(); c += kThreads)
      factors[c] = float4{GRADIENT ? of_gradient[c] : 0.0f, of_value[c], added[c], 0.0f};
    sync_block();
  }
  if (first >= planes.values) return;
  const int64_t at = static_cast<int64_t>(plane) * planes.values + first;
  float v[8], d[8] = {};
  load8(values + at, v);
  if constexpr (GRADIENT) load8(gradient + at, d);
  int c = CHANNELS_LAST ? remainder(first, planes.channels) : remainder(plane, planes.channels);
  float4 factor{GRADIENT && !CHANNELS_LAST ? of_gradient[c] : 0.0f, CHANNELS_LAST ? 0.0f : of_value[c],
                CHANNELS_LAST ? 0.0f : added[c], 0.0f};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if constexpr (CHANNELS_LAST) {
      factor = factors[c];
      c = c + 1 == planes.channels.value() ? 0 : c + 1;
    }
    v[i] = fmaf(v[i], factor.y, factor.z);
    if constexpr (GRADIENT) v[i] = fmaf(d[i], factor.x, v[i]);
  }
  store8(out + at, v);
}

template <typename T>
HYPERSEG_KERNEL(kValueThreads, 2)
pass_map_kernel(EachValue each, Map<const T> gradient, Map<const float> values, const float* factors, int stored,
                Map<T> out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const MapIndex at = each.place();
  if (!at.exists) return;
  const float d = to_float(*gradient.at(at.n, at.c, at.y, at.x)), z = *values.at(at.n, at.c, at.y, at.x);
  const float v = fmaf(d, factors[at.c], fmaf(z, factors[stored + at.c], factors[2 * stored + at.c]));
  *out.at(at.n, at.c, at.y, at.x) = from_float<T>(v);
}

template <typename T>
HYPERSEG_KERNEL(kValueThreads, 2)
normalise_kernel(EachValue each, Map<const float> values, const float* scale, const float* shift, Map<T> out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const MapIndex at = each.place();
  if (!at.exists) return;
  const float v = fmaf(*values.at(at.n, at.c, at.y, at.x), scale[at.c], shift[at.c]);
  *out.at(at.n, at.c, at.y, at.x) = from_float<T>(v);
}

}  // namespace

void pass_batch_norm(void* gradient, const void* values, const float* factors, int64_t pixels, int stored, Type type,
                     const char* op, Stream stream) {
  const int64_t count = pixels * (stored / 8);
  const Grid grid = grid_of(op, (count + kThreads - 1) / kThreads);
  with_type(type, [&](auto value) {
    using T = decltype(value);
    launch<pass_hidden_kernel<T>>(op, grid, kThreads, 0, stream, static_cast<T*>(gradient),
                                  static_cast<const T*>(values), factors, count, FastDivmod(stored / 8));
  });
}

namespace {

// Whether a map's values are dense in this layout, 16-byte aligned in pieces of eight.
template <typename S>
bool is_dense(const Map<S>& map, bool channels_last) {
  const int64_t area = map.height * map.width, plane = channels_last ? area * map.channels : area;
  if (map.stride_n != area * map.channels || plane % 8 != 0 || reinterpret_cast<uintptr_t>(map.data) % 16 != 0)
    return false;
  if (channels_last)
    return map.stride_c == 1 && map.stride_w == map.channels && map.stride_h == map.stride_w * map.width;
  return map.stride_w == 1 && map.stride_h == map.width && map.stride_c == area;
}

// Run affine_kernel if the maps have such a layout.
template <bool GRADIENT>
bool dense_affine(const Map<const void>& gradient, const Map<const float>& values, const float* of_gradient,
                  const float* of_value, const float* added, int64_t images, const Map<void>& out, Type type,
                  const char* op, Stream stream) {
  for (const bool channels_last : {false, true}) {
    const bool dense = is_dense(values, channels_last) && is_dense(out, channels_last) &&
                       (!GRADIENT || is_dense(gradient, channels_last));
    const int64_t plane = values.height * values.width * (channels_last ? values.channels : 1);
    if (!dense || plane >= int64_t{1} << 31 || values.channels > 2048) continue;
    const int64_t blocks = (plane + 8 * kThreads - 1) / (8 * kThreads);
    const DensePlanes planes{FastDivmod(blocks), FastDivmod(values.channels), static_cast<int>(plane)};
    const Grid grid = grid_of(op, images * (channels_last ? 1 : values.channels) * blocks);
    with_type(type, [&](auto value) {
      using T = decltype(value);
      const auto run = [&](auto last) {
        launch<affine_kernel<T, GRADIENT, last.value>>(
            op, grid, kThreads, last.value ? values.channels * sizeof(float4) : 0, stream, planes,
            static_cast<const T*>(gradient.data), values.data, of_gradient, of_value, added, static_cast<T*>(out.data));
      };
      channels_last ? run(std::true_type{}) : run(std::false_type{});
    });
    return true;
  }
  return false;
}

}  // namespace

void pass_batch_norm(const Map<const void>& gradient, const Map<const float>& values, const float* factors, int stored,
                     int64_t images, const Map<void>& out, Type type, const char* op, Stream stream) {
  if (dense_affine<true>(gradient, values, factors, factors + stored, factors + 2 * stored, images, out, type, op,
                         stream))
    return;
  const EachValue each(op, images, out);
  with_type(type, [&](auto value) {
    using T = decltype(value);
    launch<pass_map_kernel<T>>(op, each.grid(), kValueThreads, 0, stream, each, gradient.of<const T>(), values, factors,
                               stored, out.of<T>());
  });
}

void normalise(const Map<const float>& values, const float* scale, const float* shift, int64_t images,
               const Map<void>& out, Type type, const char* op, Stream stream) {
  if (dense_affine<false>({}, values, nullptr, scale, shift, images, out, type, op, stream)) return;
  const EachValue each(op, images, out);
  with_type(type, [&](auto value) {
    using T = decltype(value);
    launch<normalise_kernel<T>>(op, each.grid(), kValueThreads, 0, stream, each, values, scale, shift, out.of<T>());
  });
}

}  // namespace hyperseg::cuda
