#include "cuda/training/batch_norm.h"

#include <algorithm>

#include "cuda/device/launch.cuh"

namespace hyperseg::cuda {
namespace {

constexpr int kChannels = 32, kLanes = 8, kThreads = kChannels * kLanes;  // per block that sums rows
constexpr int64_t kMaxChunks = 256, kLeastRows = 64;

HYPERSEG_DEVICE float load(const ChannelVector& vector, int i) {
  const int64_t at = (vector.first + i) * vector.stride;
  if (vector.type == Type::kFloat) return static_cast<const float*>(vector.data)[at];
  if (vector.type == Type::kHalf) return to_float(static_cast<const half*>(vector.data)[at]);
  return to_float(static_cast<const bfloat16*>(vector.data)[at]);
}

HYPERSEG_DEVICE void store(const ChannelVector& vector, int i, float v) {
  const int64_t at = (vector.first + i) * vector.stride;
  if (vector.type == Type::kFloat)
    static_cast<float*>(vector.data)[at] = v;
  else if (vector.type == Type::kHalf)
    static_cast<half*>(vector.data)[at] = from_float<half>(v);
  else
    static_cast<bfloat16*>(vector.data)[at] = from_float<bfloat16>(v);
}

struct TwoSums {
  double first = 0, second = 0;
};

// Sum rows begin to end - 1 of read(row), which returns the value of the thread's channel; the result goes to the
// threads of the first lane. Fixed order.
template <typename Read>
HYPERSEG_DEVICE TwoSums sum_of_rows(int64_t begin, int64_t end, const Read& read) {
  TwoSums* shared = reinterpret_cast<TwoSums*>(shared_memory());
  const int thread = threadIdx.x;
  TwoSums sums;
  for (int64_t row = begin + thread / kChannels; row < end; row += kLanes) {
    const TwoSums more = read(row);
    sums.first += more.first, sums.second += more.second;
  }
  shared[thread] = sums;
  sync_block();
  if (thread < kChannels) {
    for (int lane = 1; lane < kLanes; ++lane) {
      sums.first += shared[lane * kChannels + thread].first;
      sums.second += shared[lane * kChannels + thread].second;
    }
  }
  return sums;
}

// The same for chunks; where there are no second sums, only the first.
template <bool SECOND = true>
HYPERSEG_DEVICE TwoSums sum_of_chunks(const ChannelSums& sums, int channel) {
  return sum_of_rows(0, sums.chunks, [&](int64_t chunk) {
    TwoSums result;
    if (channel < sums.stored) {
      const double* row = sums.data + chunk * 2 * sums.stored + channel;
      result = {row[0], SECOND ? row[sums.stored] : 0.0};
    }
    return result;
  });
}

HYPERSEG_KERNEL(kThreads, 1)
add_rows_kernel(const float* partial, PartialRows rows, int64_t rows_of_chunk, bool moments, ChannelSums sums) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int groups = (sums.stored + kChannels - 1) / kChannels;
  const int channel = static_cast<int>(blockIdx.x % groups) * kChannels + static_cast<int>(threadIdx.x) % kChannels;
  const int64_t chunk = blockIdx.x / groups, begin = chunk * rows_of_chunk;
  const TwoSums found = sum_of_rows(begin, min(begin + rows_of_chunk, rows.rows), [&](int64_t row) {
    TwoSums result;
    if (channel >= sums.stored) return result;
    const float* values = partial + row * 2 * sums.stored + channel;
    const double first = values[0], second = values[sums.stored];
    if (!moments) return TwoSums{first, second};
    // Turn mean and squared deviations into sums of values and of squares: in double this loses nothing of a float.
    const int count = min(rows.step, rows.pixels - static_cast<int>(row % rows.tiles) * rows.step);
    return TwoSums{count * first, second + count * first * first};
  });
  if (threadIdx.x >= kChannels || channel >= sums.stored) return;
  sums.data[chunk * 2 * sums.stored + channel] = found.first;
  sums.data[(chunk * 2 + 1) * sums.stored + channel] = found.second;
}

HYPERSEG_KERNEL(kThreads, 1) whole_sums_kernel(ChannelSums sums, double count, double* whole) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int c = static_cast<int>(blockIdx.x) * kChannels + static_cast<int>(threadIdx.x) % kChannels;
  const TwoSums found = sum_of_chunks(sums, c);
  if (threadIdx.x >= kChannels || c >= sums.stored) return;
  whole[c] = found.first;
  whole[sums.stored + c] = found.second;
  if (c == 0) whole[2 * sums.stored] = count;
}

