#include "cuda/decoder/level.cuh"
#include "cuda/device/launch.cuh"
#include "cuda/device/vectors.cuh"

// An inverted residual of 16-bit floats on tensor cores. A block computes a square of a patch's pixels and keeps its
// input, the patch's weights and 16 hidden channels at a time in shared memory:
//
//   expand    [pixels and halo, input] x [input, 16 hidden], ReLU6, to shared memory
//   filter    nine MMAs with diagonal matrices, one per tap: a shifted pixel is another row address
//   project   [pixels, 16 hidden] x [16 hidden, outputs]; the filter's accumulators are its left operand
//
// With halo "neighbour" the halo of a patch is expanded by its neighbours' weights, and two kernels divide the work:
// one expands and writes the hidden map to global memory, the other reads it, filters and projects.
//
// Rows in shared memory are an odd number of 16 bytes long, so that eight of them are in different banks.
namespace hyperseg::cuda {
namespace {

constexpr int kMaxChannels = 128, kMaxHidden = 1024, kMaxOutputs = 32;
constexpr int64_t kMaxBytes = 99 << 10;  // bytes of shared memory per block that every GPU since sm_80 has

enum class Part { kAll, kExpand, kRest };

template <int SIDE, Part PART>
struct SquareTile {
  static constexpr int kBorder = PART == Part::kExpand ? 0 : 1;
  static constexpr int kAround = SIDE + 2 * kBorder, kHalo = kAround * kAround;  // pixels per row, and in total
  static constexpr int kRows = (kHalo + 15) / 16;  // tiles of 16 rows, the unit of all `rows` here
  static constexpr int kWarps = SIDE == 16 ? 8 : SIDE * SIDE / 16, kThreads = 32 * kWarps;
  static constexpr int kRowsOfWarp = SIDE * SIDE / 16 / kWarps;  // of outputs
  static constexpr int kHiddenStride = 24;
};

constexpr int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }
constexpr int odd_units(int elements) { return ((elements + 7) / 8 | 1) * 8; }

// Shared-memory layout: offsets in 2-byte elements. The biases, in float, follow after the last of them.
template <int SIDE, Part PART>
struct SharedLayout {
  using Size = SquareTile<SIDE, PART>;
  int channels, hidden, outputs;  // padded to 8, 16 and 8
  int input_stride, project_stride;
  int expand, filters, project, chunk, biases, bytes;

  SharedLayout(int channels_, int hidden_, int outputs_)
      : channels(PART == Part::kRest ? 0 : round_up(channels_, 8)),
        hidden(round_up(hidden_, 16)),
        outputs(PART == Part::kExpand ? 0 : round_up(outputs_, 8)),
        input_stride(odd_units(channels)),
        project_stride(hidden + 8),
        expand(channels ? Size::kRows * 16 * input_stride : 0),
        filters(expand + (channels ? hidden * input_stride : 0)),
        project(filters + (outputs ? 9 * hidden : 0)),
        chunk(project + outputs * project_stride),
        biases(chunk + (outputs ? 2 * Size::kRows * 16 * Size::kHiddenStride : 0)),
        bytes(2 * biases + 4 * 2 * hidden) {}
};

// Whether eight channels of a pixel are one aligned load.
template <typename T>
bool is_vectorized(const Map<const T>& map) {
  return map && map.stride_c == 1 && map.channels % 8 == 0 && reinterpret_cast<uintptr_t>(map.data) % 16 == 0 &&
         (map.stride_n | map.stride_h | map.stride_w) % 8 == 0;
}

template <typename T>
HYPERSEG_DEVICE uint4 blend(const uint4& a, const uint4& b, const uint4& c, const uint4& d, float x, float y) {
  uint4 result;
  const uint32_t *a4 = &a.x, *b4 = &b.x, *c4 = &c.x, *d4 = &d.x;
  uint32_t* to = &result.x;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 left = unpack<T>(a4[i]), right = unpack<T>(b4[i]), below = unpack<T>(c4[i]), across = unpack<T>(d4[i]);
    to[i] = pack<T>(between(between(left.x, right.x, x), between(below.x, across.x, x), y),
                    between(between(left.y, right.y, x), between(below.y, across.y, x), y));
  }
  return result;
}

// Order of a pixel's channels in shared memory: previous, so that its 8-element vectors are 16-byte aligned whatever
// follows, then skip, coordinates, zeros.
template <typename T>
struct Pixels {
  const LevelInputView<T>& input;
  bool previous_vectorized, skip_vectorized;

