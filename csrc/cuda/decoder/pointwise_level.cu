#include <algorithm>

#include "cuda/decoder/level.cuh"
#include "cuda/decoder/patch_grid.cuh"
#include "cuda/device/launch.cuh"
#include "cuda/device/vectors.cuh"

// One 1x1 convolution per patch. A block computes up to 64 pixels of a patch, or several small patches, and some
// outputs. It stages the pixels' input in float and the patches' weights as they are, all channels or a chunk of them.
// A thread computes an output of 1 or 4 pixels at a time.
namespace hyperseg::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxPixels = 64;           // of a patch, per block
constexpr int kBlocks = 132;             // of a grid, where possible: the SMs of an H100
constexpr int64_t kMaxBytes = 99 << 10;  // bytes of shared memory per block that every GPU since sm_80 has

struct PointwiseTile {
  PatchGrid grid;
  int patches;                         // of all images
  int block_patches, pixels, outputs;  // of a block; pixels per patch
  int channels;                        // per chunk
  int pixel_stride, patch_bytes;       // in shared memory: from a pixel to the next, in values; weights of a patch
  int slots;                           // pixels staged at a time
  int weight_unit;                     // bytes of weights copied at once: 16, 8, 4; 0: value by value
  bool previous_vectorized;            // four channels of previous are one aligned load
  FastDivmod chunks, patch_w;  // divide blocks by the chunks of a patch's pixels; pixels by the width of a patch
  FastDivmod pixel_threads, of_pixels;  // staging: threads by those of a pixel; pixels by those of a patch
  FastDivmod across, groups;            // computing: threads by outputs; groups of pixels by those of a patch
  FastDivmod of_channels;

  // The weights begin after the input.
  HYPERSEG_HOST_DEVICE int input_bytes() const { return (block_patches * pixels * pixel_stride + 3) / 4 * 16; }
};

// Four channels of a pixel.
template <typename T>
struct Four {
  float v[4];
  HYPERSEG_DEVICE explicit Four(const T* from) {
    if constexpr (sizeof(T) == 4) {
      const float4 four = *reinterpret_cast<const float4*>(from);
      v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
    } else {
      const uint2 four = *reinterpret_cast<const uint2*>(from);
      const float2 low = unpack<T>(four.x), high = unpack<T>(four.y);
      v[0] = low.x, v[1] = low.y, v[2] = high.x, v[3] = high.y;
    }
  }
};

