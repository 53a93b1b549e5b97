#include "cuda/encoder/stem.h"

#include <type_traits>

#include "cuda/device/activation.cuh"
#include "cuda/device/fast_divmod.h"
#include "cuda/device/launch.cuh"
#include "cuda/device/vectors.cuh"

// A block normalises the pixels of its tile once, into shared memory, and convolves from there. This is for 3x3 taps at
// stride 2, as in all published networks; any other convolution reads the frames directly.
namespace hyperseg::cuda {
namespace {

constexpr const char* kOp = "stem";
constexpr int kStemThreads = 128, kTaps = 3, kStep = 2;
constexpr int kTileRows = 4;                                  // of the output: one per warp
constexpr int kWindowRows = (kTileRows - 1) * kStep + kTaps;  // input rows of a tile
constexpr int kGroup = 32;                                    // channels at a time
constexpr size_t kMaxShared = 99 * 1024;

template <typename T>
struct StemArgs {
  Map<const uint8_t> frames;
  const float *scale, *shift;
  Map<const T> weight;
  const T* bias;
  T* out;
  int height, width, size, stride, left, top, channels, out_height, out_width;
  FastDivmod down, across;  // tiles of an image and of a row; of stem_general_kernel rows, and blocks of a row
  bool constants_ready, whole_words;
};

// Pixels of the padded image, normalised but not yet rounded, with zeros around them.
template <typename T>
class NormalisedImage {
 public:
  HYPERSEG_DEVICE NormalisedImage(const StemArgs<T>& problem, int64_t n)
      : frames_(problem.frames), first_(frames_.at(n, 0, 0, 0)), height_(problem.height), width_(problem.width) {}

  HYPERSEG_DEVICE void load_constants(const StemArgs<T>& problem) {
#pragma unroll
    for (int c = 0; c < 3; ++c) scale_[c] = problem.scale[c], shift_[c] = problem.shift[c];
  }

  HYPERSEG_DEVICE void load(int y, int x, float (&v)[3]) const {
    const bool inside = y >= 0 && y < height_ && x >= 0 && x < width_;
    const int64_t column = min(max(x, 0), static_cast<int>(frames_.width) - 1);
    const uint8_t* from = row(y) + column * frames_.stride_w;
#pragma unroll
    for (int c = 0; c < 3; ++c) v[c] = inside ? normalised(from[c * frames_.stride_c], c) : 0.0f;
  }

  // Four pixels of a dense frame as they are in memory, 4-byte aligned.
  struct Words {
    uint32_t words[3];
  };
  HYPERSEG_DEVICE bool has_words(int y, int x) const {
    // Without && there are no branches.
    return (y >= 0) & (y < height_) & (x >= 0) & (x <= min(static_cast<int>(frames_.width), width_) - 4);
  }
  HYPERSEG_DEVICE Words load_words(int y, int x) const {
    const uint32_t* from = reinterpret_cast<const uint32_t*>(row(y) + 3 * x);
    return {from[0], from[1], from[2]};
  }
  HYPERSEG_DEVICE void unpack(const Words& four, int pixel, float (&v)[3]) const {
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const int byte = 3 * pixel + c;
      v[c] = normalised(byte_of(four.words[byte / 4], byte % 4), c);
    }
  }

 private:
  HYPERSEG_DEVICE const uint8_t* row(int y) const {
    return first_ + static_cast<int64_t>(min(max(y, 0), static_cast<int>(frames_.height) - 1)) * frames_.stride_h;
  }
  HYPERSEG_DEVICE float normalised(uint32_t byte, int c) const {
    return static_cast<float>(byte) * scale_[c] + shift_[c];
  }

  const Map<const uint8_t>& frames_;
  const uint8_t* first_;
  int height_, width_;
  float scale_[3], shift_[3];
};

// Position of a block's tile.
struct TilePosition {
  int n, y, x;

