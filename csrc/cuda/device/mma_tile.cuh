#pragma once

#include <type_traits>

#include "common/map.h"
#include "cuda/device/device.cuh"

// GEMM of one block: it computes one tile, of 16-bit floats on tensor cores, of float32 on SIMT cores.
namespace hyperseg::cuda {

constexpr int kGemmThreads = 128;

namespace mma_tile_detail {

constexpr int kDepth = 32;  // staged in shared memory at once
constexpr int kRow =
    kDepth + 8;  // of 16-bit operands: rows are 16-byte aligned and eight of them are in different banks

// Offset of a value in shared memory: depth-major for float32, as ldmatrix needs it for 16-bit types.
template <typename T, int ROWS>
HYPERSEG_DEVICE int place(int row, int k) {
  return std::is_same_v<T, float> ? k * (ROWS + 1) + row : row * kRow + k;
}

// Load the values of some rows from depth `first` on, `steps` deep; 16-bit types are zero-padded to a multiple of 16.
// Threads go along the depth or along the rows, whichever is contiguous in global memory. AHEAD: loads in flight per
// thread.
template <typename T, int ROWS, int AHEAD, typename Values>
HYPERSEG_DEVICE void fill(T* shared, const Values& values, int first, int steps, bool along_depth) {
  const int padded = std::is_same_v<T, float> ? steps : (steps + 15) / 16 * 16, thread = threadIdx.x;
  if (along_depth) {
    const int k = thread % kDepth;
    if (k >= padded) return;
#pragma unroll AHEAD
    for (int row = thread / kDepth; row < ROWS; row += kGemmThreads / kDepth)
      shared[place<T, ROWS>(row, k)] = k < steps ? values(row, first + k) : from_float<T>(0.0f);
  } else {
    const int row = thread % ROWS;
#pragma unroll AHEAD
    for (int k = thread / ROWS; k < padded; k += kGemmThreads / ROWS)
      shared[place<T, ROWS>(row, k)] = k < steps ? values(row, first + k) : from_float<T>(0.0f);
  }
}

// Accumulators of one thread in float32. Its rows and columns are strided, so that adjacent threads have adjacent
// columns.
template <int M, int N>
class SimtAccumulators {
 public:
  HYPERSEG_DEVICE void add(const float* a, const float* b, int steps) {
    const int row = threadIdx.x / kAcross, column = threadIdx.x % kAcross;
    for (int k = 0; k < steps; ++k) {
      float left[kRows], right[kColumns];
#pragma unroll
      for (int i = 0; i < kRows; ++i) left[i] = a[place<float, M>(row + i * kDown, k)];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) right[j] = b[place<float, N>(column + j * kAcross, k)];
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < kColumns; ++j) sums_[i][j] += left[i] * right[j];
    }
  }
  template <typename Store>
  HYPERSEG_DEVICE void store(const Store& store) const {
    const int row = threadIdx.x / kAcross, column = threadIdx.x % kAcross;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) store(row + i * kDown, column + j * kAcross, sums_[i][j]);
  }

 private:
  static constexpr int kAcross = N == 64 ? 16 : 8, kDown = kGemmThreads / kAcross;
  static constexpr int kRows = M / kDown, kColumns = N / kAcross;
  float sums_[kRows][kColumns] = {};
};

// Layout of a 16-bit operand in shared memory: depth contiguous per row, or rows contiguous per depth, which ldmatrix
// transposes. Lines are an odd number of 16 bytes, so that eight of them are in different banks.
template <int DEPTH>
struct RowMajor {
  static constexpr bool kTransposed = false;
  static constexpr int kStride = DEPTH + 8;
  HYPERSEG_DEVICE static int place(int row, int k) { return row * kStride + k; }
};
template <int ROWS>
struct DepthMajor {
  static constexpr bool kTransposed = true;
  static constexpr int kStride = ROWS + 8;
  HYPERSEG_DEVICE static int place(int row, int k) { return k * kStride + row; }
};

// Accumulators of one warp: fragments of tensor cores.
template <typename T, int M, int N, typename A = RowMajor<kDepth>, typename B = RowMajor<kDepth>>
class MmaAccumulators {
 public:
  // Rows and columns from the given numbers on are not needed; most of them are skipped.
  HYPERSEG_DEVICE void add(const T* a, const T* b, int steps, int rows = M, int columns = N) {
    static_assert(A::kStride % 16 == 8 && B::kStride % 16 == 8);
    if (row() >= rows) return;
    if (kAcross > 4 && columns <= kFew * 16)
      add_some<kFew>(a, b, steps);
    else
      add_some<kAcross>(a, b, steps);
  }
  template <typename Store>
  HYPERSEG_DEVICE void store(const Store& store) const {
    store_pairs([&](int row, int column, float first, float second) {
      store(row, column, first);
      store(row, column + 1, second);
    });
  }
  // Call store(row, even column, its value, the next column's value); columns as for add.
  template <typename Store>
  HYPERSEG_DEVICE void store_pairs(const Store& store, int columns = N) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kDown; ++i)
