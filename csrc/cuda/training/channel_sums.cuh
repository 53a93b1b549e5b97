#pragma once

#include "cuda/device/device.cuh"

// Reduction of per-thread results for the same channel, in a fixed order, to a row of partial sums.
namespace hyperseg::cuda {

// Mean, and squared deviations from it.
struct Moments {
  float count = 0.0f, first = 0.0f, sum = 0.0f, squares = 0.0f;  // sums of deviations from the first value

  HYPERSEG_DEVICE void add(float v) {
    if (count == 0.0f) first = v;
    add_rest(v - first);
    count += 1.0f;
  }
  HYPERSEG_DEVICE void add_rest(float rest) {
    sum += rest;
    squares += rest * rest;
  }
  HYPERSEG_DEVICE float mean() const { return first + sum / count; }
  HYPERSEG_DEVICE static void merge(const Moments* parts, int number, int step, float& mean, float& deviations) {
    float count = 0.0f, sum = 0.0f;
    for (int i = 0; i < number; ++i) {
      const Moments& part = parts[i * step];
      if (part.count == 0.0f) continue;
      count += part.count;
      sum += part.count * (part.mean() - parts->first);
    }
    mean = parts->first + sum / count;
    deviations = 0.0f;
    for (int i = 0; i < number; ++i) {
      const Moments& part = parts[i * step];
      if (part.count == 0.0f) continue;
      const float difference = part.mean() - mean;
      deviations += part.squares - part.sum * (part.sum / part.count) + part.count * (difference * difference);
    }
  }
};

// Sums of gradients, and of gradients times the value that they belong to. Arrays of them have one dimension: nvcc 13.0
// runs the initialisers of members in the first row only of a local array with two.
struct GradientSums {
  float total = 0.0f, by_value = 0.0f;

  HYPERSEG_DEVICE void add(float gradient, float value) {
    total += gradient;
    by_value += gradient * value;
  }
  HYPERSEG_DEVICE static void merge(const GradientSums* parts, int number, int step, float& total, float& by_value) {
    float sum = 0.0f, weighted = 0.0f;  // the results may be in global memory
    for (int i = 0; i < number; ++i) {
      sum += parts[i * step].total;
      weighted += parts[i * step].by_value;
    }
    total = sum, by_value = weighted;
  }
};

// In the accumulators of an MMA: sum over the lanes that have the same channels.
HYPERSEG_DEVICE float sum_of_rows(float v) {
#pragma unroll
  for (int mask = 4; mask < 32; mask *= 2) v += shuffle_xor(v, mask);
  return v;
}

// For all threads of the block, which must be synchronised after the last use of `shared` (slots * channels elements).
// The threads of the first slot write the sums of the `needed` first channels, from `first` on, to a row of [2,
// stored].
template <typename Sums>
HYPERSEG_DEVICE void store_row(const Sums* shared, int slots, int channels, int needed, float* row, int first,
                               int stored) {
  sync_block();
  const int c = threadIdx.x;
  if (c >= needed) return;
  Sums::merge(shared + c, slots, channels, row[first + c], row[stored + first + c]);
}

}  // namespace hyperseg::cuda