  template <typename T>
  HYPERSEG_DEVICE TilePosition(const StemArgs<T>& problem, int columns) {
    const int block = blockIdx.x, row = problem.across.quotient(block);
    n = problem.down.quotient(row);
    y = (row - n * problem.down.value()) * kTileRows, x = (block - row * problem.across.value()) * columns;
  }
};

// 16-bit floats, on tensor cores. A pixel takes four values, the fourth of which is 0, so the four pixels from the
// first tap of a row on are the 16 values of an MMA's depth, and the next pixel's begin 16 bytes later: rows of the
// left operand overlap in memory. The weights of the fourth pixel and of the fourth value are 0.
constexpr int kMmaColumns = 64, kMmaWindow = kMmaColumns * kStep + 2, kPixelValues = 4;
constexpr int kMmaPitch = kMmaWindow * kPixelValues;
constexpr int kFragment = kTaps * 8;  // registers for the weights of a group

template <typename T>
size_t mma_bytes(int64_t channels) {
  return kWindowRows * kMmaPitch * sizeof(T) + (channels + kGroup - 1) / kGroup * kFragment * 32 * sizeof(uint32_t);
}

// Weights in the order of the MMA's right operand. Channels are permuted such that a lane's sums are eight consecutive
// channels: column n of part j is channel n / 2 * 8 + 2 * j + n % 2 of its group.
template <typename T>
HYPERSEG_DEVICE void stage_weights(const StemArgs<T>& problem, uint32_t* staged) {
  // Four threads fill the registers of a lane, each with two channels and two pairs of values per tap row.
  const int lane = threadIdx.x / 4, part = threadIdx.x % 4, n = lane / 4, pair = lane % 4;
  const int kx = pair / 2 + part % 2 * 2, colour = pair % 2 * 2;
  const Map<const T>& weight = problem.weight;
  for (int first = 0; first < problem.channels; first += kGroup) {
    const int channel = first + n / 2 * 8 + part / 2 * 2 + n % 2;
    const bool valid = kx < kTaps && channel < problem.channels, both = valid && colour == 0;
    const T* from = valid ? weight.at(channel, colour, 0, kx) : weight.data;
    const int64_t next_channels = valid ? 4 * weight.stride_n : 0, next_colour = both ? weight.stride_c : 0;
#pragma unroll
    for (int i = 0; i < kFragment / 4; ++i, staged += kStemThreads) {
      const T* at = from + i / 2 * weight.stride_h + i % 2 * next_channels;
      const float low = to_float(at[0]), high = to_float(at[next_colour]);
      staged[threadIdx.x] = pack<T>(valid ? low : 0.0f, both ? high : 0.0f);
    }
  }
}

template <typename T>
HYPERSEG_DEVICE uint4 packed_pixels(const float (&a)[3], const float (&b)[3]) {
  return {pack<T>(a[0], a[1]), pack<T>(a[2], 0.0f), pack<T>(b[0], b[1]), pack<T>(b[2], 0.0f)};
}

// The pixels of a tile's window. Of dense frames a thread loads four at a time, 12 bytes.
template <typename T>
HYPERSEG_DEVICE void stage_pixels(const StemArgs<T>& problem, const NormalisedImage<T>& image, const TilePosition& tile,
                                  T* window) {
  const int top = tile.y * kStep - problem.top, left = tile.x * kStep - problem.left;
  const auto load_two = [&](int row, int column) {
    float a[3], b[3];
    image.load(top + row, left + column, a);
    image.load(top + row, left + column + 1, b);
    *reinterpret_cast<uint4*>(window + row * kMmaPitch + column * kPixelValues) = packed_pixels<T>(a, b);
  };
  if (!problem.whole_words) {
#pragma unroll 2
    for (int i = threadIdx.x; i < kWindowRows * kMmaWindow / 2; i += kStemThreads)
      load_two(i / (kMmaWindow / 2), i % (kMmaWindow / 2) * 2);
    return;
  }
  constexpr int kFours = (kMmaWindow + 3) / 4, kCount = kWindowRows * kFours;
  constexpr int kSteps = (kCount + kStemThreads - 1) / kStemThreads;
  typename NormalisedImage<T>::Words loaded[kSteps];
  bool whole[kSteps], others = false;  // the others cross a border
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    const int i = threadIdx.x + k * kStemThreads, y = top + i / kFours, x = left + i % kFours * 4;
    whole[k] = (i < kCount) & image.has_words(y, x);
    others |= (i < kCount) & !whole[k];
    if (whole[k]) loaded[k] = image.load_words(y, x);
  }
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    const int i = threadIdx.x + k * kStemThreads, row = i / kFours, column = i % kFours * 4;
#pragma unroll
    for (int part = 0; part < 4; part += 2) {
      if (!whole[k] || column + part >= kMmaWindow) continue;
      float a[3], b[3];
      image.unpack(loaded[k], part, a);
      image.unpack(loaded[k], part + 1, b);
      *reinterpret_cast<uint4*>(window + row * kMmaPitch + (column + part) * kPixelValues) = packed_pixels<T>(a, b);
    }
  }
  if (!others) return;
