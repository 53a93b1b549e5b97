#include <algorithm>

#include "cuda/device/launch.cuh"
#include "cuda/device/mma_tile.cuh"
#include "cuda/training/generate_weights_bwd.cuh"
#include "cuda/training/row_layout.cuh"

namespace hyperseg::cuda {
namespace {

constexpr int M = 64, N = 80, K = 64;  // a tile, and its depth in shared memory at once
constexpr int64_t kBlocks = 1024;      // enough to keep a GPU busy

// How a patch's gradients are read. Aligned: eight parameters from a multiple of eight on are one load; tiles then
// begin at one, before the first row of their group.
struct GradLayout {
  bool aligned;
  int stride;      // between parameters
  int parameters;  // of a patch

  HYPERSEG_HOST_DEVICE int before(int64_t first) const { return aligned ? static_cast<int>(first % 8) : 0; }
  HYPERSEG_HOST_DEVICE int most_before() const { return aligned ? 7 : 0; }
};

struct GradientTiles {
  GradLayout layout;
  HYPERSEG_HOST_DEVICE int64_t operator()(const GeneratorArgs& g) const {
    return g.groups * tiles_of(g.rows + layout.most_before(), M) * tiles_of(g.width, N);
  }
};

template <typename T>
struct GradientShared {
  using Left = mma_tile_detail::DepthMajor<M>;
  using Right = mma_tile_detail::DepthMajor<N>;
  static constexpr int kRightAt = K * Left::kStride, kOffsetsAt = kRightAt + K * Right::kStride;  // in values
  static constexpr size_t kBytes = kOffsetsAt * sizeof(T) + 2 * K * sizeof(int64_t);
};

// gradient[r, k] = sum over p of grad[p, start + r] * signal[p, offset + group(r) * width + k], p in order.
template <typename T>
HYPERSEG_KERNEL(kGemmThreads, 4)
generator_gradients_mma_kernel(GenerationBackward problem, Generators generators, GradLayout layout, int signal_stride,
                               Split split, int64_t values, float* partial) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  using namespace mma_tile_detail;
  using Shared = GradientShared<T>;
  const int thread = threadIdx.x, part = static_cast<int>(blockIdx.x % split.parts);
  int64_t tile = blockIdx.x / split.parts, before = 0;
  const int index = generator_of(generators, tile, GradientTiles{layout});
  for (int i = 0; i < index; ++i)
    before += static_cast<int64_t>(generators.list[i].channels()) * generators.list[i].rows;
  const DifferentiatedGenerator& g = generators.list[index];
  const int across = static_cast<int>(tiles_of(g.width, N));
  const int down = static_cast<int>(tiles_of(g.rows + layout.most_before(), M));
  const int column = static_cast<int>(tile % across) * N, group = static_cast<int>(tile / across / down);
  const int64_t first_parameter = g.start + static_cast<int64_t>(group) * g.rows;
  const int row = static_cast<int>(tile / across % down) * M - layout.before(first_parameter);  // in the group
  const int known = static_cast<int>(min(int64_t{M}, layout.parameters - (first_parameter + row)));
  const int rows = min(M, g.rows - row), columns = min(N, g.width - column);
  if (rows <= 0) return;
  const Map<const void>&grad = problem.grad, &signal = problem.signal;
  const T* pulled = static_cast<const T*>(grad.data) + (first_parameter + row) * layout.stride;
  const T* channels =
      static_cast<const T*>(signal.data) + static_cast<int64_t>(g.offset + group * g.width + column) * signal_stride;
  T *left = reinterpret_cast<T*>(shared_memory()), *right = left + Shared::kRightAt;
  int64_t *of_left = reinterpret_cast<int64_t*>(left + Shared::kOffsetsAt), *of_right = of_left + K;

