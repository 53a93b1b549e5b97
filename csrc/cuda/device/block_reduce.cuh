#pragma once

#include "cuda/device/device.cuh"

// Sums over the threads of a block, in a fixed order.
namespace hyperseg::cuda {

// Return the sum to all threads. `scratch`: one float per warp; synchronise the block before using it again.
template <int THREADS>
HYPERSEG_DEVICE float sum_of_block(float value, float* scratch) {
  for (int mask = 16; mask; mask /= 2) value += shuffle_xor(value, mask);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  sync_block();
  float total = 0.0f;
  for (int warp = 0; warp < THREADS / 32; ++warp) total += scratch[warp];
  return total;
}

// Return the sum, of any type, to the first thread. `scratch`: one value per thread.
template <int THREADS, typename V>
HYPERSEG_DEVICE V sum_for_first(V value, V* scratch) {
  const int thread = threadIdx.x;
  scratch[thread] = value;
  sync_block();
  for (int half = THREADS / 2; half; half /= 2) {
    if (thread < half) scratch[thread] += scratch[thread + half];
    sync_block();
  }
  return scratch[0];
}

}  // namespace hyperseg::cuda