  HYPERSEG_DEVICE int first_of_skip() const { return static_cast<int>(input.previous.channels); }
  HYPERSEG_DEVICE int first_coordinate() const { return input.channels - input.coordinates; }

  // Return the position in the weights of a channel in shared memory.
  HYPERSEG_DEVICE int weight_of(int c) const {
    return c < first_of_skip()      ? c + input.coordinates + static_cast<int>(input.skip.channels)
           : c < first_coordinate() ? c + input.coordinates - first_of_skip()
                                    : c - first_coordinate();
  }

  HYPERSEG_DEVICE void put(int n, int y, int x, int padded, T* to) const {
    const Map<const T>& previous = input.previous;
    const Sample row = input.row(y), column = input.column(x);
    const T* skip = input.skip.at(n, 0, y, x);
    int c = 0;
    if (previous_vectorized) {
      const T *upper = previous.at(n, 0, row.low, 0), *lower = previous.at(n, 0, row.high, 0);
      const int64_t left = column.low * previous.stride_w, right = column.high * previous.stride_w;
      const auto eight = [&](const T* line, int64_t pixel) {
        return *reinterpret_cast<const uint4*>(line + pixel + c);
      };
      for (; c < first_of_skip(); c += 8)
        *reinterpret_cast<uint4*>(to + c) = blend<T>(eight(upper, left), eight(upper, right), eight(lower, left),
                                                     eight(lower, right), column.weight, row.weight);
    }
    if (skip_vectorized && c == first_of_skip())
#pragma unroll 1
      for (; c < first_coordinate(); c += 8)
        *reinterpret_cast<uint4*>(to + c) = *reinterpret_cast<const uint4*>(skip + c - first_of_skip());
    const auto one = [&](int k) {
      return k < first_of_skip()      ? input.resized(n, k, row, column)
             : k < first_coordinate() ? to_float(skip[(k - first_of_skip()) * input.skip.stride_c])
             : k < input.channels     ? input.coordinate(k - first_coordinate(), y, x)
                                      : 0.0f;
    };
#pragma unroll 1
    for (; c < padded; c += 2) store2(to + c, float2{one(c), one(c + 1)});
  }
};

// The hidden map [image, y, x, hidden channels padded to 16], between the two kernels.
template <typename T>
struct SplitHiddenMap {
  T* data;
  int height, width, channels;

  HYPERSEG_DEVICE T* at(int n, int y, int x) const {
    return data + ((static_cast<int64_t>(n) * height + y) * width + x) * channels;
  }
};

// Running argmax: the largest score or NaN; of equal scores the lowest class.
struct Best {
  float score = 0.0f;
  uint32_t label = ~0u;  // none yet

  HYPERSEG_DEVICE void consider(float other, uint32_t its_label) {
    const bool equal = other == score || (other != other && score != score);
    const bool greater = !(other <= score) && score == score;
    if (label == ~0u || greater || (equal && its_label < label)) score = other, label = its_label;
  }
  HYPERSEG_DEVICE void consider_lane(int mask) {
    const float other = shuffle_xor(score, mask);
    const uint32_t its_label = shuffle_xor(label, mask);
    if (its_label != ~0u) consider(other, its_label);
  }
};

