#include "cuda/decoder/level.cuh"
#include "cuda/device/launch.cuh"

// An inverted residual of any shape and type, on SIMT cores in float32. A block computes up to 8 x 8 pixels of a patch
// x 32 outputs, eight hidden channels at a time: it expands them for the pixels and their halo, filters and projects. A
// thread has one pixel and half of the outputs.
namespace hyperseg::cuda {
namespace {

constexpr int kThreads = 128, kSide = 8, kPixels = kSide * kSide, kHalo = (kSide + 2) * (kSide + 2);
constexpr int kOutputs = 32, kSums = kOutputs * kPixels / kThreads, kHidden = 8;
constexpr int64_t kMaxStaged = 64 << 10;  // bytes of input in shared memory

// STAGED: the tile's input is in shared memory. Otherwise it has too many channels and is read again from global
// memory.
template <typename T, bool STAGED>
HYPERSEG_KERNEL(kThreads, 4)
inverted_residual_simt_kernel(LevelInputView<T> input, Patches<T> patches, Map<T> out, int hidden, bool own) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int height = static_cast<int>(input.skip.height), width = static_cast<int>(input.skip.width);
  const int tiles_x = (patches.patch_w + kSide - 1) / kSide, tiles_y = (patches.patch_h + kSide - 1) / kSide;
  const int outputs = static_cast<int>(out.channels), channels = input.channels, thread = threadIdx.x;
  int block = blockIdx.x;
  const int tile_x = block % tiles_x * kSide, tile_y = block / tiles_x % tiles_y * kSide;
  block /= tiles_x * tiles_y;
  const int gx = block % patches.grid_w, gy = block / patches.grid_w % patches.grid_h;
  const int n = block / patches.grid_w / patches.grid_h;
  const int left = gx * patches.patch_w + tile_x, top = gy * patches.patch_h + tile_y;
  const int columns = min(kSide, patches.patch_w - tile_x), rows = min(kSide, patches.patch_h - tile_y);
  const int around = columns + 2, count = (rows + 2) * around;  // pixels of the tile and its halo

  const T* weights = patches.of(n, gy, gx);
  const T* filters = weights + static_cast<int64_t>(hidden) * channels;
  const T* project = filters + static_cast<int64_t>(hidden) * 9;
  float* expanded = reinterpret_cast<float*>(shared_memory());  // [hidden channel][pixel]
  float* values = expanded + kHidden * kHalo;                   // [pixel][channel]
  const int stride = channels | 1;
  const auto y_of = [&](int p) { return reflect(top + p / around - 1, height); };
  const auto x_of = [&](int p) { return reflect(left + p % around - 1, width); };
  if constexpr (STAGED) {
    for (int i = thread; i < count * channels; i += kThreads)
      values[i / channels * stride + i % channels] = input.at(n, i % channels, y_of(i / channels), x_of(i / channels));
  }

  const int pixel = thread % kPixels, x = pixel % kSide, y = pixel / kSide;
  const bool inside = x < columns && y < rows;
  const int first_output = blockIdx.y * kOutputs + thread / kPixels * kSums;
  float sums[kSums] = {};
  for (int first = 0; first < hidden; first += kHidden) {
    sync_block();
    for (int i = thread; i < kHidden * count; i += kThreads) {
      const int p = i % count, h = first + i / count;
      if (h >= hidden) break;
      const T* row = (own ? weights : patches.of_pixel(n, y_of(p), x_of(p))) + static_cast<int64_t>(h) * channels;
      float sum = patches.shift(h);
      for (int c = 0; c < channels; ++c) {
        float v;
        if constexpr (STAGED)
          v = values[p * stride + c];
        else
          v = input.at(n, c, y_of(p), x_of(p));
        sum = fmaf(to_float(row[c]), v, sum);
      }
      expanded[(h - first) * kHalo + p] = relu6(sum);
    }
    sync_block();
    if (!inside) continue;
    for (int h = first; h < min(first + kHidden, hidden); ++h) {
      const float* around_pixel = expanded + (h - first) * kHalo + y * around + x;
      float filtered = patches.shift(hidden + h);
#pragma unroll
      for (int tap = 0; tap < 9; ++tap)
        filtered = fmaf(to_float(filters[static_cast<int64_t>(h) * 9 + tap]), around_pixel[tap / 3 * around + tap % 3],
                        filtered);
      filtered = relu6(filtered);
#pragma unroll
      for (int o = 0; o < kSums; ++o) {
        if (first_output + o >= outputs) break;
        sums[o] = fmaf(to_float(project[static_cast<int64_t>(first_output + o) * hidden + h]), filtered, sums[o]);
      }
    }
  }
  if (!inside) return;
#pragma unroll
  for (int o = 0; o < kSums; ++o) {
    if (first_output + o >= outputs) break;
    *out.at(n, first_output + o, top + y, left + x) =
        from_float<T>(sums[o] + patches.shift(2 * hidden + first_output + o));
  }
}

}  // namespace

void inverted_residual_simt_level(const DecoderLevelArgs& level, Type type, const char* op, Stream stream) {
  const int64_t blocks = static_cast<int64_t>(level.images) * level.grid_h * level.grid_w *
                         blocks_of(level.patch_h(), kSide) * blocks_of(level.patch_w(), kSide);
  const Grid grid = grid_of(op, blocks, blocks_of(level.out.channels, kOutputs));
  const int64_t hidden_bytes = kHidden * kHalo * sizeof(float);
  const int64_t input_bytes = static_cast<int64_t>(kHalo) * (level.channels() | 1) * sizeof(float);
  with_type(type, [&](auto value) {
    using T = decltype(value);
    const LevelInputView<T> input(level);
    const Patches<T> patches(level);
    const Map<T> out = level.out.of<T>();
    if (input_bytes <= kMaxStaged)
      launch<inverted_residual_simt_kernel<T, true>>(op, grid, kThreads, hidden_bytes + input_bytes, stream, input,
                                                     patches, out, level.hidden, level.own_halo);
    else
      launch<inverted_residual_simt_kernel<T, false>>(op, grid, kThreads, hidden_bytes, stream, input, patches, out,
                                                      level.hidden, level.own_halo);
  });
}

}  // namespace hyperseg::cuda
