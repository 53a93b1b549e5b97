#pragma once

#include "cuda/device/device.cuh"
#include "cuda/training/generate_weights_backward.h"

// The GEMMs of all generators and groups are divided into tiles with consecutive numbers, and one launch computes them.
namespace hyperseg::cuda {

// Return the offset of patch number `p`, counted through all images, in a map with these strides.
HYPERSEG_DEVICE int64_t patch_offset(const GenerationBackward& problem, int p, int64_t stride_n, int64_t stride_y,
                                     int64_t stride_x) {
  const int n = problem.area.quotient(p), pixel = p - n * problem.area.value();
  const int y = problem.width.quotient(pixel), x = pixel - y * problem.width.value();
  return n * stride_n + y * stride_y + x * stride_x;
}

// The generator of a tile, and the number of tiles before those of this generator.
template <typename Tiles>
HYPERSEG_DEVICE int generator_of(const Generators& generators, int64_t& tile, const Tiles& tiles) {
  int i = 0;
  for (; i + 1 < generators.count; ++i) {
    const int64_t own = tiles(generators.list[i]);
    if (tile < own) break;
    tile -= own;
  }
  return i;
}

HYPERSEG_HOST_DEVICE constexpr int64_t tiles_of(int64_t size, int tile) { return (size + tile - 1) / tile; }

template <typename Count>
int64_t total(const Generators& generators, const Count& count) {
  int64_t sum = 0;
  for (int i = 0; i < generators.count; ++i) sum += count(generators.list[i]);
  return sum;
}

// How the sum over patches is split: patches per block, and number of parts.
struct Split {
  int patches, parts;
};

// The same GEMMs with 16-bit operands on tensor cores: the products of both functions, in float.
bool by_mma(const GenerationBackward& problem);
Split split_of_mma(const GenerationBackward& problem, const Generators& generators);
void generator_gradients_mma(const GenerationBackward& problem, const Generators& generators, const Split& split,
                             int64_t values, float* partial, const char* op, Stream stream);
void passed_back_mma(const GenerationBackward& problem, const Generators& generators, float* parts, const char* op,
                     Stream stream);

}  // namespace hyperseg::cuda