// Stage channels [first, end) of a pixel, those of one of `step` threads.
template <typename T>
HYPERSEG_DEVICE void stage_pixel(const LevelInputView<T>& input, bool vectorized, float* to, int thread, int step,
                                 int n, int y, int x, int first, int end) {
  to -= first;
  const int of_skip = input.coordinates, of_previous = of_skip + static_cast<int>(input.skip.channels);
#pragma unroll 1
  for (int c = first + thread; c < min(end, of_skip); c += step) to[c] = input.coordinate(c, y, x);
  const T* skip = input.skip.at(n, 0, y, x);
  // Four loads in flight; with a loop to unroll, the compiler would divide by `step` to know its length.
  const int end_of_skip = min(end, of_previous);
#pragma unroll 1
  for (int c = max(first, of_skip) + thread; c < end_of_skip; c += 4 * step) {
    T values[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (c + i * step < end_of_skip) values[i] = skip[(c + i * step - of_skip) * input.skip.stride_c];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (c + i * step < end_of_skip) to[c + i * step] = to_float(values[i]);
  }
  if (!input.previous || end <= of_previous) return;
  const Sample row = input.row(y), column = input.column(x);
  int c = max(first, of_previous);
  if (vectorized && first <= of_previous) {
    const Map<const T>& map = input.previous;
    const T* left[2] = {map.at(n, 0, row.low, column.low), map.at(n, 0, row.high, column.low)};
    const int64_t right = (column.high - column.low) * map.stride_w;
#pragma unroll 1
    for (int k = thread * 4; k + 4 <= end - of_previous; k += step * 4) {
      const Four<T> corners[2][2] = {{Four<T>(left[0] + k), Four<T>(left[0] + k + right)},
                                     {Four<T>(left[1] + k), Four<T>(left[1] + k + right)}};
#pragma unroll
      for (int i = 0; i < 4; ++i)
        to[of_previous + k + i] = between(between(corners[0][0].v[i], corners[0][1].v[i], column.weight),
                                          between(corners[1][0].v[i], corners[1][1].v[i], column.weight), row.weight);
    }
    c += (end - of_previous) / 4 * 4;
  }
#pragma unroll 1
  for (c += thread; c < end; c += step) to[c] = input.resized(n, c - of_previous, row, column);
}

// Start to copy `count` contiguous weights, UNIT bytes at a time.
template <int UNIT, typename T>
HYPERSEG_DEVICE void copy_weights(T* to, const T* from, int count) {
  constexpr int kValues = UNIT / sizeof(T);
  const int whole = count / kValues * kValues, i = whole + threadIdx.x;
#pragma unroll 4
  for (int k = threadIdx.x * kValues; k < whole; k += kThreads * kValues) copy_async<UNIT>(to + k, from + k, true);
  if (i < count) to[i] = from[i];
}

template <typename T, int PIXELS>
HYPERSEG_KERNEL(kThreads, 4)
pointwise_level_kernel(LevelInputView<T> input, Patches<T> shape, PointwiseTile tile, Map<T> out, bool relu) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int thread = threadIdx.x, first_output = blockIdx.y * tile.outputs;
  const int block = tile.chunks.quotient(blockIdx.x);
  const int first_patch = block * tile.block_patches;
  const int first_pixel = (static_cast<int>(blockIdx.x) - block * tile.chunks.value()) * tile.pixels;
  const int patches = min(tile.block_patches, tile.patches - first_patch);
  const int pixels = min(tile.pixels, shape.patch_h * shape.patch_w - first_pixel);
  const int outputs = min(tile.outputs, static_cast<int>(out.channels) - first_output);
  float* const values = reinterpret_cast<float*>(shared_memory());  // [patch][pixel][channel]
  char* const weights = shared_memory() + tile.input_bytes();       // [patch][output][channel]
  const auto y_of = [&](const PatchGrid::Place& at, int pixel) {
    return at.y * shape.patch_h + tile.patch_w.quotient(first_pixel + pixel);
  };
  const auto x_of = [&](const PatchGrid::Place& at, int pixel) {
    pixel += first_pixel;
    return at.x * shape.patch_w + pixel - tile.patch_w.quotient(pixel) * tile.patch_w.value();
  };

  // A thread's outputs and pixels. It has one output only if there are several chunks of channels.
  const int line = tile.across.quotient(thread), across = tile.across.value();
  const int own_patch = tile.groups.quotient(line), own_pixel = (line - own_patch * tile.groups.value()) * PIXELS;
  const bool computes = own_patch < patches && own_pixel < pixels;
  float sums[PIXELS];
  for (int first = 0; first < input.channels; first += tile.channels) {
    const int channels = min(tile.channels, input.channels - first);
    if (first) sync_block();
    for (int s = 0; s < patches; ++s) {
      const PatchGrid::Place at = tile.grid.place(first_patch + s);
      const T* from = shape.of(at.n, at.y, at.x) + static_cast<int64_t>(first_output) * input.channels + first;
      T* to = reinterpret_cast<T*>(weights + s * tile.patch_bytes);
      const int count = outputs * channels;
      if (channels != input.channels) {
        for (int i = thread; i < outputs * tile.channels; i += kThreads) {
          const int o = tile.of_channels.quotient(i), c = i - o * tile.channels;
          if (c < channels) to[i] = from[static_cast<int64_t>(o) * input.channels + c];
        }
      } else if (tile.weight_unit == 16) {
        copy_weights<16>(to, from, count);
      } else if (tile.weight_unit == 8) {
        copy_weights<8>(to, from, count);
      } else if (tile.weight_unit == 4) {
        copy_weights<4>(to, from, count);
      } else {
#pragma unroll 8
        for (int i = thread; i < count; i += kThreads) to[i] = from[i];
      }
    }
    commit_copies();
    const int slot = tile.pixel_threads.quotient(thread), step = tile.pixel_threads.value();
#pragma unroll 1
    for (int i = slot; i < tile.block_patches * tile.pixels; i += tile.slots) {
      const int s = tile.of_pixels.quotient(i), pixel = i - s * tile.pixels;
      if (slot >= tile.slots || s >= patches || pixel >= pixels) continue;
      const PatchGrid::Place at = tile.grid.place(first_patch + s);
      stage_pixel(input, tile.previous_vectorized, values + i * tile.pixel_stride, thread - slot * step, step, at.n,
                  y_of(at, pixel), x_of(at, pixel), first, first + channels);
    }
    wait_for_copies<0>();
    sync_block();
    if (!computes) continue;
    const float* value = values + (own_patch * tile.pixels + own_pixel) * tile.pixel_stride;
#pragma unroll 1
    for (int o = thread - line * across; o < outputs; o += across) {
      const T* row = reinterpret_cast<const T*>(weights + own_patch * tile.patch_bytes) + o * tile.channels;
      if (!first) {
#pragma unroll
        for (float& sum : sums) sum = 0.0f;
      }
      if (tile.channels % 2 == 0 && channels % 2 == 0) {
#pragma unroll 4
        for (int c = 0; c < channels; c += 2) {
          const float2 w = load2(row + c);
#pragma unroll
          for (int i = 0; i < PIXELS; ++i) {
            const float2 v = load2(value + i * tile.pixel_stride + c);
            sums[i] = fmaf(w.y, v.y, fmaf(w.x, v.x, sums[i]));
          }
        }
      } else {
        for (int c = 0; c < channels; ++c) {
          const float w = to_float(row[c]);
#pragma unroll
          for (int i = 0; i < PIXELS; ++i) sums[i] = fmaf(w, value[i * tile.pixel_stride + c], sums[i]);
        }
      }
      if (first + channels < input.channels) continue;
      const PatchGrid::Place at = tile.grid.place(first_patch + own_patch);
      const float shift = shape.shift(first_output + o);
#pragma unroll
      for (int i = 0; i < PIXELS; ++i) {
        if (own_pixel + i >= pixels) break;
        const float v = sums[i] + shift;
        *out.at(at.n, first_output + o, y_of(at, own_pixel + i), x_of(at, own_pixel + i)) =
            from_float<T>(relu ? max_or_nan(v, 0.0f) : v);
      }
    }
  }
}

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

