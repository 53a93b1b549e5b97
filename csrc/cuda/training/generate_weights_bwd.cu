#include <algorithm>
#include <type_traits>

#include "cuda/device/launch.cuh"
#include "cuda/device/mma_tile.cuh"
#include "cuda/device/vectors.cuh"
#include "cuda/training/generate_weights_bwd.cuh"

namespace hyperseg::cuda {
namespace {

constexpr char kName[] = "generate_weights_backward";
constexpr int kThreads = 256;
constexpr int64_t kBlocks = 1024;       // enough to keep a GPU busy
constexpr int64_t kLeastPatches = 256;  // minimum patches per block where the sum is split

template <int M, int N>
struct GeneratorTiles {
  HYPERSEG_HOST_DEVICE int64_t operator()(const GeneratorArgs& g) const {
    return g.groups * tiles_of(g.rows, M) * tiles_of(g.width, N);
  }
};

// gradient[r, k] = sum over p of grad[p, start + r] * signal[p, offset + group(r) * width + k], p in order. Where it is
// split, sums go to `partial` [parts, values of all generators].
template <typename T, int M, int N>
HYPERSEG_KERNEL(kGemmThreads, 4)
generator_gradients_simt_kernel(GenerationBackward problem, Generators generators, Split split, int64_t values,
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
passed_back_simt_kernel(GenerationBackward problem, Generators generators, float* parts) {
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

// The signal's channels of all images, and the blocks that each takes.
struct SignalPlanes {
  FastDivmod channels, blocks;

  SignalPlanes(const GenerationBackward& problem, int values)
      : channels(problem.signal.channels), blocks(tiles_of(problem.area.value(), values * kThreads)) {}
  int64_t count(const GenerationBackward& problem) const {
    return problem.patches / problem.area.value() * channels.value() * blocks.value();
  }
};

// d_signal[n, c, pixel] = sum of the parts of the generators that read channel c, in order. A thread has VALUES pixels,
// one or, where an image has a multiple of it, eight.
template <typename T, int VALUES>
HYPERSEG_KERNEL(kThreads, 1)
signal_gradient_kernel(GenerationBackward problem, Generators generators, const float* parts, SignalPlanes planes,
                       SignalGradient result) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int block = static_cast<int>(blockIdx.x), plane = planes.blocks.quotient(block);
  const int pixel = ((block - plane * planes.blocks.value()) * kThreads + static_cast<int>(threadIdx.x)) * VALUES;
  if (pixel >= problem.area.value()) return;
  const int n = planes.channels.quotient(plane), c = plane - n * planes.channels.value();
  const int64_t p = static_cast<int64_t>(n) * problem.area.value() + pixel;
  const int64_t place = static_cast<int64_t>(plane) * problem.area.value() + pixel;
  float sums[8] = {};
  const auto add = [&](const float* from) {
    if constexpr (VALUES == 8) {
      float v[8];
      load8(from, v);
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[i] += v[i];
    } else {
      sums[0] += *from;
    }
  };
  if (!result.first) add(result.sum + place);
  for (int i = 0; i < generators.count; ++i) {
    const GeneratorArgs& g = generators.list[i];
    const int channel = c - g.offset;
    if (channel >= 0 && channel < g.channels()) add(parts + channel * problem.patches + p);
    parts += g.channels() * problem.patches;
  }
  const auto write = [&](auto* to) {
    using V = std::remove_pointer_t<decltype(to)>;
    if constexpr (VALUES == 8)
      store8(to + place, sums);
    else
      to[place] = from_float<V>(sums[0]);
  };
  if (result.last)
    write(static_cast<T*>(result.d_signal));
  else
    write(result.sum);
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
  const auto sums = [&](const Split& split) {
    return split.parts > 1 ? split.parts * total(generators, values_of) : 0;
  };
  if (by_mma(problem)) return sums(split_of_mma(problem, generators));
  int64_t count = 0;
  with_split(problem, generators, [&](auto, auto, int64_t, const Split& split) { count = sums(split); });
  return count;
}

void generator_gradients(const GenerationBackward& problem, const Generators& generators, float* partial,
                         Stream stream) {
  const int64_t values = total(generators, values_of);
  int parts = 1;
  if (by_mma(problem)) {
    const Split split = split_of_mma(problem, generators);
    parts = split.parts;
    generator_gradients_mma(problem, generators, split, values, partial, kName, stream);
  } else {
    with_split(problem, generators, [&](auto m, auto n, int64_t tiles, const Split& split) {
      constexpr int M = m.value, N = n.value;
      parts = split.parts;
      launch<generator_gradients_simt_kernel<float, M, N>>(kName, grid_of(kName, tiles * split.parts), kGemmThreads,
                                                           mma_tile_bytes<float, M, N>(), stream, problem, generators,
                                                           split, values, partial);
    });
  }
  if (parts == 1) return;
  with_type(problem.type, [&](auto value) {
    using T = decltype(value);
    launch<add_parts_kernel<T>>(kName, grid_of(kName, tiles_of(values, kThreads)), kThreads, 0, stream, generators,
                                parts, values, partial);
  });
}

int64_t passed_values(const GenerationBackward& problem, const Generators& generators) {
  return problem.patches * total(generators, [](const GeneratorArgs& g) { return int64_t{g.channels()}; });
}

void signal_gradient(const GenerationBackward& problem, const Generators& generators, float* parts,
                     const SignalGradient& result, Stream stream) {
  if (by_mma(problem)) {
    passed_back_mma(problem, generators, parts, kName, stream);
  } else {
    with_tile(largest(generators, width_of), problem.patches, [&](auto m, auto n) {
      constexpr int M = m.value, N = n.value;
      const int64_t tiles = total(generators, ChannelTiles<M>{}) * tiles_of(problem.patches, N);
      launch<passed_back_simt_kernel<float, M, N>>(kName, grid_of(kName, tiles), kGemmThreads,
                                                   mma_tile_bytes<float, M, N>(), stream, problem, generators, parts);
    });
  }
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const bool wide = problem.area.value() % 8 == 0 && aligned(parts) && aligned(result.sum) && aligned(result.d_signal);
  const SignalPlanes planes(problem, wide ? 8 : 1);
  with_type(problem.type, [&](auto value) {
    using T = decltype(value);
    const auto run = [&](auto values) {
      launch<signal_gradient_kernel<T, values.value>>(kName, grid_of(kName, planes.count(problem)), kThreads, 0, stream,
                                                      problem, generators, parts, planes, result);
    };
    wide ? run(std::integral_constant<int, 8>{}) : run(std::integral_constant<int, 1>{});
  });
}

}  // namespace hyperseg::cuda
