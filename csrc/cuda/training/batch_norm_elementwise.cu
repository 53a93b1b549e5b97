#include "cuda/device/elementwise.cuh"
#include "cuda/device/vectors.cuh"
#include "cuda/training/batch_norm.h"

// Elementwise kernels of batch norm: apply it, and its gradient, to a feature map.
namespace hyperseg::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
HYPERSEG_KERNEL(kThreads, 2)
pass_hidden_kernel(T* gradient, const T* values, const float* factors, int64_t count, int vectors) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;  // vectors of eight values
  if (i >= count) return;
  const int stored = 8 * vectors, c = static_cast<int>(i % vectors) * 8;
  Packed8<T> packed_d, packed_z;
  packed_d.load(gradient + 8 * i);
  packed_z.load(values + 8 * i);
  float d[8], z[8], factor[8];
  packed_d.unpack_to(d);
  packed_z.unpack_to(z);
  load8(factors + c, factor);
#pragma unroll
  for (int j = 0; j < 8; ++j) d[j] *= factor[j];
  load8(factors + stored + c, factor);
#pragma unroll
  for (int j = 0; j < 8; ++j) d[j] = fmaf(z[j], factor[j], d[j]);
  load8(factors + 2 * stored + c, factor);
#pragma unroll
  for (int j = 0; j < 8; ++j) d[j] += factor[j];
  store8(gradient + 8 * i, d);
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
                                  static_cast<const T*>(values), factors, count, stored / 8);
  });
}

void pass_batch_norm(const Map<const void>& gradient, const Map<const float>& values, const float* factors, int stored,
                     int64_t images, const Map<void>& out, Type type, const char* op, Stream stream) {
  const EachValue each(op, images, out);
  with_type(type, [&](auto value) {
    using T = decltype(value);
    launch<pass_map_kernel<T>>(op, each.grid(), kValueThreads, 0, stream, each, gradient.of<const T>(), values, factors,
                               stored, out.of<T>());
  });
}

void normalise(const Map<const float>& values, const float* scale, const float* shift, int64_t images,
               const Map<void>& out, Type type, const char* op, Stream stream) {
  const EachValue each(op, images, out);
  with_type(type, [&](auto value) {
    using T = decltype(value);
    launch<normalise_kernel<T>>(op, each.grid(), kValueThreads, 0, stream, each, values, scale, shift, out.of<T>());
  });
}

}  // namespace hyperseg::cuda