HYPERSEG_KERNEL(kThreads, 1) folded_norms_kernel(ChannelVector bias, int channels, float* scale, float* shift) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int c = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (c >= channels) return;
  scale[c] = 1.0f;
  shift[c] = bias.data ? load(bias, c) : 0.0f;
}

HYPERSEG_DEVICE void store_norm(const BatchNorm& norm, int c, double mean, double variance, float* scale,
                                float* shift) {
  const double factor = load(norm.gamma, c) / sqrt(variance + norm.eps);
  scale[c] = static_cast<float>(factor);
  shift[c] = static_cast<float>(load(norm.beta, c) - mean * factor);
}

// Replace this process's sums of a channel by those of all processes, if the norm has them; return the number of
// pixels.
HYPERSEG_DEVICE double synchronise(const BatchNorm& norm, int stored, int c, TwoSums& sums) {
  if (!norm.synchronised) return norm.count;
  sums.first = norm.synchronised[c], sums.second = norm.synchronised[stored + c];
  return norm.synchronised[2 * stored];
}

HYPERSEG_KERNEL(kThreads, 1)
batch_statistics_kernel(BatchNorm norm, ChannelSums sums, float* scale, float* shift) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int c = static_cast<int>(blockIdx.x) * kChannels + static_cast<int>(threadIdx.x) % kChannels;
  TwoSums found = sum_of_chunks(sums, c);
  if (threadIdx.x >= kChannels || c >= norm.channels) return;
  const double count = synchronise(norm, sums.stored, c, found);
  const double mean = found.first / count, difference = found.second / count - mean * mean;
  const double variance = difference < 0 ? 0 : difference;  // keeps NaN
  store(norm.mean, c, static_cast<float>(mean));
  store(norm.variance, c, static_cast<float>(variance));
  store_norm(norm, c, mean, variance, scale, shift);
}

HYPERSEG_KERNEL(kThreads, 1) batch_norms_kernel(BatchNorm norm, float* scale, float* shift) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int c = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (c < norm.channels) store_norm(norm, c, load(norm.mean, c), load(norm.variance, c), scale, shift);
}

HYPERSEG_KERNEL(kThreads, 1)
batch_norm_gradients_kernel(BatchNorm norm, ChannelSums sums, ChannelVector d_gamma, ChannelVector d_beta,
                            float* factors) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int c = static_cast<int>(blockIdx.x) * kChannels + static_cast<int>(threadIdx.x) % kChannels;
  TwoSums found = sum_of_chunks(sums, c);
  if (threadIdx.x >= kChannels || c >= sums.stored) return;
  double factor = 0, slope = 0, offset = 0;
  if (c < norm.channels) {
    const double mean = load(norm.mean, c), deviation = 1 / sqrt(load(norm.variance, c) + norm.eps);
    double by_gamma = (found.second - mean * found.first) * deviation;
    store(d_gamma, c, static_cast<float>(by_gamma));
    store(d_beta, c, static_cast<float>(found.first));
    const double count = synchronise(norm, sums.stored, c, found);
    by_gamma = (found.second - mean * found.first) * deviation;
    factor = load(norm.gamma, c) * deviation;
    slope = factor * deviation * by_gamma / count;
    offset = mean * slope - factor * found.first / count;
  }
  factors[c] = static_cast<float>(factor);
  factors[sums.stored + c] = static_cast<float>(-slope);
  factors[2 * sums.stored + c] = static_cast<float>(offset);
}

// The vectors in sequence, and the first block and channel of each.
struct BiasParts {
  ChannelSums sums[3];
  int channels[3], blocks[3], first[3];
};

