#pragma once

#include "cuda/device/activation.cuh"

namespace hyperseg::cuda {

// sigmoid(weights silu(sum of the partials / pixels + reduce_bias) + bias): what multiplies the channels of an image.
template <typename T>
struct Gate {
  const float* partials;                  // [images, parts, squeezed]
  const T *reduce_bias, *weights, *bias;  // [squeezed], [channels, squeezed], [channels]
  T* gates;                               // [images, stride]; zeros beyond the channels; null: see gates_of
  int64_t stride;
  int parts, channels, squeezed, slices;
  float pixels;
};

// All gates of an image into shared memory, where they cost a block less than a launch would: `channels` of them, a
// multiple of eight, then zeros up to `padded`. `room`: THREADS floats and one for each squeezed channel, at most
// THREADS.
template <int THREADS, typename T>
HYPERSEG_DEVICE void gates_of(const Gate<T>& problem, int64_t n, T* gates, int padded, float* room) {
  const int thread = threadIdx.x, count = problem.squeezed, shares = THREADS / count;
  float* squeezed = room + THREADS;
  const float reduce_bias = thread < count ? to_float(problem.reduce_bias[thread]) : 0.0f;
  float sum = 0.0f;
  if (thread / count < shares) {
    const float* from = problem.partials + n * problem.parts * count + thread % count;
#pragma unroll 16
    for (int part = thread / count; part < problem.parts; part += shares)
      sum += from[static_cast<int64_t>(part) * count];
  }
  room[thread] = sum;
  sync_block();
  if (thread < count) {
    float total = 0.0f;
    for (int share = 0; share < shares; ++share) total += room[share * count + thread];
    squeezed[thread] = silu(total / problem.pixels + reduce_bias);
  }
  sync_block();
  for (int channel = thread; channel < padded; channel += THREADS) {
    float product = 0.0f;
    if (channel < problem.channels) {
      const T* row = problem.weights + channel * count;
      product = to_float(problem.bias[channel]);
      for (int s = 0; s < count; ++s) product += to_float(row[s]) * squeezed[s];
      product = sigmoid(product);
    }
    gates[channel] = from_float<T>(product);
  }
}

// A block has the gates of so many channels, each from so many threads, which hold weights of so many squeezed
// channels.
constexpr int kGateThreads = 256, kGateLanes = 16, kGateChannels = kGateThreads / kGateLanes;
constexpr int kGateHeld = 8, kGateSqueezed = kGateHeld * kGateLanes;

// A kernel of its own, whose blocks have kGateChannels channels of an image each.
template <typename T>
HYPERSEG_KERNEL(kGateThreads, 1)
mbconv_gate_kernel(Gate<T> problem) {
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
  float product = 0.0f;
  for (int first = 0; first < problem.squeezed; first += kGateSqueezed) {
    const int count = min(kGateSqueezed, problem.squeezed - first);
    // Asked for now, to arrive together with the partials.
    const float reduce_bias = thread < count ? to_float(problem.reduce_bias[first + thread]) : 0.0f;
    const T* row = problem.weights + static_cast<int64_t>(channel) * problem.squeezed + first;
    float weights[kGateHeld];
#pragma unroll
    for (int i = 0; i < kGateHeld; ++i) {
      const int s = lane + i * kGateLanes;
      weights[i] = real && s < count ? to_float(row[s]) : 0.0f;
    }
    // As many threads a squeezed channel as there are; each adds every so many'th part.
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
      squeezed[thread] = silu(total / problem.pixels + reduce_bias);  // where there is none, times a weight of 0
    }
    sync_block();
#pragma unroll
    for (int i = 0; i < kGateHeld; ++i) product += weights[i] * squeezed[lane + i * kGateLanes];
  }
#pragma unroll
  for (int mask = 1; mask < kGateLanes; mask *= 2) product += shuffle_xor(product, mask);
  if (lane == 0 && channel < problem.stride)
    problem.gates[n * problem.stride + channel] = from_float<T>(real ? sigmoid(product + bias) : 0.0f);
}

}  // namespace hyperseg::cuda
