#include "cuda/decoder/generated_pointwise.h"

#include "cuda/decoder/level.cuh"
#include "cuda/device/launch.cuh"

// A 1x1 level whose weights exist only in registers. For one output and 16 patches, a warp generates eight weights per
// patch at a time by MMA, signal [16, width] x generator rows [width, 8], multiplies them by the eight inputs they
// belong to, and accumulates. The accumulator layout gives a lane the weights of two patches for two inputs.
namespace hyperseg::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;  // one warp per output
constexpr int kMaxWidth = 48;                      // signal channels per group, kept in registers
constexpr int64_t kMaxBytes = 99 << 10;            // bytes of shared memory per block that every GPU since sm_80 has

// Patches per block, for a number of pixels per patch.
template <int PIXELS>
constexpr int kPatchesFor = PIXELS == 1   ? 64
                            : PIXELS == 4 ? 32
                                          : 16;

struct GeneratedPointwiseArgs {
  GeneratorArgs generator;
  int64_t patches;  // of all images
  int stride;  // stride of a pixel's channels in shared memory, in 2-byte elements: 8 more than a multiple of 16, so
               // that the pixels of eight patches are in different banks
};

template <typename T, int PIXELS>
HYPERSEG_KERNEL(kThreads, 2)
generated_pointwise_kernel(LevelInputView<T> input, Map<const T> signal, Patches<T> shape,
                           GeneratedPointwiseArgs problem, Map<T> out) {
  constexpr int kPatches = kPatchesFor<PIXELS>, kHigh = kPatches / 16, kDeep = kMaxWidth / 16;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int thread = threadIdx.x, lane = thread % 32, group = lane / 4, pair = lane % 4 * 2;
  const int channels = input.channels, outputs = static_cast<int>(out.channels);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPatches;
  struct PatchPosition {
    int n, y, x;
  };
  const auto patch_at = [&](int64_t patch) {
    const int64_t gx = patch % shape.grid_w, gy = patch / shape.grid_w % shape.grid_h;
    return PatchPosition{static_cast<int>(patch / shape.grid_w / shape.grid_h), static_cast<int>(gy),
                         static_cast<int>(gx)};
  };

  T* const values = reinterpret_cast<T*>(shared_memory());  // [pixel][patch][channel], zero-padded to a multiple of 8
  const int padded = (channels + 7) / 8 * 8;
  for (int i = thread; i < PIXELS * kPatches * padded; i += kThreads) {
    const int c = i % padded, p = i / padded % kPatches, pixel = i / padded / kPatches;
    float v = 0.0f;
    if (c < channels && first + p < problem.patches) {
      const PatchPosition at = patch_at(first + p);
      v = input.at(at.n, c, at.y * shape.patch_h + pixel / shape.patch_w, at.x * shape.patch_w + pixel % shape.patch_w);
    }
    values[(pixel * kPatches + p) * problem.stride + c] = from_float<T>(v);
  }
  sync_block();
  const int output = blockIdx.y * kWarps + thread / 32;
  if (output >= outputs) return;

  const GeneratorArgs& generator = problem.generator;
  const int64_t first_row = static_cast<int64_t>(output) * channels;
  const int width = generator.width, steps = (width + 15) / 16;
  const int base = generator.offset + static_cast<int>(first_row / generator.rows) * width;
  uint32_t signals[kDeep][kHigh][4];
#pragma unroll
  for (int step = 0; step < kDeep; ++step) {
    if (step >= steps) break;
#pragma unroll
    for (int m = 0; m < kHigh; ++m)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t patch = first + m * 16 + group + j % 2 * 8;
        const int k = step * 16 + pair + j / 2 * 8;
        const PatchPosition at = patch_at(patch);
        const bool there = patch < problem.patches;
        const float low = there && k < width ? to_float(*signal.at(at.n, base + k, at.y, at.x)) : 0.0f;
        const float high = there && k + 1 < width ? to_float(*signal.at(at.n, base + k + 1, at.y, at.x)) : 0.0f;
        signals[step][m][j] = pack<T>(low, high);
      }
  }

  float sums[kHigh][2][PIXELS] = {};
  const T* rows = static_cast<const T*>(generator.data) + first_row * generator.stride_row;
  for (int c = 0; c < channels; c += 8) {
    float weights[kHigh][4] = {};
    const T* row = rows + (c + group) * generator.stride_row;
    const bool real = c + group < channels;
#pragma unroll
    for (int step = 0; step < kDeep; ++step) {
      if (step >= steps) break;
      uint32_t b[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int k = step * 16 + pair + j * 8;
        const float low = real && k < width ? to_float(row[k * generator.stride_column]) : 0.0f;
        const float high = real && k + 1 < width ? to_float(row[(k + 1) * generator.stride_column]) : 0.0f;
        b[j] = pack<T>(low, high);
      }
#pragma unroll
      for (int m = 0; m < kHigh; ++m) mma16<T>(weights[m], signals[step][m], b[0], b[1]);
    }
#pragma unroll
    for (int m = 0; m < kHigh; ++m)
#pragma unroll
      for (int below = 0; below < 2; ++below)
#pragma unroll
        for (int pixel = 0; pixel < PIXELS; ++pixel) {
          const T* value = values + (pixel * kPatches + m * 16 + group + below * 8) * problem.stride + c + pair;
          const float2 v = unpack<T>(*reinterpret_cast<const uint32_t*>(value));
          float& sum = sums[m][below][pixel];
          sum = fmaf(weights[m][below * 2], v.x, sum);
          sum = fmaf(weights[m][below * 2 + 1], v.y, sum);
        }
  }

  const float shift = shape.shift(output);