#pragma unroll 1
  for (int i = threadIdx.x; i < kCount; i += kStemThreads) {
    const int row = i / kFours, column = i % kFours * 4;
    if (image.has_words(top + row, left + column)) continue;
#pragma unroll 1
    for (int part = column; part < min(column + 4, kMmaWindow); part += 2) load_two(row, part);
  }
}

template <typename T>
HYPERSEG_KERNEL(kStemThreads, 4)
stem_mma_kernel(StemArgs<T> problem) {
  const TilePosition tile(problem, kMmaColumns);
  T* window = reinterpret_cast<T*>(shared_memory());
  uint32_t* staged = reinterpret_cast<uint32_t*>(window + kWindowRows * kMmaPitch);
  NormalisedImage<T> image(problem, tile.n);
  stage_constants_and_wait(problem.constants_ready, [&] {
    image.load_constants(problem);
    stage_weights(problem, staged);
  });
  stage_pixels(problem, image, tile, window);
  sync_block();

  const int warp = warp_index(), lane = threadIdx.x % 32, y = tile.y + warp;
  if (y >= problem.out_height) return;
  const T* from = window + warp * kStep * kMmaPitch + (lane % 16 + lane / 16) * kStep * kPixelValues;
  T* const out_row =
      problem.out + (static_cast<int64_t>(tile.n) * problem.out_height + y) * problem.out_width * problem.channels;
#pragma unroll 1
  for (int first = 0; first < problem.channels; first += kGroup) {
    uint32_t weights[kFragment];
    const uint4* fragments = reinterpret_cast<const uint4*>(staged) + first / kGroup * (kFragment / 4) * 32 + lane;
#pragma unroll
    for (int i = 0; i < kFragment / 4; ++i) {
      const uint4 four = fragments[i * 32];
      weights[4 * i] = four.x, weights[4 * i + 1] = four.y, weights[4 * i + 2] = four.z, weights[4 * i + 3] = four.w;
    }
    const int c = first + lane % 4 * 8;
    float bias[8];
    load8(problem.bias + c, 1, problem.channels - c, bias);
#pragma unroll 1
    for (int column = 0; column < kMmaColumns && tile.x + column < problem.out_width; column += 16) {
      float sums[4][4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[j][e] = bias[2 * j + e % 2];
#pragma unroll
      for (int ky = 0; ky < kTaps; ++ky) {
        uint32_t pixels[4];
        ldmatrix4(pixels, from + ky * kMmaPitch + column * kStep * kPixelValues);
#pragma unroll
        for (int j = 0; j < 4; ++j) mma16<T>(sums[j], pixels, weights[ky * 8 + j * 2], weights[ky * 8 + j * 2 + 1]);
      }
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        const int x = tile.x + column + lane / 4 + lower * 8;
        float v[8];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          v[2 * j] = sums[j][2 * lower], v[2 * j + 1] = sums[j][2 * lower + 1];
          silu2<T>(v[2 * j], v[2 * j + 1]);
        }
        if (x < problem.out_width && c < problem.channels)
          store16(out_row + static_cast<int64_t>(x) * problem.channels + c,
                  uint4{pack<T>(v[0], v[1]), pack<T>(v[2], v[3]), pack<T>(v[4], v[5]), pack<T>(v[6], v[7])});
      }
    }
  }
}

// float32, without tensor cores: a thread computes eight channels of four adjacent pixels.
constexpr int kSimtColumns = 32, kRun = 4, kRuns = kSimtColumns / kRun;
constexpr int kSimtWindow = (kSimtColumns - 1) * kStep + kTaps;
// One slot is left empty before each run, so that runs are in different banks.
HYPERSEG_HOST_DEVICE constexpr int simt_slot(int column) { return 3 * column + column / (kRun * kStep); }
constexpr int kSimtPitch = simt_slot(kSimtWindow - 1) + 3;
constexpr int kSimtValues = (kWindowRows * kSimtPitch + 3) / 4 * 4;

inline size_t simt_bytes(int64_t channels) {
  return (kSimtValues + (channels + kGroup - 1) / kGroup * kGroup * 3 * kTaps * kTaps) * sizeof(float);
}

