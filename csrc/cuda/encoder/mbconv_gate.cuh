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
  int weight_width;      // how many weights can be loaded at once: 4, 2 or 1
  bool constants_ready;  // see common/constants.h
};

// WIDTH adjacent weights in their storage type: a load does not stall until they are multiplied.
template <typename T, int WIDTH>
struct GateWeights {
  struct alignas(sizeof(T) * WIDTH) Packed {
    T values[WIDTH];
  };
  Packed packed;

  HYPERSEG_DEVICE void load(const T* from) { packed = *reinterpret_cast<const Packed*>(from); }
  HYPERSEG_DEVICE float dot(const float* squeezed) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sum += to_float(packed.values[i]) * squeezed[i];
    return sum;
  }
};

// The gates of all channels from the squeezed ones, each thread some rows of the weights. They are far apart and come
// from the second-level cache, so the loads of up to 32 weights are in flight.
template <int THREADS, int WIDTH, typename T>
HYPERSEG_DEVICE void multiply_gates(const SqueezeExciteGate<T>& problem, int thread, T* gates, int padded,
                                    const float* squeezed) {
  constexpr int kAhead = 8;
  const int count = problem.squeezed;
#pragma unroll 1
  for (int channel = thread; channel < padded; channel += THREADS) {
    const bool real = channel < problem.channels;
    float dot = real ? to_float(problem.bias[channel]) : 0.0f;
#pragma unroll 1
    for (int begin = 0; real && begin < count; begin += kAhead * WIDTH) {
      const T* row = problem.weights + static_cast<int64_t>(channel) * count + begin;
      GateWeights<T, WIDTH> weights[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) weights[i].load(begin + i * WIDTH < count ? row + i * WIDTH : row);
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        if (begin + i * WIDTH < count) dot += weights[i].dot(squeezed + begin + i * WIDTH);
    }
    gates[channel] = from_float<T>(real ? sigmoid(dot) : 0.0f);
  }
}

// Compute all gates of an image in shared memory, where that takes a block less time than a launch: `channels` of them,
// a multiple of eight, then zeros up to `padded`. `workspace`: THREADS floats and one per squeezed channel, at most
// THREADS.
template <int THREADS, typename T>
HYPERSEG_DEVICE void gates_of(const SqueezeExciteGate<T>& problem, int thread, int64_t n, T* gates, int padded,
                              float* workspace) {
  const int count = problem.squeezed, shares = THREADS / count;
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
  if (problem.weight_width == 4)
    multiply_gates<THREADS, 4>(problem, thread, gates, padded, squeezed);
  else if (problem.weight_width == 2)
    multiply_gates<THREADS, 2>(problem, thread, gates, padded, squeezed);
  else
    multiply_gates<THREADS, 1>(problem, thread, gates, padded, squeezed);
}

// Channels per block, threads per channel, and squeezed channels whose weights a thread holds.
constexpr int kGateThreads = 256, kGateLanes = 16, kGateChannels = kGateThreads / kGateLanes;
constexpr int kGateHeld = 8, kGateSqueezed = kGateHeld * kGateLanes;

// The gates of kGateChannels channels of one image. The constants are loaded ahead of the partial sums.
template <typename T>
class GateSlice {
 public:
  HYPERSEG_DEVICE GateSlice(const SqueezeExciteGate<T>& problem, unsigned index, int thread)
      : problem_(problem),
        thread_(thread),
        n_(index / problem.slices),
        channel_(index % problem.slices * kGateChannels + thread / kGateLanes),
        real_(channel_ < problem.channels) {}

  HYPERSEG_DEVICE void load_constants() {
    bias_ = real_ ? to_float(problem_.bias[channel_]) : 0.0f;
    load(0);
  }

  HYPERSEG_DEVICE void run() {
    float* sums = reinterpret_cast<float*>(shared_memory());
    float* squeezed = sums + kGateThreads;
    const int thread = thread_, lane = thread % kGateLanes;
    const float* partials = problem_.partials + n_ * problem_.parts * problem_.squeezed;
    float dot = 0.0f;
    for (int first = 0; first < problem_.squeezed; first += kGateSqueezed) {
      if (first) load(first);
      const int count = min(kGateSqueezed, problem_.squeezed - first);
      // All threads are divided among the squeezed channels; each adds every `shares`-th part.
      const int shares = kGateThreads / count;
      float sum = 0.0f;
      if (thread / count < shares) {
        const float* from = partials + first + thread % count;
#pragma unroll 16
        for (int part = thread / count; part < problem_.parts; part += shares)
          sum += from[static_cast<int64_t>(part) * problem_.squeezed];
      }
      sums[thread] = sum;
      sync_block();
      if (thread < kGateSqueezed) {
        float total = 0.0f;
        for (int share = 0; share < shares && thread < count; ++share) total += sums[share * count + thread];
        // Beyond `count` it is multiplied by a weight of 0.
        squeezed[thread] = silu(total / problem_.pixels + reduce_bias_);
      }
      sync_block();
#pragma unroll
      for (int i = 0; i < kGateHeld; ++i) dot += weights_[i] * squeezed[lane + i * kGateLanes];
    }
#pragma unroll
    for (int mask = 1; mask < kGateLanes; mask *= 2) dot += shuffle_xor(dot, mask);
    if (lane == 0 && channel_ < problem_.stride)
      problem_.gates[n_ * problem_.stride + channel_] = from_float<T>(real_ ? sigmoid(dot + bias_) : 0.0f);
  }

 private:
  HYPERSEG_DEVICE void load(int first) {
    const int thread = thread_, lane = thread % kGateLanes, count = min(kGateSqueezed, problem_.squeezed - first);
    reduce_bias_ = thread < count ? to_float(problem_.reduce_bias[first + thread]) : 0.0f;
    const T* row = problem_.weights + static_cast<int64_t>(channel_) * problem_.squeezed + first;
#pragma unroll
    for (int i = 0; i < kGateHeld; ++i) {
      const int s = lane + i * kGateLanes;
      weights_[i] = real_ && s < count ? to_float(row[s]) : 0.0f;
    }
  }

  const SqueezeExciteGate<T>& problem_;
  int thread_;
  int64_t n_;
  int channel_;
  bool real_;
  float bias_, reduce_bias_, weights_[kGateHeld];
};

// A kernel of its own for the gates.
template <typename T>
HYPERSEG_KERNEL(kGateThreads, 1)
mbconv_gate_kernel(SqueezeExciteGate<T> problem) {
  GateSlice<T> slice(problem, blockIdx.x, threadIdx.x);
  stage_constants_and_wait(problem.constants_ready, [&] { slice.load_constants(); });
  slice.run();
}

}  // namespace hyperseg::cuda