template <typename T, int SIDE, int OUTPUTS, Part PART>  // outputs in 8-element vectors
HYPERSEG_KERNEL((SquareTile<SIDE, PART>::kThreads), SIDE == 16  ? 2
                                                    : SIDE == 8 ? 4
                                                                : 12)
    inverted_residual_mma_kernel(LevelInputView<T> input, Patches<T> patches, Map<T> out, int hidden,
                                 SharedLayout<SIDE, PART> places, SplitHiddenMap<T> map, bool previous_vectorized,
                                 bool skip_vectorized, uint8_t* labels) {
  using Size = SquareTile<SIDE, PART>;
  constexpr int kExpanded = (Size::kRows + Size::kWarps - 1) / Size::kWarps;  // MMA row tiles of a warp
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int height = static_cast<int>(input.skip.height), width = static_cast<int>(input.skip.width);
  const int thread = threadIdx.x, warp = warp_index(), lane = thread % 32, channels = input.channels;
  const int outputs = static_cast<int>(out.channels);
  const int tiles_x = patches.patch_w / SIDE, tiles = tiles_x * (patches.patch_h / SIDE);
  const int patch = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int gx = patch % patches.grid_w, gy = patch / patches.grid_w % patches.grid_h;
  const int n = patch / patches.grid_w / patches.grid_h;
  const int left = gx * patches.patch_w + tile % tiles_x * SIDE, top = gy * patches.patch_h + tile / tiles_x * SIDE;

  T* const values = reinterpret_cast<T*>(shared_memory());
  T* const expand = values + places.expand;
  T* const filters = values + places.filters;
  T* const project = values + places.project;
  float* const biases = reinterpret_cast<float*>(values + places.biases);
  const T zero = from_float<T>(0.0f);

  const auto y_of = [&](int p) { return reflect(top + p / Size::kAround - Size::kBorder, height); };
  const auto x_of = [&](int p) { return reflect(left + p % Size::kAround - Size::kBorder, width); };
  const T* weights = patches.of(n, gy, gx);
  if constexpr (PART != Part::kRest) {
    const Pixels<T> pixels{input, previous_vectorized, skip_vectorized};
    for (int p = thread; p < Size::kRows * 16; p += Size::kThreads) {
      T* to = values + p * places.input_stride;
      if (p < Size::kHalo)
        pixels.put(n, y_of(p), x_of(p), places.channels, to);
      else
        for (int c = 0; c < places.channels; c += 8) *reinterpret_cast<uint4*>(to + c) = uint4{0, 0, 0, 0};
    }
    // The channels that pad the last 16 repeat the last hidden channel and are multiplied by 0 afterwards: zero weights
    // would turn an infinite input into NaN.
    for (int k = lane; k < places.channels; k += 32) {
      const T* column = weights + pixels.weight_of(k);
      for (int h = warp; h < places.hidden; h += Size::kWarps)
        expand[h * places.input_stride + k] = k < channels ? column[min(h, hidden - 1) * channels] : zero;
    }
  }
  if constexpr (PART != Part::kExpand) {
    weights += hidden * channels;
    for (int i = thread; i < 9 * places.hidden; i += Size::kThreads)
      filters[i % 9 * places.hidden + i / 9] = i < 9 * hidden ? weights[i] : zero;
    weights += 9 * hidden;
    for (int o = warp; o < OUTPUTS * 8; o += Size::kWarps)
      for (int h = lane; h < places.hidden; h += 32)
        project[o * places.project_stride + h] = o < outputs && h < hidden ? weights[o * hidden + h] : zero;
  }
  for (int i = thread; i < 2 * places.hidden; i += Size::kThreads) {
    const int h = i % places.hidden;
    biases[i] = h < hidden          ? patches.shift(i / places.hidden * hidden + h)
                : i < places.hidden ? patches.shift(hidden - 1)
                                    : 0.0f;
  }

  const int group = lane / 4, pair = lane % 4 * 2;  // a lane's row, and its first column, of an accumulator
  // Each warp expands every kWarps-th row tile; only its last one may be outside the pixels.
  const T* seen[kExpanded];
#pragma unroll
  for (int i = 0; i < kExpanded; ++i)
    seen[i] = values + ((warp + i * Size::kWarps) * 16 + lane % 16) * places.input_stride;
  const auto beyond = [&](int i) { return i + 1 == kExpanded && warp + i * Size::kWarps >= Size::kRows; };
  float sums[Size::kRowsOfWarp][OUTPUTS ? OUTPUTS : 1][4] = {};
  for (int first = 0; first < places.hidden; first += 16) {
    T* const chunk = values + places.chunk + first / 16 % 2 * (Size::kRows * 16 * Size::kHiddenStride);
    if (first == 0) sync_block();
    if constexpr (PART == Part::kRest) {
      for (int i = thread; i < 2 * Size::kHalo; i += Size::kThreads)
        *reinterpret_cast<uint4*>(chunk + i / 2 * Size::kHiddenStride + i % 2 * 8) =
            *reinterpret_cast<const uint4*>(map.at(n, y_of(i / 2), x_of(i / 2)) + first + i % 2 * 8);
    } else {
      float expanded[kExpanded][2][4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float b0 = biases[first + j * 8 + pair], b1 = biases[first + j * 8 + pair + 1];
#pragma unroll
        for (int i = 0; i < kExpanded; ++i)
          expanded[i][j][0] = expanded[i][j][2] = b0, expanded[i][j][1] = expanded[i][j][3] = b1;
      }
      const T* weight = expand + (first + lane / 16 * 8 + lane % 8) * places.input_stride + lane / 8 % 2 * 8;
#pragma unroll 1
      for (int k = 0; k < places.channels / 16 * 16; k += 16) {
        uint32_t b[4];
        ldmatrix4(b, weight + k);
#pragma unroll
        for (int i = 0; i < kExpanded; ++i) {
          if (beyond(i)) break;
          uint32_t a[4];
          ldmatrix4(a, seen[i] + lane / 16 * 8 + k);
          mma16<T>(expanded[i][0], a, b[0], b[1]);
          mma16<T>(expanded[i][1], a, b[2], b[3]);
        }
      }
      if (places.channels % 16) {
        const int k = places.channels - 8;
        uint32_t b[2];
        ldmatrix2(b, expand + (first + lane % 16) * places.input_stride + k);
#pragma unroll
        for (int i = 0; i < kExpanded; ++i) {
          if (beyond(i)) break;
          uint32_t a[2];
          ldmatrix2(a, seen[i] + k);
          mma8<T>(expanded[i][0], a[0], a[1], b[0]);
          mma8<T>(expanded[i][1], a[0], a[1], b[1]);
        }
      }
#pragma unroll
      for (int i = 0; i < kExpanded; ++i) {
        if (beyond(i)) break;
#pragma unroll
        for (int j = 0; j < 2; ++j)
#pragma unroll
          for (int below = 0; below < 2; ++below) {
            const int p = (warp + i * Size::kWarps) * 16 + group + below * 8, c = j * 8 + pair;
            const uint32_t two = relu6_of_two<T>(pack<T>(expanded[i][j][below * 2], expanded[i][j][below * 2 + 1]));
            if constexpr (PART == Part::kAll)
              *reinterpret_cast<uint32_t*>(chunk + p * Size::kHiddenStride + c) = two;
            else
              *reinterpret_cast<uint32_t*>(map.at(n, top + p / SIDE, left + p % SIDE) + first + c) = two;
          }
      }
    }
    if constexpr (PART == Part::kExpand) continue;
    sync_block();  // one barrier per chunk, because chunks alternate between two buffers

    float filtered[Size::kRowsOfWarp][2][4];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float* b = biases + places.hidden + first + j * 8 + pair;
#pragma unroll
      for (int i = 0; i < Size::kRowsOfWarp; ++i)
        filtered[i][j][0] = filtered[i][j][2] = b[0], filtered[i][j][1] = filtered[i][j][3] = b[1];
    }
    uint32_t taps[9][2];
#pragma unroll
    for (int tap = 0; tap < 9; ++tap)
#pragma unroll
      for (int j = 0; j < 2; ++j) taps[tap][j] = diagonal(&filters[tap * places.hidden + first + j * 8 + group], lane);
    // The 16 pixels of an MMA are one row of the tile, or several; all pixels of a warp are consecutive.
    const int pixel = warp * Size::kRowsOfWarp * 16 + lane % 16;
    const T* corner = chunk + (pixel / SIDE * Size::kAround + pixel % SIDE) * Size::kHiddenStride + lane / 16 * 8;
#pragma unroll
    for (int dy = 0; dy < Size::kRowsOfWarp + 2; ++dy)
#pragma unroll
      for (int dx = 0; dx < 3; ++dx) {
        uint32_t a[4];
        ldmatrix4(a, corner + (dy * Size::kAround + dx) * Size::kHiddenStride);
#pragma unroll
        for (int i = 0; i < Size::kRowsOfWarp; ++i)
          if (dy - i >= 0 && dy - i < 3) {
            mma8<T>(filtered[i][0], a[0], a[1], taps[(dy - i) * 3 + dx][0]);
            mma8<T>(filtered[i][1], a[2], a[3], taps[(dy - i) * 3 + dx][1]);
          }
      }
    uint32_t a[Size::kRowsOfWarp][4];
#pragma unroll
    for (int i = 0; i < Size::kRowsOfWarp; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float* v = filtered[i][j / 2] + j % 2 * 2;
        a[i][j] = relu6_of_two<T>(pack<T>(v[0], v[1]));
      }
#pragma unroll
    for (int j = 0; j < OUTPUTS; ++j) {
      uint32_t b[2];
      ldmatrix2(b, project + (j * 8 + lane % 8) * places.project_stride + first + lane / 8 % 2 * 8);
#pragma unroll
      for (int i = 0; i < Size::kRowsOfWarp; ++i) mma16<T>(sums[i][j], a[i], b[0], b[1]);
    }
  }

  constexpr int kStoredRows = PART == Part::kExpand ? 0 : Size::kRowsOfWarp;