template <bool VECTORS>
HYPERSEG_KERNEL(kStemThreads, 4)
stem_simt_kernel(StemArgs<float> problem) {
  const TilePosition tile(problem, kSimtColumns);
  float* window = reinterpret_cast<float*>(shared_memory());
  float* staged = window + kSimtValues;  // [tap row, tap, colour, channels padded to a group]
  const int padded = (problem.channels + kGroup - 1) / kGroup * kGroup;
  NormalisedImage<float> image(problem, tile.n);
  stage_constants_and_wait(problem.constants_ready, [&] {
    image.load_constants(problem);
    for (int channel = threadIdx.x % kGroup; channel < padded; channel += kGroup)
      for (int tap = threadIdx.x / kGroup; tap < kTaps * kTaps; tap += kStemThreads / kGroup)
#pragma unroll
        for (int c = 0; c < 3; ++c)
          staged[(tap * 3 + c) * padded + channel] =
              channel < problem.channels ? *problem.weight.at(channel, c, tap / kTaps, tap % kTaps) : 0.0f;
  });
  const int top = tile.y * kStep - problem.top, left = tile.x * kStep - problem.left;
#pragma unroll 2
  for (int i = threadIdx.x; i < kWindowRows * kSimtWindow; i += kStemThreads) {
    float v[3];
    image.load(top + i / kSimtWindow, left + i % kSimtWindow, v);
    float* to = window + i / kSimtWindow * kSimtPitch + simt_slot(i % kSimtWindow);
    to[0] = v[0], to[1] = v[1], to[2] = v[2];
  }
  sync_block();

  const int run = threadIdx.x / 4, run_y = run / kRuns, run_x = run % kRuns * kRun;
  const int y = tile.y + run_y, x = tile.x + run_x;
  if (y >= problem.out_height || x >= problem.out_width) return;
  float* const out = problem.out + ((static_cast<int64_t>(tile.n) * problem.out_height + y) * problem.out_width + x) *
                                       static_cast<int64_t>(problem.channels);
  const float* from = window + run_y * kStep * kSimtPitch + simt_slot(run_x * kStep);
#pragma unroll 1
  for (int c = threadIdx.x % 4 * 8; c < problem.channels; c += kGroup) {
    float bias[8], sums[kRun][8];
    load8(problem.bias + c, 1, problem.channels - c, bias);
#pragma unroll
    for (int i = 0; i < kRun * 8; ++i) sums[i / 8][i % 8] = bias[i % 8];
#pragma unroll 1
    for (int ky = 0; ky < kTaps; ++ky) {
      float seen[(kRun - 1) * kStep + kTaps][3];
#pragma unroll
      for (int column = 0; column < (kRun - 1) * kStep + kTaps; ++column)
#pragma unroll
        for (int i = 0; i < 3; ++i) seen[column][i] = from[ky * kSimtPitch + simt_slot(column) + i];
#pragma unroll
      for (int kx = 0; kx < kTaps; ++kx)
#pragma unroll
        for (int i = 0; i < 3; ++i) {
          float weight[8];
          load8(staged + ((ky * kTaps + kx) * 3 + i) * padded + c, weight);
#pragma unroll
          for (int pixel = 0; pixel < kRun; ++pixel)
#pragma unroll
            for (int e = 0; e < 8; ++e) sums[pixel][e] += seen[pixel * kStep + kx][i] * weight[e];
        }
    }
#pragma unroll
    for (int pixel = 0; pixel < kRun; ++pixel) {
      if (x + pixel >= problem.out_width) break;
      float* to = out + static_cast<int64_t>(pixel) * problem.channels + c;
#pragma unroll
      for (int e = 0; e < 8; ++e) sums[pixel][e] = silu(sums[pixel][e]);
      if constexpr (VECTORS) {
        const float (&v)[8] = sums[pixel];
        store16(to, float4{v[0], v[1], v[2], v[3]});
        store16(to + 4, float4{v[4], v[5], v[6], v[7]});
      } else {
#pragma unroll
        for (int e = 0; e < 8; ++e)
          if (c + e < problem.channels) to[e] = sums[pixel][e];
      }
    }
  }
}

// Any other convolution: a thread computes eight channels of a pixel, a block some of a row.
template <typename T>
HYPERSEG_KERNEL(kStemThreads, 4)
stem_general_kernel(StemArgs<T> problem, FastDivmod parts) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int block = blockIdx.x, row = problem.across.quotient(block), n = problem.down.quotient(row);
  const int index = (block - row * problem.across.value()) * kStemThreads + static_cast<int>(threadIdx.x);
  const int y = row - n * problem.down.value(), x = parts.quotient(index), c = (index - x * parts.value()) * 8;
  if (x >= problem.out_width) return;
  NormalisedImage<T> image(problem, n);
  image.load_constants(problem);
  const int some = problem.channels - c;
  float sums[8];
  load8(problem.bias + c, 1, some, sums);
  int ky = 0, kx = 0;
