#pragma once

#include "activation.cuh"

namespace hyperseg::cuda {

constexpr int kGateThreads = 256, kGateLanes = 8, kGateChannels = kGateThreads / kGateLanes;

template <typename T>
struct Gate {
  const float* partials;                  // [images, parts, squeezed]
  const T *reduce_bias, *weights, *bias;  // [squeezed], [channels, squeezed], [channels]
  T* gates;                               // [images, stride]; zeros beyond the channels
  int64_t stride;
  int parts, channels, squeezed, slices;
  float pixels;
};

// sigmoid(weights silu(sum of the partials / pixels + reduce_bias) + bias), for kGateChannels channels of an image.
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
  const float* partials = problem.partials + n * problem.parts * problem.squeezed;
  float product = 0.0f;
  for (int first = 0; first < problem.squeezed; first += kGateThreads) {
    // As many threads a squeezed channel as there are; each adds every so many'th part.
    const int count = min(kGateThreads, problem.squeezed - first), shares = kGateThreads / count;
    float sum = 0.0f;
    if (thread / count < shares) {
      const float* from = partials + first + thread % count;
#pragma unroll 8
      for (int part = thread / count; part < problem.parts; part += shares)
        sum += from[static_cast<int64_t>(part) * problem.squeezed];
    }
    sums[thread] = sum;
    sync_block();
    if (thread < count) {
      float total = 0.0f;
      for (int share = 0; share < shares; ++share) total += sums[share * count + thread];
      squeezed[thread] = silu<float>(total / problem.pixels + to_float(problem.reduce_bias[first + thread]));
    }
    sync_block();
    if (channel < problem.channels) {
      const T* weights = problem.weights + static_cast<int64_t>(channel) * problem.squeezed + first;
      for (int s = lane; s < count; s += kGateLanes) product += to_float(weights[s]) * squeezed[s];
    }
  }
#pragma unroll
  for (int mask = 1; mask < kGateLanes; mask *= 2) product += shuffle_xor(product, mask);
  if (lane == 0 && channel < problem.stride)
    problem.gates[n * problem.stride + channel] =
        from_float<T>(channel < problem.channels ? sigmoid(product + to_float(problem.bias[channel])) : 0.0f);
}

}  // namespace hyperseg::cuda
