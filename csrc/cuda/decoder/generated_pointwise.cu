#include "cuda/decoder/generated_pointwise.h"

#include <algorithm>
#include <type_traits>

#include "cuda/decoder/level.cuh"
#include "cuda/decoder/patch_grid.cuh"
#include "cuda/device/launch.cuh"
#include "cuda/device/vectors.cuh"

// A 1x1 level whose weights exist only in registers. A block computes 16 patches, 1, 2 or 4 pixels of each, and two
// outputs per warp. For an output, a warp generates eight weights per patch at a time by MMA, signal [16, width] x
// generator rows [width, 8], multiplies them by the eight inputs they belong to, and accumulates. The accumulator
// layout gives a lane the weights of two patches for two inputs.
namespace hyperseg::cuda {
namespace {

constexpr int kPatches = 16, kWarpOutputs = 2, kMaxWarps = 8, kMinWarps = 2;
constexpr int kMaxWidth = 48, kDeep = kMaxWidth / 16;  // signal channels per group, kept in registers
constexpr int kMaxPixels = 16;                         // of a patch: each few of them generate its weights anew
constexpr int kBlocks = 132;                           // of a grid, where possible: the SMs of an H100
constexpr int64_t kMaxBytes = 99 << 10;  // bytes of shared memory per block that every GPU since sm_80 has

// The input in shared memory, in float: eight channels of each pixel of the block, then the next eight. The eight
// floats between them put the vectors of a pixel in different banks.
template <int PIXELS>
struct InputLayout {
  static constexpr int kRows = PIXELS * kPatches, kChunk = kRows * 8 + 8;
};

// Distances in a map of less than 2^31 values.
struct Steps {
  int n, y, x;
  template <typename T>
  HYPERSEG_DEVICE T* at(T* data, int n_, int y_, int x_) const {
    return data + (static_cast<int64_t>(n_) * n + static_cast<int64_t>(y_) * y + static_cast<int64_t>(x_) * x);
  }
};

struct GeneratedPointwiseArgs {
  GeneratorArgs generator;
  PatchGrid grid;
  Steps skip, previous, out;
  FastDivmod patch_w, width, outputs_of_group;
  int patches, pixels;        // of all images; of a patch
  int first, chunks;          // channels in shared memory: zeros before the first, to align vectors; 8-element chunks
  int biases, results, rows;  // where shared memory has biases, sums, and generator rows, in bytes
  int pixel_threads;          // log2
  int previous_unit, skip_unit;  // channels loaded at once: 8 or 1; 8, 4, 2 or 1
  int signal_unit;               // 4, 2 or 1; 0 if the channels are not contiguous
  bool dense;                    // the generator is one aligned piece of memory
  bool out_vectorized;           // four outputs of a pixel are one aligned store
};

// Copy the rows of some outputs to shared memory. Returns where the first one begins.
template <typename T>
HYPERSEG_DEVICE const T* copy_rows(const GeneratedPointwiseArgs& problem, int first_row, int count) {
  const GeneratorArgs& generator = problem.generator;
  const T* data = static_cast<const T*>(generator.data);
  T* rows = reinterpret_cast<T*>(shared_memory() + problem.rows);
  const int values = count * generator.width;
  if (!problem.dense) {
    for (int i = threadIdx.x; i < values; i += blockDim.x) {
      const int r = problem.width.quotient(i), k = i - r * generator.width;
      rows[i] = data[(first_row + r) * generator.stride_row + k * generator.stride_column];
    }
    return rows;
  }
  const int64_t begin = static_cast<int64_t>(first_row) * generator.width;
  const int before = static_cast<int>(begin % 8);
  data += begin - before;
#pragma unroll 4
  for (int i = threadIdx.x * 8; i < before + values; i += blockDim.x * 8) copy_async(rows + i, data + i, true);
  commit_copies();
  return rows + before;
}

// A lane's four signals of the 16 from `k` on; zeros beyond the group.
template <typename T>
HYPERSEG_DEVICE uint2 load_signals(const T* from, int64_t stride, int unit, int k, int width) {
  k += threadIdx.x % 4 * 4;
  if (unit == 4) return k < width ? *reinterpret_cast<const uint2*>(from + k) : uint2{0, 0};
  if (unit == 2) {
    const uint32_t* two = reinterpret_cast<const uint32_t*>(from + k);
    return {k < width ? two[0] : 0, k + 2 < width ? two[1] : 0};
  }
  const uint16_t* one = reinterpret_cast<const uint16_t*>(from);
  uint32_t v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = k + i >= width ? 0 : unit ? one[k + i] : one[(k + i) * stride];
  return {v[0] | v[1] << 16, v[2] | v[3] << 16};
}

// Those of the values at `from` that are in use: the lowest `count` of two.
HYPERSEG_DEVICE uint32_t mask_of(int count) { return count >= 2 ? 0xffffffffu : count == 1 ? 0xffffu : 0u; }

// Four adjacent values of a row; EVEN: aligned to two.
template <bool EVEN, typename T>
HYPERSEG_DEVICE uint2 load_row(const T* from) {
  const uint16_t* v = reinterpret_cast<const uint16_t*>(from);
  if constexpr (EVEN) return {reinterpret_cast<const uint32_t*>(v)[0], reinterpret_cast<const uint32_t*>(v)[1]};
  return {v[0] | static_cast<uint32_t>(v[1]) << 16, v[2] | static_cast<uint32_t>(v[3]) << 16};
}

// Writes the input of a pixel to shared memory, with other threads: zeros, coordinates, skip, previous, zeros.
template <typename T, int PIXELS>
class PixelWriter {
 public:
  HYPERSEG_DEVICE PixelWriter(const LevelInputView<T>& input, const GeneratedPointwiseArgs& problem, int row,
                              int thread, int n, int y, int x)
      : input_(input),
        problem_(problem),
        to_(reinterpret_cast<float*>(shared_memory()) + row * 8),
        thread_(thread),
        step_(1 << problem.pixel_threads),
        n_(n),
        y_(y),
        x_(x) {}