#pragma unroll
  for (int m = 0; m < kHigh; ++m)
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      const int64_t patch = first + m * 16 + group + below * 8;
      const PatchPosition at = patch_at(patch);
#pragma unroll
      for (int pixel = 0; pixel < PIXELS; ++pixel) {
        float sum = sums[m][below][pixel];
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        if (lane % 4 == pixel % 4 && patch < problem.patches)
          *out.at(at.n, output, at.y * shape.patch_h + pixel / shape.patch_w,
                  at.x * shape.patch_w + pixel % shape.patch_w) = from_float<T>(max_or_nan(sum + shift, 0.0f));
      }
    }
}

template <typename T, int PIXELS>
bool run(const DecoderLevelArgs& level, const Map<const void>& signal, const GeneratorArgs& generator, const char* op,
         Stream stream) {
  constexpr int kPatches = kPatchesFor<PIXELS>;
  if (level.patch_h() * level.patch_w() != PIXELS) return false;
  GeneratedPointwiseArgs problem;
  problem.generator = generator;
  problem.patches = static_cast<int64_t>(level.images) * level.grid_h * level.grid_w;
  problem.stride = (level.channels() + 7) / 16 * 16 + 8;
  const int64_t bytes = static_cast<int64_t>(PIXELS) * kPatches * problem.stride * sizeof(T);
  if (bytes > kMaxBytes) return false;
  const Grid grid{blocks_of(problem.patches, kPatches), blocks_of(level.out.channels, kWarps)};
  launch<generated_pointwise_kernel<T, PIXELS>>(op, grid, kThreads, static_cast<size_t>(bytes), stream,
                                                LevelInputView<T>(level), signal.of<const T>(), Patches<T>(level),
                                                problem, level.out.of<T>());
  return true;
}

}  // namespace

bool generated_pointwise_level(const DecoderLevelArgs& level, const Map<const void>& signal,
                               const GeneratorArgs& generator, Type type, const char* op, Stream stream) {
  const bool whole_outputs = generator.rows % level.channels() == 0;
  if (!whole_outputs || generator.width > kMaxWidth || level.out.channels > 8 * 65535) return false;
  bool launched = false;
  with_type(type, [&](auto value) {
    using T = decltype(value);
    if constexpr (sizeof(T) == 2)
      launched = run<T, 1>(level, signal, generator, op, stream) || run<T, 4>(level, signal, generator, op, stream) ||
                 run<T, 16>(level, signal, generator, op, stream);
  });
  return launched;
}

}  // namespace hyperseg::cuda
