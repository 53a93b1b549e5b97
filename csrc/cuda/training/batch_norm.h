#pragma once

#include "cuda/training/patches.h"

// Batch norms of an inverted residual in training: from partial sums to scales and shifts.
namespace hyperseg::cuda {

// One number per channel of all norms, of any type; those of a norm begin at `first`.
struct ChannelVector {
  void* data = nullptr;
  Type type = Type::kFloat;
  int64_t stride = 1;
  int first = 0;

  ChannelVector from(int i) const { return {data, type, stride, i}; }
};

// [chunks, 2, stored] in double; for bias_gradients a single chunk may be [stored].
struct ChannelSums {
  double* data = nullptr;
  int chunks = 0, stored = 0;
};

// Sum partial sums, or merge moments; `sums` has chunks_of(rows) chunks.
int chunks_of(const PartialRows& rows);
void add_rows(const float* partial, const PartialRows& rows, bool moments, const ChannelSums& sums, const char* op,
              Stream stream);

// Scale and shift of folded norms: 1, and `bias`, or 0 if `bias` has no data.
void folded_norms(const ChannelVector& bias, int channels, float* scale, float* shift, const char* op, Stream stream);

// A batch norm over `count` pixels: its affine parameters and, in the backward pass, its statistics.
struct BatchNorm {
  ChannelVector gamma, beta, mean, variance;
  int channels = 0;
  double eps = 0, count = 1;
  const double* synchronised = nullptr;  // if not null, the sums of all processes, as of whole_sums
};

// Sum the chunks: `whole` receives [2, stored], then `count`.
void whole_sums(const ChannelSums& sums, double count, double* whole, const char* op, Stream stream);

// Compute mean and variance from the sums of moments, and scale and shift from them.
void batch_statistics(const BatchNorm& norm, const ChannelSums& sums, float* scale, float* shift, const char* op,
                      Stream stream);
// Compute scale and shift from given statistics.
void batch_norms(const BatchNorm& norm, float* scale, float* shift, const char* op, Stream stream);
// From the sums of the norm's output gradient, and of that times the norm's input, compute the gradients of gamma and
// beta, those of this process, and factors [3, stored]: the input gradient is factors[0] * gradient + factors[1] *
// value + factors[2].
void batch_norm_gradients(const BatchNorm& norm, const ChannelSums& sums, const ChannelVector& d_gamma,
                          const ChannelVector& d_beta, float* factors, const char* op, Stream stream);

// Write the first sums of each channel, one vector after the other.
void bias_gradients(const ChannelSums (&sums)[3], const int (&channels)[3], const ChannelVector& d_bias, const char* op,
                    Stream stream);

// gradient = factors[0] * gradient + factors[1] * value + factors[2], for pixels of `stored` channels, a multiple of 8.
void pass_batch_norm(void* gradient, const void* values, const float* factors, int64_t pixels, int stored, Type type,
                     const char* op, Stream stream);
// The same for maps: out = factors[0] * gradient + factors[1] * value + factors[2].
void pass_batch_norm(const Map<const void>& gradient, const Map<const float>& values, const float* factors, int stored,
                     int64_t images, const Map<void>& out, Type type, const char* op, Stream stream);
// out = scale * value + shift.
void normalise(const Map<const float>& values, const float* scale, const float* shift, int64_t images,
               const Map<void>& out, Type type, const char* op, Stream stream);

}  // namespace hyperseg::cuda