  HYPERSEG_DEVICE void write() const {
    if (!input_.previous) return write_rest();
    const int begin = problem_.first + 2 + static_cast<int>(input_.skip.channels);
    const int channels = static_cast<int>(input_.previous.channels);
    const Sample down = input_.row(y_), across = input_.column(x_);
    if (problem_.previous_unit != 8) {
      write_rest();
      for (int c = thread_; c < channels; c += step_) *at(begin + c) = input_.resized(n_, c, down, across);
      return;
    }
    const Steps& steps = problem_.previous;
    const T* left[2] = {steps.at(input_.previous.data, n_, down.low, across.low),
                        steps.at(input_.previous.data, n_, down.high, across.low)};
    const int right = (across.high - across.low) * steps.x;
    const float x = across.weight, y = down.weight;
    const float weights[2][2] = {{(1 - x) * (1 - y), x * (1 - y)}, {(1 - x) * y, x * y}};
    // Two vectors at a time, and the first two before the skip channels, so that many loads are in flight.
    uint4 corners[2][2][2];
    const auto load = [&](int first) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int c = first + i * 8 * step_;
        if (c >= channels) break;
#pragma unroll
        for (int below = 0; below < 2; ++below) {
          corners[i][below][0] = *reinterpret_cast<const uint4*>(left[below] + c);
          corners[i][below][1] = *reinterpret_cast<const uint4*>(left[below] + c + right);
        }
      }
    };
    load(thread_ * 8);
    write_rest();
    for (int first = thread_ * 8; first < channels; first += 16 * step_) {
      if (first >= 16 * step_) load(first);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int c = first + i * 8 * step_;
        if (c >= channels) break;
        blend(begin + c, corners[i], weights);
      }
    }
  }

 private:
  HYPERSEG_DEVICE void write_rest() const {
    const int begin = problem_.first + 2, channels = static_cast<int>(input_.skip.channels);
    const T* skip = problem_.skip.at(input_.skip.data, n_, y_, x_);
    if (problem_.skip_unit == 8) {
#pragma unroll 2
      for (int c = thread_ * 8; c < channels; c += step_ * 8) {
        const uint4 v = *reinterpret_cast<const uint4*>(skip + c);
        put4(begin + c, v.x, v.y);
        put4(begin + c + 4, v.z, v.w);
      }
    } else if (problem_.skip_unit == 4) {
#pragma unroll 2
      for (int c = thread_ * 4; c < channels; c += step_ * 4) {
        const uint2 v = *reinterpret_cast<const uint2*>(skip + c);
        put4(begin + c, v.x, v.y);
      }
    } else if (problem_.skip_unit == 2) {
#pragma unroll 2
      for (int c = thread_ * 2; c < channels; c += step_ * 2) store2(at(begin + c), load2(skip + c));
    } else {
#pragma unroll 2
      for (int c = thread_; c < channels; c += step_) *at(begin + c) = to_float(skip[c * input_.skip.stride_c]);
    }
    if (thread_ == 0) {
      const float x = input_.coordinate(0, y_, x_), y = input_.coordinate(1, y_, x_);
      if (problem_.first)
        *reinterpret_cast<float4*>(to_) = float4{0.0f, 0.0f, x, y};
      else
        store2(to_, float2{x, y});
    }
    for (int c = problem_.first + input_.channels + thread_; c < problem_.chunks * 8; c += step_) *at(c) = 0.0f;
  }

  HYPERSEG_DEVICE void blend(int channel, const uint4 (&corners)[2][2], const float (&weights)[2][2]) const {
    float sums[8];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        const float2 v = unpack<T>((&corners[corner / 2][corner % 2].x)[i]);
        const float weight = weights[corner / 2][corner % 2];
        sums[2 * i] = corner ? fmaf(v.x, weight, sums[2 * i]) : v.x * weight;
        sums[2 * i + 1] = corner ? fmaf(v.y, weight, sums[2 * i + 1]) : v.y * weight;
      }
    *reinterpret_cast<float4*>(at(channel)) = float4{sums[0], sums[1], sums[2], sums[3]};
    *reinterpret_cast<float4*>(at(channel + 4)) = float4{sums[4], sums[5], sums[6], sums[7]};
  }

  HYPERSEG_DEVICE float* at(int channel) const {
    return to_ + (channel >> 3) * InputLayout<PIXELS>::kChunk + (channel & 7);
  }
  HYPERSEG_DEVICE void put4(int channel, uint32_t low, uint32_t high) const {
    const float2 a = unpack<T>(low), b = unpack<T>(high);
    *reinterpret_cast<float4*>(at(channel)) = float4{a.x, a.y, b.x, b.y};
  }

  const LevelInputView<T>& input_;
  const GeneratedPointwiseArgs& problem_;
  float* to_;
  int thread_, step_, n_, y_, x_;
};

