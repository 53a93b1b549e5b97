#pragma once

#include "cuda/training/patches.h"

// The norms of an inverted residual in training: from partial sums to what its maps are multiplied by.
namespace hyperseg::cuda {

// One number a channel of all norms, of any type: those of a norm are from `first` on.
struct Vector {
  void* data = nullptr;
  Type type = Type::kFloat;
  int64_t stride = 1;
  int first = 0;

  Vector from(int i) const { return {data, type, stride, i}; }
};

// [chunks, 2, stored] in double; for bias_gradients a single chunk may be [stored].
struct ChannelSums {
  double* data = nullptr;
  int chunks = 0, stored = 0;
};

// Adds up partial sums, or moments; `sums` has room for chunks_of(rows).
int chunks_of(const PartialRows& rows);
void add_rows(const float* partial, const PartialRows& rows, bool moments, const ChannelSums& sums, const char* op,
              Stream stream);

// scale and shift of norms that are folded: 1, and `bias`, or 0 where that has no data.
void folded_norms(const Vector& bias, int channels, float* scale, float* shift, const char* op, Stream stream);

// A batch norm over `count` pixels: its affine parameters and, in the backward pass, its statistics.
struct BatchNorm {
  Vector gamma, beta, mean, variance;
  int channels = 0;
  double eps = 0, count = 1;
};

// Statistics from the sums of moments, into mean and variance, and what they make of scale and shift.
void batch_statistics(const BatchNorm& norm, const ChannelSums& sums, float* scale, float* shift, const char* op,
                      Stream stream);
// Scale and shift by given statistics.
void batch_norms(const BatchNorm& norm, float* scale, float* shift, const char* op, Stream stream);
// From the sums of the gradient behind the norm, and of that times what the norm saw, to the gradients of gamma and
// beta and to factors [3, stored]: the gradient before the norm is factors[0] * gradient + factors[1] * value +
// factors[2].
void batch_norm_gradients(const BatchNorm& norm, const ChannelSums& sums, const Vector& d_gamma, const Vector& d_beta,
                          float* factors, const char* op, Stream stream);

// The first sums of each channel as they are, one vector after the other.
void bias_gradients(const ChannelSums (&sums)[3], const int (&channels)[3], const Vector& d_bias, const char* op,
                    Stream stream);

// gradient = factors[0] * gradient + factors[1] * value + factors[2], for pixels of `stored` channels, a multiple of 8.
void pass_batch_norm(void* gradient, const void* values, const float* factors, int64_t pixels, int stored, Type type,
                     const char* op, Stream stream);
// The same of maps: out = factors[0] * gradient + factors[1] * value + factors[2].
void pass_batch_norm(const Map<const void>& gradient, const Map<const float>& values, const float* factors, int stored,
                     int64_t images, const Map<void>& out, Type type, const char* op, Stream stream);
// out = scale * value + shift.
void normalise(const Map<const float>& values, const float* scale, const float* shift, int64_t images,
               const Map<void>& out, Type type, const char* op, Stream stream);

}  // namespace hyperseg::cuda