  MmaAccumulators<T, M, N, typename Shared::Left, typename Shared::Right> sums;
  const int begin = part * split.patches, end = min(begin + split.patches, static_cast<int>(problem.patches));
  for (int first = begin; first < end; first += K) {
    const int steps = min(K, end - first), depth = (steps + 15) / 16 * 16, k = thread % K;
    if (first > begin) sync_block();
    if (k < steps) {
      if (thread < K)
        of_left[k] = patch_offset(problem, first + k, grad.stride_n, grad.stride_c, grad.stride_h);
      else
        of_right[k] = patch_offset(problem, first + k, signal.stride_n, signal.stride_h, signal.stride_w);
    }
    sync_block();
    stage_vectors<kGemmThreads, Shared::Left::kStride, true>(
        left, depth, steps, (rows + 7) / 8, max(known, 0), layout.stride, layout.aligned,
        [&](int p) { return pulled + of_left[p]; }, Identity{});
    stage_vectors<kGemmThreads, Shared::Right::kStride, false>(
        right, depth, steps, (columns + 7) / 8, columns, signal_stride, false,
        [&](int p) { return channels + of_right[p]; }, Identity{});
    sync_block();
    sums.add(left, right, steps, rows, columns);
  }
  sums.store([&](int m, int n, float sum) {
    if (row + m < 0 || m >= rows || n >= columns) return;
    const int r = group * g.rows + row + m;
    const int64_t place = static_cast<int64_t>(r) * g.width + column + n;
    if (r >= g.size) sum = 0.0f;  // the gradients of unused rows
    if (split.parts == 1)
      static_cast<T*>(g.gradient)[place] = from_float<T>(sum);
    else
      partial[part * values + before + place] = sum;
  });
}

struct SignalTiles {
  HYPERSEG_HOST_DEVICE int64_t operator()(const GeneratorArgs& g) const { return g.groups * tiles_of(g.width, N); }
};

template <typename T>
struct SignalShared {
  using Left = mma_tile_detail::RowMajor<K>;
  using Right = mma_tile_detail::DepthMajor<N>;
  static constexpr int kRightAt = M * Left::kStride, kOffsetsAt = kRightAt + K * Right::kStride;  // in values
  static constexpr size_t kBytes = kOffsetsAt * sizeof(T) + M * sizeof(int64_t);
};

// parts[channel, p] = sum over the rows r of its group of grad[p, start + r] * generator[r, k]; first the channels that
// the first generator reads, then those of the second and so on.
template <typename T>
HYPERSEG_KERNEL(kGemmThreads, 4)
passed_back_mma_kernel(GenerationBackward problem, Generators generators, GradLayout layout, float* parts) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  using namespace mma_tile_detail;
  using Shared = SignalShared<T>;
  const int thread = threadIdx.x, patches = static_cast<int>(problem.patches);
  const int down = static_cast<int>(tiles_of(patches, M)), first_patch = static_cast<int>(blockIdx.x % down) * M;
  int64_t tile = blockIdx.x / down, before = 0;
  const int index = generator_of(generators, tile, SignalTiles{});
  for (int i = 0; i < index; ++i) before += generators.list[i].channels();
  const DifferentiatedGenerator& g = generators.list[index];
  const int across = static_cast<int>(tiles_of(g.width, N));
  const int column = static_cast<int>(tile % across) * N, group = static_cast<int>(tile / across);
  const int count = min(M, patches - first_patch), columns = min(N, g.width - column);
  const int64_t first_row = static_cast<int64_t>(group) * g.rows;
  const int rows = static_cast<int>(max(int64_t{0}, min(int64_t{g.rows}, g.size - first_row)));
  const int begin = -layout.before(g.start + first_row);
  const Map<const void>& grad = problem.grad;
  const T* pulled = static_cast<const T*>(grad.data) + (g.start + first_row) * layout.stride;
  const T* matrix = static_cast<const T*>(g.data) + first_row * g.stride_row + column * g.stride_column;
  T *left = reinterpret_cast<T*>(shared_memory()), *right = left + Shared::kRightAt;
  int64_t* offsets = reinterpret_cast<int64_t*>(left + Shared::kOffsetsAt);
  if (thread < count)
    offsets[thread] = patch_offset(problem, first_patch + thread, grad.stride_n, grad.stride_c, grad.stride_h);