template <typename T, int PIXELS>
HYPERSEG_KERNEL(32 * kMaxWarps, 2)
generated_pointwise_kernel(LevelInputView<T> input, Map<const T> signal, Patches<T> shape,
                           GeneratedPointwiseArgs problem, Map<T> out) {
  using Layout = InputLayout<PIXELS>;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int thread = threadIdx.x, lane = thread % 32, group = lane / 4, pair = lane % 4, warp = warp_index();
  const int channels = input.channels, outputs = static_cast<int>(out.channels), width = problem.generator.width;
  const int block_outputs = blockDim.x / 32 * kWarpOutputs, first_output = blockIdx.y * block_outputs;
  const int results_stride = block_outputs + 4;
  const T* const rows =
      copy_rows<T>(problem, first_output * channels, min(block_outputs, outputs - first_output) * channels);
  float* const biases = reinterpret_cast<float*>(shared_memory() + problem.biases);
  if (thread < block_outputs) biases[thread] = shape.shift(min(first_output + thread, outputs - 1));

  // Outputs that do not exist repeat the last one.
  const int first_patch = blockIdx.x * kPatches, output = first_output + warp * kWarpOutputs;
  uint2 signals[kWarpOutputs][kDeep][2];
#pragma unroll
  for (int o = 0; o < kWarpOutputs; ++o) {
    const int of_group = problem.outputs_of_group.quotient(min(output + o, outputs - 1));
    if (o && of_group == problem.outputs_of_group.quotient(min(output, outputs - 1))) {
#pragma unroll
      for (int step = 0; step < kDeep; ++step)
#pragma unroll
        for (int below = 0; below < 2; ++below) signals[o][step][below] = signals[0][step][below];
      continue;
    }
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      const int patch = min(first_patch + group + below * 8, problem.patches - 1);
      const T* from = problem.grid.signal_of(signal, problem.generator.offset + of_group * width, patch);
#pragma unroll
      for (int step = 0; step < kDeep; ++step) {
        if (step * 16 >= width) break;
        signals[o][step][below] = load_signals(from, signal.stride_c, problem.signal_unit, step * 16, width);
      }
    }
  }

  // The threads of a pixel read its input, and in the end store four outputs each.
  const int row = thread >> problem.pixel_threads, part = thread - (row << problem.pixel_threads);
  const int patch = first_patch + row % kPatches, pixel = blockIdx.z * PIXELS + row / kPatches;
  const bool exists = patch < problem.patches && pixel < problem.pixels;
  const auto [n, gy, gx] = problem.grid.place(patch);
  const int down = problem.patch_w.quotient(pixel);
  const int y = gy * shape.patch_h + down, x = gx * shape.patch_w + pixel - down * shape.patch_w;
  if (exists) PixelWriter<T, PIXELS>(input, problem, row, part, n, y, x).write();
  wait_for_copies<0>();
  sync_block();

  float* const results = reinterpret_cast<float*>(shared_memory() + problem.results);
  if (output < outputs) {
    float sums[kWarpOutputs][2][PIXELS] = {};
    const T* first = rows + pair * 4 + (group - problem.first) * width;
    const T* from[kWarpOutputs];
#pragma unroll
    for (int o = 0; o < kWarpOutputs; ++o)
      from[o] = first + min(output + o, outputs - 1) * channels * width - first_output * channels * width;
    const float* value = reinterpret_cast<const float*>(shared_memory()) + group * 8 + pair * 2;
    const auto add_chunks = [&](auto steps, auto even) {
      uint2 masks[kDeep];
#pragma unroll
      for (int step = 0; step < decltype(steps)::value; ++step) {
        const int left = width - step * 16 - pair * 4;
        masks[step] = uint2{mask_of(left), mask_of(left - 2)};
      }
#pragma unroll 2
      for (int chunk = 0; chunk < problem.chunks; ++chunk) {
        const int c = chunk * 8 + group - problem.first;
        const uint32_t real = static_cast<unsigned>(c) < static_cast<unsigned>(channels) ? 0xffffffffu : 0u;
        float weights[kWarpOutputs][4] = {};
#pragma unroll
        for (int o = 0; o < kWarpOutputs; ++o) {
#pragma unroll
          for (int step = 0; step < decltype(steps)::value; ++step) {
            const uint2 b = load_row<decltype(even)::value>(from[o] + step * 16);
            const auto& a = signals[o][step];
            mma16<T>(weights[o], {a[0].x, a[1].x, a[0].y, a[1].y}, b.x & masks[step].x & real,
                     b.y & masks[step].y & real);
          }
          from[o] += 8 * width;
        }
#pragma unroll
        for (int pixel = 0; pixel < PIXELS; ++pixel)
#pragma unroll
          for (int below = 0; below < 2; ++below) {
            const float2 v = load2(value + (pixel * kPatches + below * 8) * 8);
#pragma unroll
            for (int o = 0; o < kWarpOutputs; ++o) {
              float& sum = sums[o][below][pixel];
              sum = fmaf(weights[o][below * 2], v.x, sum);
              sum = fmaf(weights[o][below * 2 + 1], v.y, sum);
            }
          }
        value += Layout::kChunk;
      }
    };
    const auto add_steps = [&](auto steps) {
      width % 2 == 0 ? add_chunks(steps, std::true_type{}) : add_chunks(steps, std::false_type{});
    };
    if (width <= 16)
      add_steps(std::integral_constant<int, 1>{});
    else if (width <= 32)
      add_steps(std::integral_constant<int, 2>{});
    else
      add_steps(std::integral_constant<int, 3>{});
    // Sums over the four lanes of a patch, each of which keeps those of one output and one of its two patches.
    float* const to = results + (group + pair / 2 * 8) * results_stride + warp * kWarpOutputs + pair % 2;
#pragma unroll
    for (int pixel = 0; pixel < PIXELS; ++pixel) {
      float kept[2];
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        const float a = sums[0][below][pixel], b = sums[1][below][pixel];
        kept[below] = (pair % 2 ? b : a) + shuffle_xor(pair % 2 ? a : b, 1);
      }
      to[pixel * kPatches * results_stride] =
          (pair / 2 ? kept[1] : kept[0]) + shuffle_xor(pair / 2 ? kept[0] : kept[1], 2);
    }
  }
  sync_block();
  const int stored = first_output + part * 4;
  if (!exists || part * 4 >= block_outputs || stored >= outputs) return;
  const float4 sum = *reinterpret_cast<const float4*>(results + row * results_stride + part * 4);
  const float4 bias = *reinterpret_cast<const float4*>(biases + part * 4);
  const float v[4] = {max_or_nan(sum.x + bias.x, 0.0f), max_or_nan(sum.y + bias.y, 0.0f),
                      max_or_nan(sum.z + bias.z, 0.0f), max_or_nan(sum.w + bias.w, 0.0f)};
  T* to = problem.out.at(out.data, n, y, x) + stored * out.stride_c;
  if (problem.out_vectorized) {
    *reinterpret_cast<uint2*>(to) = uint2{pack<T>(v[0], v[1]), pack<T>(v[2], v[3])};
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (stored + i < outputs) to[i * out.stride_c] = from_float<T>(v[i]);
}