#pragma unroll
      for (int j = 0; j < 2 * kAcross; ++j) {
        if (column() + 8 * j >= columns) break;
#pragma unroll
        for (int e = 0; e < 4; e += 2)
          store(row() + 16 * i + lane / 4 + e / 2 * 8, column() + 8 * j + lane % 4 * 2, sums_[i][j][e],
                sums_[i][j][e + 1]);
      }
  }

 private:
  // How the four warps divide a tile.
  static constexpr int kWarpsAcross = M == 16 ? 4 : N == 64 ? 2 : 1, kWarpsDown = 4 / kWarpsAcross;
  static constexpr int kDown = M / kWarpsDown / 16, kAcross = N / kWarpsAcross / 16, kFew = kAcross < 3 ? kAcross : 3;
  static constexpr int kUnrolled = kAcross > 1 ? 1 : 2;  // the accumulators of a large tile leave few registers
  HYPERSEG_DEVICE static int row() { return threadIdx.x / 32 / kWarpsAcross * (M / kWarpsDown); }
  HYPERSEG_DEVICE static int column() { return threadIdx.x / 32 % kWarpsAcross * (N / kWarpsAcross); }

  template <int ACROSS>
  HYPERSEG_DEVICE void add_some(const T* a, const T* b, int steps) {
    const int lane = threadIdx.x % 32;
    // Four 8x8 matrices each: of a the upper and the lower rows, then the same rows 8 deeper; of b the first 8 columns,
    // the same 8 deeper, then the next 8 columns likewise.
    const int a_row = A::kTransposed ? lane / 8 % 2 * 8 : lane % 16;
    const int a_depth = A::kTransposed ? lane / 16 * 8 + lane % 8 : lane / 16 * 8;
    const int b_column = B::kTransposed ? lane / 16 * 8 : lane / 16 * 8 + lane % 8;
    const int b_depth = B::kTransposed ? lane / 8 % 2 * 8 + lane % 8 : lane / 8 % 2 * 8;
#pragma unroll kUnrolled
    for (int k = 0; k < steps; k += 16) {
      uint32_t left[kDown][4];
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
        const T* from = &a[A::place(row() + 16 * i + a_row, k + a_depth)];
        if constexpr (A::kTransposed)
          ldmatrix4_transposed(left[i], from);
        else
          ldmatrix4(left[i], from);
      }
#pragma unroll
      for (int j = 0; j < ACROSS; ++j) {
        uint32_t right[4];
        const T* from = &b[B::place(column() + 16 * j + b_column, k + b_depth)];
        if constexpr (B::kTransposed)
          ldmatrix4_transposed(right, from);
        else
          ldmatrix4(right, from);
#pragma unroll
        for (int i = 0; i < kDown; ++i) {
          mma16<T>(sums_[i][2 * j], left[i], right[0], right[1]);
          mma16<T>(sums_[i][2 * j + 1], left[i], right[2], right[3]);
        }
      }
    }
  }

  float sums_[kDown][2 * kAcross][4] = {};
};

}  // namespace mma_tile_detail

// Call store(m, n, sum over k of a(m, k) * b(n, k)) for all m < M and n < N; both in {16, 64}, and not both 16. For all
// kGemmThreads threads of the block. a and b return a T for every row, also outside the matrix, and any k below
// `depth`.
template <typename T, int M, int N, typename A, typename B, typename Store>
HYPERSEG_DEVICE void mma_tile(int depth, const A& a, bool a_along_depth, const B& b, bool b_along_depth,
                              const Store& store) {
  using namespace mma_tile_detail;
  T* left = reinterpret_cast<T*>(shared_memory());
  T* right = left + (std::is_same_v<T, float> ? kDepth * (M + 1) : M * kRow);
  std::conditional_t<std::is_same_v<T, float>, SimtAccumulators<M, N>, MmaAccumulators<T, M, N>> sums;
  constexpr int kAhead = M + N < 128 ? 8 : 4;  // the accumulators of a large tile leave fewer registers
  for (int first = 0; first < depth; first += kDepth) {
    const int steps = min(kDepth, depth - first);
    if (first > 0) sync_block();
    fill<T, M, kAhead>(left, a, first, steps, a_along_depth);
    fill<T, N, kAhead>(right, b, first, steps, b_along_depth);
    sync_block();
    sums.add(left, right, steps);
  }
  sums.store(store);
}

template <typename T, int M, int N>
HYPERSEG_HOST_DEVICE constexpr size_t mma_tile_bytes() {
  using namespace mma_tile_detail;
  return std::is_same_v<T, float> ? kDepth * (M + N + 2) * sizeof(float) : (M + N) * kRow * sizeof(T);
}

// Call body(M, N as integral constants) with the tile for matrices of that many rows and columns.
template <typename Body>
void with_tile(int64_t rows, int64_t columns, Body&& body) {
  using Few = std::integral_constant<int, 16>;
  using Many = std::integral_constant<int, 64>;
  if (rows <= 16) return body(Few{}, Many{});
  if (columns <= 16) return body(Many{}, Few{});
  body(Many{}, Many{});
}

}  // namespace hyperseg::cuda
