#include "cuda/training/generate_weights_backward.h"

#include <algorithm>

#include "cuda/device/launch.cuh"
#include "cuda/device/mma_tile.cuh"

// The GEMMs of all generators and groups are divided into tiles with consecutive numbers, and one launch computes them.
namespace hyperseg::cuda {
namespace {

constexpr char kName[] = "generate_weights_backward";
constexpr int kThreads = 256;
constexpr int64_t kBlocks = 1024;       // enough to keep a GPU busy
constexpr int64_t kLeastPatches = 256;  // minimum patches per block where the sum is split

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

HYPERSEG_HOST_DEVICE int64_t tiles_of(int64_t size, int tile) { return (size + tile - 1) / tile; }

template <int M, int N>
struct GeneratorTiles {
  HYPERSEG_HOST_DEVICE int64_t operator()(const GeneratorArgs& g) const {
    return g.groups * tiles_of(g.rows, M) * tiles_of(g.width, N);
  }
};

// How the sum over patches is split: patches per block, and number of parts.
struct Split {
  int patches, parts;
};

// gradient[r, k] = sum over p of grad[p, start + r] * signal[p, offset + group(r) * width + k], p in order. Where it is
// split, sums go to `partial` [parts, values of all generators].
template <typename T, int M, int N>
HYPERSEG_KERNEL(kGemmThreads, 4)
generator_gradients_kernel(GenerationBackward problem, Generators generators, Split split, int64_t values,
                           float* partial) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int part = static_cast<int>(blockIdx.x % split.parts);
  int64_t tile = blockIdx.x / split.parts, before = 0;
  const int index = generator_of(generators, tile, GeneratorTiles<M, N>{});
  for (int i = 0; i < index; ++i)
    before += static_cast<int64_t>(generators.list[i].channels()) * generators.list[i].rows;
  const DifferentiatedGenerator& g = generators.list[index];
  const int across = static_cast<int>(tiles_of(g.width, N)), down = static_cast<int>(tiles_of(g.rows, M));
  const int column = static_cast<int>(tile % across) * N, row = static_cast<int>(tile / across % down) * M;
  const int group = static_cast<int>(tile / across / down);
  const int first = part * split.patches;
  const int depth = min(split.patches, static_cast<int>(problem.patches) - first);
  const Map<const void>&grad = problem.grad, &signal = problem.signal;
  const T* pulled = static_cast<const T*>(grad.data) + g.start * grad.stride_w;
  const T* channels = static_cast<const T*>(signal.data) + (g.offset + group * g.width) * signal.stride_c;
  const T zero = from_float<T>(0.0f);

  const auto pull = [&](int m, int p) {
    const int r = group * g.rows + row + m;
    if (row + m >= g.rows || r >= g.size) return zero;  // the gradients of unused rows are 0
    const int64_t patch = patch_offset(problem, first + p, grad.stride_n, grad.stride_c, grad.stride_h);
    return pulled[r * grad.stride_w + patch];
  };
  const auto read = [&](int n, int p) {
    const int k = column + n;
    if (k >= g.width) return zero;
    const int64_t patch = patch_offset(problem, first + p, signal.stride_n, signal.stride_h, signal.stride_w);
    return channels[k * signal.stride_c + patch];
  };
  const auto store = [&](int m, int n, float sum) {
    const int k = column + n;
    if (row + m >= g.rows || k >= g.width) return;
    const int64_t place = static_cast<int64_t>(group * g.rows + row + m) * g.width + k;
    if (split.parts == 1)
      static_cast<T*>(g.gradient)[place] = from_float<T>(sum);
    else
      partial[part * values + before + place] = sum;
  };
  mma_tile<T, M, N>(depth, pull, grad.stride_w != 1, read, signal.stride_c != 1, store);
}

template <typename T>
HYPERSEG_KERNEL(kThreads, 1)
add_parts_kernel(Generators generators, int parts, int64_t values, const float* partial) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t value = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (value >= values) return;
  float sum = 0.0f;
  for (int part = 0; part < parts; ++part) sum += partial[part * values + value];
  int64_t place = value;
  const int index = generator_of(generators, place,
                                 [](const GeneratorArgs& g) { return static_cast<int64_t>(g.channels()) * g.rows; });
  static_cast<T*>(generators.list[index].gradient)[place] = from_float<T>(sum);
}

template <int M>
struct ChannelTiles {
  HYPERSEG_HOST_DEVICE int64_t operator()(const GeneratorArgs& g) const { return g.groups * tiles_of(g.width, M); }
};

// parts[channel, p] = sum over the rows r of its group of grad[p, start + r] * generator[r, k]; first the channels that
// the first generator reads, then those of the second and so on.
template <typename T, int M, int N>
HYPERSEG_KERNEL(kGemmThreads, 4)
passed_back_kernel(GenerationBackward problem, Generators generators, float* parts) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int patches = static_cast<int>(problem.patches), across = static_cast<int>(tiles_of(patches, N));
  const int column = static_cast<int>(blockIdx.x % across) * N;
  int64_t tile = blockIdx.x / across, before = 0;
  const int index = generator_of(generators, tile, ChannelTiles<M>{});
  for (int i = 0; i < index; ++i) before += generators.list[i].channels();
  const DifferentiatedGenerator& g = generators.list[index];
  const int down = static_cast<int>(tiles_of(g.width, M));
  const int row = static_cast<int>(tile % down) * M, group = static_cast<int>(tile / down);
  const int first = group * g.rows;
  const int depth = max(0, min(g.rows, g.size - first));
  const Map<const void>& grad = problem.grad;
  const T* values = static_cast<const T*>(g.data) + first * g.stride_row;
  const T* pulled = static_cast<const T*>(grad.data) + (g.start + first) * grad.stride_w;
  const T zero = from_float<T>(0.0f);

  const auto weight = [&](int m, int r) {
    const int k = row + m;
    return k < g.width ? values[r * g.stride_row + k * g.stride_column] : zero;
  };
  const auto pull = [&](int n, int r) {
    const int p = column + n;
    if (p >= patches) return zero;
    return pulled[patch_offset(problem, p, grad.stride_n, grad.stride_c, grad.stride_h) + r * grad.stride_w];
  };
  const auto store = [&](int m, int n, float sum) {
    const int k = row + m, p = column + n;
    if (k < g.width && p < patches) parts[(before + group * g.width + k) * problem.patches + p] = sum;
  };
  mma_tile<T, M, N>(depth, weight, g.stride_column != 1, pull, grad.stride_w == 1, store);
}