HYPERSEG_KERNEL(kThreads, 1) bias_gradients_kernel(BiasParts parts, ChannelVector d_bias) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int block = static_cast<int>(blockIdx.x);
  ChannelSums sums = parts.sums[0];
  int channels = parts.channels[0], own_block = block, first = 0;
#pragma unroll
  for (int i = 1; i < 3; ++i) {  // a run-time index would put them on the stack
    if (block < parts.blocks[i]) break;
    sums = parts.sums[i], channels = parts.channels[i], own_block = block - parts.blocks[i], first = parts.first[i];
  }
  const int c = own_block * kChannels + static_cast<int>(threadIdx.x) % kChannels;
  const TwoSums found = sum_of_chunks<false>(sums, c);
  if (threadIdx.x < kChannels && c < channels) store(d_bias, first + c, static_cast<float>(found.first));
}

constexpr size_t kSumBytes = kThreads * sizeof(TwoSums);

Grid groups_of(int channels) { return {blocks_of(channels, kChannels)}; }

int64_t rows_of_chunk(const PartialRows& rows) {
  return std::max(kLeastRows, (rows.rows + kMaxChunks - 1) / kMaxChunks);
}

}  // namespace

int chunks_of(const PartialRows& rows) {
  const int64_t each = rows_of_chunk(rows);
  return static_cast<int>((rows.rows + each - 1) / each);
}

void add_rows(const float* partial, const PartialRows& rows, bool moments, const ChannelSums& sums, const char* op,
              Stream stream) {
  const Grid grid = grid_of(op, int64_t{sums.chunks} * blocks_of(sums.stored, kChannels));
  launch<add_rows_kernel>(op, grid, kThreads, kSumBytes, stream, partial, rows, rows_of_chunk(rows), moments, sums);
}

void folded_norms(const ChannelVector& bias, int channels, float* scale, float* shift, const char* op, Stream stream) {
  const Grid grid{blocks_of(channels, kThreads)};
  launch<folded_norms_kernel>(op, grid, kThreads, 0, stream, bias, channels, scale, shift);
}

void batch_statistics(const BatchNorm& norm, const ChannelSums& sums, float* scale, float* shift, const char* op,
                      Stream stream) {
  launch<batch_statistics_kernel>(op, groups_of(norm.channels), kThreads, kSumBytes, stream, norm, sums, scale, shift);
}

void whole_sums(const ChannelSums& sums, double count, double* whole, const char* op, Stream stream) {
  launch<whole_sums_kernel>(op, groups_of(sums.stored), kThreads, kSumBytes, stream, sums, count, whole);
}

void batch_norms(const BatchNorm& norm, float* scale, float* shift, const char* op, Stream stream) {
  const Grid grid{blocks_of(norm.channels, kThreads)};
  launch<batch_norms_kernel>(op, grid, kThreads, 0, stream, norm, scale, shift);
}

void batch_norm_gradients(const BatchNorm& norm, const ChannelSums& sums, const ChannelVector& d_gamma,
                          const ChannelVector& d_beta, float* factors, const char* op, Stream stream) {
  launch<batch_norm_gradients_kernel>(op, groups_of(sums.stored), kThreads, kSumBytes, stream, norm, sums, d_gamma,
                                      d_beta, factors);
}

void bias_gradients(const ChannelSums (&sums)[3], const int (&channels)[3], const ChannelVector& d_bias, const char* op,
                    Stream stream) {
  BiasParts parts;
  int blocks = 0, first = 0;
  for (int i = 0; i < 3; ++i) {
    parts.sums[i] = sums[i], parts.channels[i] = channels[i], parts.blocks[i] = blocks, parts.first[i] = first;
    blocks += static_cast<int>(blocks_of(channels[i], kChannels));
    first += channels[i];
  }
  launch<bias_gradients_kernel>(op, Grid{static_cast<unsigned>(blocks)}, kThreads, kSumBytes, stream, parts, d_bias);
}

}  // namespace hyperseg::cuda