// Return how many values of a pixel can be loaded at once, at most `most`, from channels that are multiples of `steps`.
template <typename S>
int values_at_once(const Map<S>& map, std::initializer_list<int64_t> steps, int size, int most) {
  const int unit = std::min(load_unit(map.data, map.stride_c, {map.stride_n, map.stride_h, map.stride_w}, size),
                            load_unit(nullptr, map.stride_c, steps, size));
  return std::max(std::min(unit / size, most), 1);
}

template <typename S>
bool steps_of(const Map<S>& map, Steps& steps) {
  steps = {static_cast<int>(map.stride_n), static_cast<int>(map.stride_h), static_cast<int>(map.stride_w)};
  return steps.n == map.stride_n && steps.y == map.stride_h && steps.x == map.stride_w;
}

template <typename T, int PIXELS>
bool run(const DecoderLevelArgs& level, const Map<const void>& signal, const GeneratorArgs& generator, const char* op,
         Stream stream) {
  constexpr int kSize = sizeof(T);
  using Layout = InputLayout<PIXELS>;
  const int channels = level.channels(), outputs = static_cast<int>(level.out.channels);
  const int skip_channels = static_cast<int>(level.skip.channels);
  GeneratedPointwiseArgs problem;
  if (!steps_of(level.skip, problem.skip) || !steps_of(level.previous, problem.previous) ||
      !steps_of(level.out, problem.out))
    return false;
  problem.generator = generator;
  problem.grid = PatchGrid(signal, level.images);
  problem.patches = level.images * level.grid_h * level.grid_w;
  problem.pixels = level.patch_h() * level.patch_w();
  problem.patch_w = FastDivmod(level.patch_w());
  problem.width = FastDivmod(generator.width);
  problem.outputs_of_group = FastDivmod(generator.rows / channels);
  problem.dense = generator.stride_column == 1 && generator.stride_row == generator.width &&
                  reinterpret_cast<uintptr_t>(generator.data) % 16 == 0 && generator.count() % 8 == 0;
  problem.signal_unit =
      signal.stride_c == 1 ? values_at_once(signal, {generator.offset, generator.width}, kSize, 4) : 0;
  // Previous is aligned in shared memory, or skip if there is no other.
  const int aligned = 2 + (level.previous ? skip_channels : 0);
  problem.first = aligned % 2 ? 0 : (4 - aligned % 4) % 4;
  problem.chunks = (problem.first + channels + 7) / 8;
  const auto loads = [&](const Map<const void>& map, int begin, int most) {
    while (begin % std::min(most, 4)) most /= 2;
    return values_at_once(map, {map.channels}, kSize, most);
  };
  problem.skip_unit = loads(level.skip, problem.first + 2, 8);
  problem.previous_unit = level.previous ? loads(level.previous, problem.first + 2 + skip_channels, 8) : 1;
  problem.out_vectorized = values_at_once(level.out, {outputs}, kSize, 4) == 4;

  // The number of warps that keeps the busiest SM busy for the shortest time: a block's staging takes about as long as
  // one and a half of its warps.
  Grid grid;
  int warps = 0;
  int64_t bytes = 0, least = 0;
  for (int some = kMaxWarps; some >= kMinWarps; some /= 2) {
    const int block_outputs = some * kWarpOutputs;
    const Grid its_grid{blocks_of(problem.patches, kPatches), blocks_of(outputs, block_outputs),
                        blocks_of(problem.pixels, PIXELS)};
    const int64_t blocks = int64_t{its_grid.x} * its_grid.y * its_grid.z;
    const int64_t time = (blocks + kBlocks - 1) / kBlocks * (2 * some + 3);
    const int results = problem.chunks * Layout::kChunk * 4 + block_outputs * 4;
    const int rows = results + Layout::kRows * (block_outputs + 4) * 4;
    // Masked values are loaded too: of the rows before the first one and after the last, and of the columns after it.
    const int64_t its_bytes = rows + ((block_outputs * int64_t{channels} + 16) * generator.width + kMaxWidth) * kSize;
    if (its_bytes > kMaxBytes || (warps && time >= least && int64_t{grid.x} * grid.y * grid.z >= kBlocks)) continue;
    grid = its_grid, warps = some, bytes = its_bytes, least = time;
    problem.biases = results - block_outputs * 4, problem.results = results, problem.rows = rows;
  }
  if (!warps) return false;
  problem.pixel_threads = 0;
  while (Layout::kRows << problem.pixel_threads < 32 * warps) ++problem.pixel_threads;
  launch<generated_pointwise_kernel<T, PIXELS>>(op, grid, 32 * warps, static_cast<size_t>(bytes), stream,
                                                LevelInputView<T>(level), signal.of<const T>(), Patches<T>(level),
                                                problem, level.out.of<T>());
  return true;
}