template <typename T, int PIXELS>
void run(const DecoderLevelArgs& level, const char* op, Stream stream) {
  const int channels = level.channels(), outputs = static_cast<int>(level.out.channels);
  const int pixels = level.patch_h() * level.patch_w();
  const int64_t patches = int64_t{level.images} * level.grid_h * level.grid_w;
  check(patches < int64_t{1} << 31, op, ": too large for a GPU, there are ", patches, " patches");
  PointwiseTile tile;
  tile.grid = PatchGrid(level.grid_h, level.grid_w);
  tile.patches = static_cast<int>(patches);
  tile.pixels = std::min(round_up(pixels, PIXELS), kMaxPixels);
  tile.outputs = outputs;
  tile.channels = channels;
  const int groups = tile.pixels / PIXELS;
  const int64_t chunks = blocks_of(pixels, tile.pixels);
  // Small patches share a block, as long as the grid is large.
  tile.block_patches = std::max(kThreads / (groups * outputs), 1);
  while (tile.block_patches > 1 && blocks_of(patches, tile.block_patches) * chunks < kBlocks) --tile.block_patches;
  const auto bytes = [&] {
    tile.pixel_stride = round_up(tile.channels, 2);
    const int64_t weights = (int64_t{tile.outputs} * tile.channels * sizeof(T) + 15) / 16 * 16;
    const int64_t values = int64_t{tile.block_patches} * tile.pixels * tile.pixel_stride;
    tile.patch_bytes = static_cast<int>(std::min(weights, kMaxBytes));
    return tile.block_patches * weights + (values + 3) / 4 * 16;
  };
  while (bytes() > kMaxBytes) {
    if (tile.block_patches > 1)
      tile.block_patches = 1;
    else if (tile.outputs > kThreads / groups)
      tile.outputs = std::max((tile.outputs + 1) / 2, kThreads / groups);
    else
      tile.channels = round_up((tile.channels + 1) / 2, 2);
  }
  tile.chunks = FastDivmod(chunks);
  tile.patch_w = FastDivmod(level.patch_w());
  const int pixel_threads = std::max(kThreads / (tile.block_patches * tile.pixels), 1);
  tile.pixel_threads = FastDivmod(pixel_threads);
  tile.slots = kThreads / pixel_threads;
  tile.of_pixels = FastDivmod(tile.pixels);
  tile.across = FastDivmod(kThreads / (tile.block_patches * groups));
  tile.groups = FastDivmod(groups);
  tile.of_channels = FastDivmod(tile.channels);
  tile.weight_unit =
      load_unit(level.weights, 1, {level.weights_n, level.weights_y, level.weights_x, int64_t{tile.outputs} * channels},
                sizeof(T));
  const Map<const void>& previous = level.previous;
  tile.previous_vectorized =
      previous && load_unit(previous.data, previous.stride_c, {previous.stride_n, previous.stride_h, previous.stride_w},
                            sizeof(T)) >= 4 * int{sizeof(T)};
  const Grid grid =
      grid_of(op, int64_t{blocks_of(patches, tile.block_patches)} * chunks, blocks_of(outputs, tile.outputs));
  launch<pointwise_level_kernel<T, PIXELS>>(op, grid, kThreads, static_cast<size_t>(bytes()), stream,
                                            LevelInputView<T>(level), Patches<T>(level), tile, level.out.of<T>(),
                                            level.last_relu);
}

}  // namespace

void pointwise_level(const DecoderLevelArgs& level, Type type, const char* op, Stream stream) {
  with_type(type, [&](auto value) {
    using T = decltype(value);
    level.patch_h() * level.patch_w() == 1 ? run<T, 1>(level, op, stream) : run<T, 4>(level, op, stream);
  });
}

}  // namespace hyperseg::cuda