#pragma unroll 1
  for (int tap = 0; tap < problem.size * problem.size; ++tap) {
    float seen[3];
    image.load(y * problem.stride - problem.top + ky, x * problem.stride - problem.left + kx, seen);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const float value = to_float(from_float<T>(seen[i]));
      float weight[8];
      load8(problem.weight.at(c, i, ky, kx), problem.weight.stride_n, some, weight);
#pragma unroll
      for (int e = 0; e < 8; ++e) sums[e] += value * weight[e];
    }
    if (++kx == problem.size) kx = 0, ++ky;
  }
  const int64_t pixel = static_cast<int64_t>(row) * problem.out_width + x;
  T* to = problem.out + pixel * problem.channels + c;
#pragma unroll
  for (int e = 0; e < 8; ++e)
    if (e < some) to[e] = from_float<T>(silu(sums[e]));
}

template <typename T>
void run(const Stem& stem, Stream stream) {
  StemArgs<T> problem{};
  problem.frames = stem.frames;
  problem.scale = stem.scale;
  problem.shift = stem.shift;
  problem.weight = stem.weight.of<const T>();
  problem.bias = static_cast<const T*>(stem.bias);
  problem.out = static_cast<T*>(stem.out);
  problem.height = static_cast<int>(stem.height);
  problem.width = static_cast<int>(stem.width);
  problem.size = static_cast<int>(stem.size);
  problem.stride = static_cast<int>(stem.stride);
  problem.left = static_cast<int>(stem.left);
  problem.top = static_cast<int>(stem.top);
  problem.channels = static_cast<int>(stem.channels);
  problem.out_height = static_cast<int>(stem.out_height);
  problem.out_width = static_cast<int>(stem.out_width);
  problem.constants_ready = stem.constants_ready;
  const Map<const uint8_t>& frames = stem.frames;
  problem.whole_words = frames.stride_c == 1 && frames.stride_w == 3 && frames.stride_h % 4 == 0 &&
                        frames.stride_n % 4 == 0 && stem.left % 4 == 0 &&
                        reinterpret_cast<uintptr_t>(frames.data) % 4 == 0;
  // Blocks: images x `down` x `across`.
  const auto grid = [&](int64_t down, int64_t across) {
    problem.down = FastDivmod(down), problem.across = FastDivmod(across);
    return grid_of(kOp, stem.images * down * across);
  };
  const auto tiles = [&](int columns) {
    return grid(blocks_of(stem.out_height, kTileRows), blocks_of(stem.out_width, columns));
  };
  const bool usual = stem.size == kTaps && stem.stride == kStep, vectors = stem.channels % 8 == 0;
  if constexpr (std::is_same_v<T, float>) {
    const size_t shared = simt_bytes(stem.channels);
    if (usual && shared <= kMaxShared) {
      const Grid blocks = tiles(kSimtColumns);
      const auto start =
          vectors ? launch<stem_simt_kernel<true>, StemArgs<float>> : launch<stem_simt_kernel<false>, StemArgs<float>>;
      return start(kOp, blocks, kStemThreads, shared, stream, problem);
    }
  } else {
    const size_t shared = mma_bytes<T>(stem.channels);
    if (usual && vectors && shared <= kMaxShared) {
      const Grid blocks = tiles(kMmaColumns);
      return launch<stem_mma_kernel<T>>(kOp, blocks, kStemThreads, shared, stream, problem);
    }
  }
  const FastDivmod parts(blocks_of(stem.channels, 8));
  check(stem.out_width * parts.value() < int64_t{1} << 31, kOp, ": rows of ", stem.out_width, " pixels with ",
        stem.channels, " channels are too large for a GPU");
  const Grid blocks = grid(stem.out_height, blocks_of(stem.out_width * parts.value(), kStemThreads));
  launch<stem_general_kernel<T>>(kOp, blocks, kStemThreads, 0, stream, problem, parts);
}

}  // namespace

void stem(const Stem& stem, Stream stream) {
  with_type(stem.type, [&](auto value) { run<decltype(value)>(stem, stream); });
}

}  // namespace hyperseg::cuda