// d_signal[n, c, pixel] = sum of the parts of the generators that read channel c, in order.
template <typename T>
HYPERSEG_KERNEL(kThreads, 1)
signal_gradient_kernel(GenerationBackward problem, Generators generators, const float* parts, SignalGradient result) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t value = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (value >= problem.patches * problem.signal.channels) return;
  const int64_t plane = value / problem.area.value(), n = plane / problem.signal.channels;
  const int64_t c = plane - n * problem.signal.channels;
  const int64_t p = n * problem.area.value() + (value - plane * problem.area.value());
  float sum = result.first ? 0.0f : result.sum[value];
  for (int i = 0; i < generators.count; ++i) {
    const GeneratorArgs& g = generators.list[i];
    const int64_t channel = c - g.offset;
    if (channel >= 0 && channel < g.channels()) sum += parts[channel * problem.patches + p];
    parts += g.channels() * problem.patches;
  }
  if (result.last)
    static_cast<T*>(result.d_signal)[value] = from_float<T>(sum);
  else
    result.sum[value] = sum;
}

template <typename Count>
int64_t total(const Generators& generators, const Count& count) {
  int64_t sum = 0;
  for (int i = 0; i < generators.count; ++i) sum += count(generators.list[i]);
  return sum;
}

template <typename Size>
int64_t largest(const Generators& generators, const Size& size) {
  int64_t most = 0;
  for (int i = 0; i < generators.count; ++i) most = std::max<int64_t>(most, size(generators.list[i]));
  return most;
}

int64_t rows_of(const GeneratorArgs& g) { return g.rows; }
int64_t width_of(const GeneratorArgs& g) { return g.width; }
int64_t values_of(const GeneratorArgs& g) { return g.count(); }

// Call body(M, N) with the tile size of the generators' gradients; also chooses how the sum over patches is split.
template <typename Body>
void with_split(const GenerationBackward& problem, const Generators& generators, Body&& body) {
  with_tile(largest(generators, rows_of), largest(generators, width_of), [&](auto m, auto n) {
    const int64_t tiles = total(generators, GeneratorTiles<m.value, n.value>{});
    const int64_t needed = std::max<int64_t>(1, kBlocks / tiles);
    const int64_t most = std::max(problem.patches / needed, kLeastPatches);
    const int64_t patches = std::min(problem.patches, (most + 31) / 32 * 32);
    body(m, n, tiles, Split{static_cast<int>(patches), static_cast<int>(tiles_of(problem.patches, patches))});
  });
}

}  // namespace

int64_t partial_sums(const GenerationBackward& problem, const Generators& generators) {
  int64_t sums = 0;
  with_split(problem, generators, [&](auto, auto, int64_t, const Split& split) {
    if (split.parts > 1) sums = split.parts * total(generators, values_of);
  });
  return sums;
}

void generator_gradients(const GenerationBackward& problem, const Generators& generators, float* partial,
                         Stream stream) {
  const int64_t values = total(generators, values_of);
  with_type(problem.type, [&](auto value) {
    using T = decltype(value);
    with_split(problem, generators, [&](auto m, auto n, int64_t tiles, const Split& split) {
      constexpr int M = m.value, N = n.value;
      launch<generator_gradients_kernel<T, M, N>>(kName, grid_of(kName, tiles * split.parts), kGemmThreads,
                                                  mma_tile_bytes<T, M, N>(), stream, problem, generators, split, values,
                                                  partial);
      if (split.parts > 1)
        launch<add_parts_kernel<T>>(kName, grid_of(kName, tiles_of(values, kThreads)), kThreads, 0, stream, generators,
                                    split.parts, values, partial);
    });
  });
}

int64_t passed_values(const GenerationBackward& problem, const Generators& generators) {
  return problem.patches * total(generators, [](const GeneratorArgs& g) { return int64_t{g.channels()}; });
}

void signal_gradient(const GenerationBackward& problem, const Generators& generators, float* parts,
                     const SignalGradient& result, Stream stream) {
  with_type(problem.type, [&](auto value) {
    using T = decltype(value);
    with_tile(largest(generators, width_of), problem.patches, [&](auto m, auto n) {
      constexpr int M = m.value, N = n.value;
      const int64_t tiles = total(generators, ChannelTiles<M>{}) * tiles_of(problem.patches, N);
      launch<passed_back_kernel<T, M, N>>(kName, grid_of(kName, tiles), kGemmThreads, mma_tile_bytes<T, M, N>(), stream,
                                          problem, generators, parts);
    });
    const int64_t values = problem.patches * problem.signal.channels;
    launch<signal_gradient_kernel<T>>(kName, grid_of(kName, tiles_of(values, kThreads)), kThreads, 0, stream, problem,
                                      generators, parts, result);
  });
}

}  // namespace hyperseg::cuda
