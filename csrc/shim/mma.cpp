#include "shim/device.h"

// Once for a warp, not once for each lane: most of the time of the emulated kernels is spent here.
namespace hyperseg::cuda {

// Fragments as defined by the PTX manual.
template <typename T, int A>
void multiply_fragments(unsigned char (*said)[shim::kMessage]) {
  constexpr int kDepth = 4 * A;
  float a[16][kDepth], b[kDepth][8];
  for (int lane = 0; lane < shim::kWarp; ++lane) {
    uint32_t words[A + A / 2];
    std::memcpy(words, said[lane], sizeof words);
    const int row = lane / 4, first = lane % 4 * 2;
    for (int i = 0; i < A; ++i) {
      const float2 two = unpack<T>(words[i]);
      float* to = &a[row + i % 2 * 8][first + i / 2 * 8];
      to[0] = two.x, to[1] = two.y;
    }
    for (int i = 0; i < A / 2; ++i) {
      const float2 two = unpack<T>(words[A + i]);
      b[first + 8 * i][row] = two.x, b[first + 8 * i + 1][row] = two.y;
    }
  }
  for (int row = 0; row < 16; ++row) {
    float sums[8] = {};
    for (int k = 0; k < kDepth; ++k)
      for (int column = 0; column < 8; ++column) sums[column] += a[row][k] * b[k][column];
    for (int i = 0; i < 4; ++i) std::memcpy(said[row % 8 * 4 + i] + row / 8 * 8, &sums[2 * i], 8);
  }
}

template void multiply_fragments<half, 4>(unsigned char (*)[shim::kMessage]);
template void multiply_fragments<half, 2>(unsigned char (*)[shim::kMessage]);
template void multiply_fragments<bfloat16, 4>(unsigned char (*)[shim::kMessage]);
template void multiply_fragments<bfloat16, 2>(unsigned char (*)[shim::kMessage]);

}  // namespace hyperseg::cuda
