#pragma once

#include "cuda/device/activation.cuh"

namespace hyperseg::cuda {

// Squeeze-excite gates: sigmoid(weights silu(sum of the partials / pixels + reduce_bias) + bias), one factor per
// channel and image.
template <typename T>
struct SqueezeExciteGate {
  const float* partials;                  // [images, parts, squeezed]
  const T *reduce_bias, *weights, *bias;  // [squeezed], [channels, squeezed], [channels]
  T* gates;                               // [images, stride], zero-padded; null: computed by gates_of
  int64_t stride;
  int parts, channels, squeezed, slices;
  float pixels;
};

// Compute all gates of an image in shared memory, where that takes a block less time than a launch: `channels` of them,
// a multiple of eight, then zeros up to `padded`. `workspace`: THREADS floats and one per squeezed channel, at most
// THREADS.
template <int THREADS, typename T>
HYPERSEG_DEVICE void gates_of(const SqueezeExciteGate<T>& problem, int64_t n, T* gates, int padded, float* workspace) {
  const int thread = threadIdx.x, count = problem.squeezed, shares = THREADS / count;
  float* squeezed = workspace + THREADS;
  const float reduce_bias = thread < count ? to_float(problem.reduce_bias[thread]) : 0.0f;
  float sum = 0.0f;
  if (thread / count < shares) {
    const float* from = problem.partials + n * problem.parts * count + thread % count;
#pragma unroll 16
    for (int part = thread / count; part < problem.parts; part += shares)
      sum += from[static_cast<int64_t>(part) * count];
  }
  workspace[thread] = sum;
  sync_block();
  if (thread < count) {
    float total = 0.0f;
    for (int share = 0; share < shares; ++share) total += workspace[share * count + thread];
    squeezed[thread] = silu(total / problem.pixels + reduce_bias);
  }
  sync_block();
  for (int channel = thread; channel < padded; channel += THREADS) {
    float dot = 0.0f;
    if (channel < problem.channels) {
      const T* row = problem.weights + channel * count;
      dot = to_float(problem.bias[channel]);
      for (int s = 0; s < count; ++s) dot += to_float(row[s]) * squeezed[s];
      dot = sigmoid(dot);
    }
    gates[channel] = from_float<T>(dot);
  }
}

// Channels per block, threads per channel, and squeezed channels whose weights a thread holds.
constexpr int kGateThreads = 256, kGateLanes = 16, kGateChannels = kGateThreads / kGateLanes;
constexpr int kGateHeld = 8, kGateSqueezed = kGateHeld * kGateLanes;

// A kernel of its own for the gates; a block computes kGateChannels channels of one image.
template <typename T>
HYPERSEG_KERNEL(kGateThreads, 1)
mbconv_gate_kernel(SqueezeExciteGate<T> problem) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  float* sums = reinterpret_cast<float*>(shared_memory());
  float* squeezed = sums + kGateThreads;
  const int thread = threadIdx.x, lane = thread % kGateLanes;
  const int64_t n = blockIdx.x / problem.slices;
  const int channel = blockIdx.x % problem.slices * kGateChannels + thread / kGateLanes;
  const bool real = channel < problem.channels;
  const float* partials = problem.partials + n * problem.parts * problem.squeezed;
  const float bias = real ? to_float(problem.bias[channel]) : 0.0f;
  float dot = 0.0f;
  for (int first = 0; first < problem.squeezed; first += kGateSqueezed) {
    const int count = min(kGateSqueezed, problem.squeezed - first);
    // Loaded now, to arrive together with the partials.
    const float reduce_bias = thread < count ? to_float(problem.reduce_bias[first + thread]) : 0.0f;
    const T* row = problem.weights + static_cast<int64_t>(channel) * problem.squeezed + first;
    float weights[kGateHeld];
#pragma unroll
    for (int i = 0; i < kGateHeld; ++i) {
      const int s = lane + i * kGateLanes;
      weights[i] = real && s < count ? to_float(row[s]) : 0.0f;
    }
    // All threads are divided among the squeezed channels; each adds every `shares`-th part.
    const int shares = kGateThreads / count;
    float sum = 0.0f;
    if (thread / count < shares) {
      const float* from = partials + first + thread % count;
#pragma unroll 16
      for (int part = thread / count; part < problem.parts; part += shares)
        sum += from[static_cast<int64_t>(part) * problem.squeezed];
    }
    sums[thread] = sum;
    sync_block();
    if (thread < kGateSqueezed) {
      float total = 0.0f;
      for (int share = 0; share < shares && thread < count; ++share) total += sums[share * count + thread];
      squeezed[thread] = silu(total / problem.pixels + reduce_bias);  // beyond `count`, multiplied by a weight of 0
    }
    sync_block();
#pragma unroll
    for (int i = 0; i < kGateHeld; ++i) dot += weights[i] * squeezed[lane + i * kGateLanes];
  }
#pragma unroll
  for (int mask = 1; mask < kGateLanes; mask *= 2) dot += shuffle_xor(dot, mask);
  if (lane == 0 && channel < problem.stride)
    problem.gates[n * problem.stride + channel] = from_float<T>(real ? sigmoid(dot + bias) : 0.0f);
}

}  // namespace hyperseg::cuda