  MmaAccumulators<T, M, N, typename Shared::Left, typename Shared::Right> sums;
  for (int first = begin; first < rows; first += K) {
    const int steps = min(K, rows - first), depth = (steps + 15) / 16 * 16;
    sync_block();
    const T* from = pulled + static_cast<int64_t>(first) * layout.stride;
    // Parameters of other groups, in the first and the last vector of the group, become 0.
    const auto own = [&](uint4 v, int r) {
      if (first + r >= 0 && r + 8 <= steps) return v;
      const auto keep = [&](uint32_t two, int i) {
        const bool low = first + r + i >= 0 && r + i < steps, high = first + r + i + 1 >= 0 && r + i + 1 < steps;
        return (low ? two & 0xffffu : 0u) | (high ? two & 0xffff0000u : 0u);
      };
      return uint4{keep(v.x, 0), keep(v.y, 2), keep(v.z, 4), keep(v.w, 6)};
    };
    stage_vectors<kGemmThreads, Shared::Left::kStride, true>(
        left, count, count, depth / 8, steps, layout.stride, layout.aligned, [&](int p) { return from + offsets[p]; },
        own);
    stage_vectors<kGemmThreads, Shared::Right::kStride, false>(
        right, depth, steps, (columns + 7) / 8, columns, static_cast<int>(g.stride_column), false,
        [&](int r) { return matrix + max(first + r, 0) * g.stride_row; }, Identity{});
    sync_block();
    sums.add(left, right, steps, count, columns);
  }
  float* out = parts + (before + group * g.width + column) * problem.patches + first_patch;
  sums.store([&](int m, int n, float sum) {
    if (m < count && n < columns) out[n * problem.patches + m] = sum;
  });
}

GradLayout layout_of(const GenerationBackward& problem, const char* op) {
  const Map<const void>& grad = problem.grad;
  const int64_t strides = grad.stride_n | grad.stride_c | grad.stride_h | grad.width;
  return {grad.stride_w == 1 && strides % 8 == 0 && reinterpret_cast<uintptr_t>(grad.data) % 16 == 0,
          stride_of(op, grad.stride_w), stride_of(op, grad.width)};
}

}  // namespace

bool by_mma(const GenerationBackward& problem) { return problem.type != Type::kFloat; }

Split split_of_mma(const GenerationBackward& problem, const Generators& generators) {
  const int64_t tiles = total(generators, GradientTiles{layout_of(problem, "generate_weights_backward")});
  const int64_t most = std::max<int64_t>(problem.patches / std::max<int64_t>(1, kBlocks / tiles), 4 * K);
  const int64_t patches = std::min(problem.patches, (most + K - 1) / K * K);
  return {static_cast<int>(patches), static_cast<int>(tiles_of(problem.patches, static_cast<int>(patches)))};
}

void generator_gradients_mma(const GenerationBackward& problem, const Generators& generators, const Split& split,
                             int64_t values, float* partial, const char* op, Stream stream) {
  const GradLayout layout = layout_of(problem, op);
  const int64_t tiles = total(generators, GradientTiles{layout});
  with_16_bit_type(problem.type, [&](auto value) {
    using T = decltype(value);
    launch<generator_gradients_mma_kernel<T>>(op, grid_of(op, tiles * split.parts), kGemmThreads,
                                              GradientShared<T>::kBytes, stream, problem, generators, layout,
                                              stride_of(op, problem.signal.stride_c), split, values, partial);
  });
}

void passed_back_mma(const GenerationBackward& problem, const Generators& generators, float* parts, const char* op,
                     Stream stream) {
  const int64_t tiles = total(generators, SignalTiles{}) * tiles_of(problem.patches, M);
  with_16_bit_type(problem.type, [&](auto value) {
    using T = decltype(value);
    launch<passed_back_mma_kernel<T>>(op, grid_of(op, tiles), kGemmThreads, SignalShared<T>::kBytes, stream, problem,
                                      generators, layout_of(problem, op), parts);
  });
}

}  // namespace hyperseg::cuda
