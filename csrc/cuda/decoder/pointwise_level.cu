#include "cuda/decoder/level.cuh"
#include "cuda/device/launch.cuh"

// One 1x1 convolution per patch. A block computes up to 64 pixels of a patch x 32 outputs, 64 input channels at a time;
// a thread accumulates every 128th (output, pixel).
namespace hyperseg::cuda {
namespace {

constexpr int kThreads = 128, kPixels = 64, kOutputs = 32, kChannels = 64, kSums = kOutputs * kPixels / kThreads;
constexpr int kStride = kChannels + 1;  // odd: adjacent outputs, or pixels, are in different banks

template <typename T>
HYPERSEG_KERNEL(kThreads, 4)
pointwise_level_kernel(LevelInputView<T> input, Patches<T> patches, Map<T> out, bool relu) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int pixels = patches.patch_h * patches.patch_w, chunks = (pixels + kPixels - 1) / kPixels;
  const int outputs = static_cast<int>(out.channels);
  int block = blockIdx.x;
  const int first_pixel = block % chunks * kPixels;
  block /= chunks;
  const int gx = block % patches.grid_w, gy = block / patches.grid_w % patches.grid_h;
  const int n = block / patches.grid_w / patches.grid_h;
  const int count = min(kPixels, pixels - first_pixel), first_output = blockIdx.y * kOutputs;
  const int items = count * min(kOutputs, outputs - first_output);
  const T* weights = patches.of(n, gy, gx) + static_cast<int64_t>(first_output) * input.channels;
  const auto y_of = [&](int p) { return gy * patches.patch_h + (first_pixel + p) / patches.patch_w; };
  const auto x_of = [&](int p) { return gx * patches.patch_w + (first_pixel + p) % patches.patch_w; };

  float* values = reinterpret_cast<float*>(shared_memory());  // [pixel][channel]
  float* rows = values + kPixels * kStride;                   // [output][channel]
  float sums[kSums] = {};
  for (int first = 0; first < input.channels; first += kChannels) {
    const int channels = min(kChannels, input.channels - first);
    if (first) sync_block();
    for (int i = threadIdx.x; i < count * channels; i += kThreads) {
      const int p = i / channels, c = i % channels;
      values[p * kStride + c] = input.at(n, first + c, y_of(p), x_of(p));
    }
    for (int i = threadIdx.x; i < kOutputs * channels; i += kThreads) {
      const int o = i / channels, c = i % channels;
      if (first_output + o < outputs)
        rows[o * kStride + c] = to_float(weights[static_cast<int64_t>(o) * input.channels + first + c]);
    }
    sync_block();
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      const int item = threadIdx.x + k * kThreads;
      if (item >= items) break;
      const float *row = rows + item / count * kStride, *value = values + item % count * kStride;
      for (int c = 0; c < channels; ++c) sums[k] = fmaf(row[c], value[c], sums[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    const int item = threadIdx.x + k * kThreads;
    if (item >= items) break;
    const int o = first_output + item / count, p = item % count;
    const float v = sums[k] + patches.shift(o);
    *out.at(n, o, y_of(p), x_of(p)) = from_float<T>(relu ? max_or_nan(v, 0.0f) : v);
  }
}

}  // namespace

void pointwise_level(const DecoderLevelArgs& level, Type type, const char* op, Stream stream) {
  const int64_t blocks = static_cast<int64_t>(level.images) * level.grid_h * level.grid_w *
                         blocks_of(level.patch_h() * level.patch_w(), kPixels);
  const Grid grid = grid_of(op, blocks, blocks_of(level.out.channels, kOutputs));
  with_type(type, [&](auto value) {
    using T = decltype(value);
    launch<pointwise_level_kernel<T>>(op, grid, kThreads, (kPixels + kOutputs) * kStride * sizeof(float), stream,
                                      LevelInputView<T>(level), Patches<T>(level), level.out.of<T>(), level.last_relu);
  });
}

}  // namespace hyperseg::cuda