template <typename T>
bool run_pixels(const DecoderLevelArgs& level, const Map<const void>& signal, const GeneratorArgs& generator,
                const char* op, Stream stream) {
  const int pixels = level.patch_h() * level.patch_w();
  if (pixels == 1) return run<T, 1>(level, signal, generator, op, stream);
  if (pixels <= 4) return run<T, 2>(level, signal, generator, op, stream);
  return run<T, 4>(level, signal, generator, op, stream);
}

}  // namespace

bool generated_pointwise_level(const DecoderLevelArgs& level, const Map<const void>& signal,
                               const GeneratorArgs& generator, Type type, const char* op, Stream stream) {
  const bool whole_outputs = generator.rows % level.channels() == 0;
  const int64_t patches = int64_t{level.images} * level.grid_h * level.grid_w;
  if (!whole_outputs || !level.coordinates || generator.width > kMaxWidth ||
      level.patch_h() * level.patch_w() > kMaxPixels || level.out.channels > 65536 || patches >= int64_t{1} << 31)
    return false;
  bool launched = false;
  with_type(type, [&](auto value) {
    using T = decltype(value);
    if constexpr (sizeof(T) == 2) launched = run_pixels<T>(level, signal, generator, op, stream);
  });
  return launched;
}

}  // namespace hyperseg::cuda