#pragma unroll
  for (int i = 0; i < kStoredRows; ++i)
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      const int pixel = (warp * Size::kRowsOfWarp + i) * 16 + group + below * 8;
      const int y = top + pixel / SIDE, x = left + pixel % SIDE;
      T* to = out.at(n, pair, y, x);
      Best best;
#pragma unroll
      for (int j = 0; j < OUTPUTS; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int o = j * 8 + pair + e;
          if (o >= outputs) continue;
          const T value = from_float<T>(sums[i][j][below * 2 + e] + patches.shift(2 * hidden + o));
          if (labels)
            best.consider(to_float(value), o);
          else
            to[(j * 8 + e) * out.stride_c] = value;
        }
      if (!labels) continue;
      best.consider_lane(1);
      best.consider_lane(2);
      if (pair == 0) labels[(static_cast<int64_t>(n) * height + y) * width + x] = static_cast<uint8_t>(best.label);
    }
}

template <typename T, int SIDE, int OUTPUTS, Part PART>
void launch_part(const DecoderLevelArgs& level, const SplitHiddenMap<T>& map, const char* op, Stream stream) {
  const LevelInputView<T> input(level);
  const SharedLayout<SIDE, PART> places(level.channels(), level.hidden, OUTPUTS * 8);
  const int64_t blocks = level.out.height / SIDE * (level.out.width / SIDE) * level.images;
  launch<inverted_residual_mma_kernel<T, SIDE, OUTPUTS, PART>>(
      op, grid_of(op, blocks), SquareTile<SIDE, PART>::kThreads, static_cast<size_t>(places.bytes), stream, input,
      Patches<T>(level), level.out.of<T>(), level.hidden, places, map, is_vectorized(input.previous),
      is_vectorized(input.skip), level.labels);
}

template <typename T, int SIDE, int OUTPUTS>
bool run_tiles(const DecoderLevelArgs& level, const char* op, Stream stream) {
  const auto fits = [&](auto places) { return places.bytes <= kMaxBytes; };
  const int channels = level.channels();
  const SplitHiddenMap<T> map{static_cast<T*>(level.hidden_map), static_cast<int>(level.out.height),
                              static_cast<int>(level.out.width), round_up(level.hidden, 16)};
  if (level.own_halo) {
    if (!fits(SharedLayout<SIDE, Part::kAll>(channels, level.hidden, OUTPUTS * 8))) return false;
    launch_part<T, SIDE, OUTPUTS, Part::kAll>(level, map, op, stream);
  } else {
    if (!fits(SharedLayout<SIDE, Part::kExpand>(channels, level.hidden, 0)) ||
        !fits(SharedLayout<SIDE, Part::kRest>(channels, level.hidden, OUTPUTS * 8)))
      return false;
    launch_part<T, SIDE, 0, Part::kExpand>(level, map, op, stream);
    launch_part<T, SIDE, OUTPUTS, Part::kRest>(level, map, op, stream);
  }
  return true;
}

template <typename T, int SIDE>
bool run_sides(const DecoderLevelArgs& level, const char* op, Stream stream) {
  if (level.patch_h() % SIDE || level.patch_w() % SIDE) return false;
  // A variant for two vectors would save 3 of about 350 instructions, and double the kernels to compile.
  return level.out.channels <= 24 ? run_tiles<T, SIDE, 3>(level, op, stream) : run_tiles<T, SIDE, 4>(level, op, stream);
}

}  // namespace

int64_t hidden_map_size(const DecoderLevelArgs& level, Type type) {
  if (level.own_halo || level.hidden == 0 || type == Type::kFloat) return 0;
  return level.out.height * level.out.width * level.images * round_up(level.hidden, 16);
}

bool inverted_residual_mma_level(const DecoderLevelArgs& level, Type type, const char* op, Stream stream) {
  if (level.channels() > kMaxChannels || level.hidden > kMaxHidden || level.out.channels > kMaxOutputs) return false;
  bool launched = false;
  with_type(type, [&](auto value) {
    using T = decltype(value);
    if constexpr (sizeof(T) == 2)
      launched = run_sides<T, 16>(level, op, stream) || run_sides<T, 8>(level, op, stream) ||
                 run_sides<T, 4>(level, op, stream);
  });
  return launched;
}

}  // namespace hyperseg::cuda
