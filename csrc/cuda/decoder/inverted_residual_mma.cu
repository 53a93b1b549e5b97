#include <cmath>
#include <initializer_list>
#include <type_traits>

#include "cuda/decoder/level.cuh"
#include "cuda/decoder/patch_grid.cuh"
#include "cuda/device/launch.cuh"
#include "cuda/device/vectors.cuh"

// An inverted residual of 16-bit floats on tensor cores. A block computes a square of a patch's pixels and keeps its
// input, the patch's weights and 16 hidden channels at a time in shared memory:
//
//   expand    [pixels and halo, input] x [input, 16 hidden], ReLU6, to shared memory
//   filter    MMAs with diagonal matrices, two taps each: a shifted pixel is another row address
//   project   [pixels, 16 hidden] x [16 hidden, outputs]; the filter's accumulators are its left operand
//
// The bias of the expansion is the weight of an input that is 1; that of the filter is the first value of its
// accumulators. No pixel is multiplied by 0: that would spread NaN.
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
  static constexpr int kWarps = SIDE == 16 ? 4 : SIDE * SIDE / 16, kThreads = 32 * kWarps;
  static constexpr int kRowsOfWarp = SIDE * SIDE / 16 / kWarps;  // of outputs
  static constexpr int kHiddenStride = 24;
  static constexpr int kQuadsAcross = SIDE / 2 + 1, kQuads = kQuadsAcross * kQuadsAcross;  // see QuadAxis
};

HYPERSEG_HOST_DEVICE constexpr int round_up(int value, int multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
constexpr int odd_units(int elements) { return ((elements + 7) / 8 | 1) * 8; }

// An axis of 2x2 pixels that are resized together: their first row or column is odd, so that at twice the size of
// previous both sample the same two of it. Offsets in previous, -1 if they do not sample the same.
struct QuadAxis {
  int low, high;
  float weights[2];  // of high
};
// A row or a column of pixels: its offset in skip, and its coordinate.
struct PixelAxis {
  int offset;
  float coordinate;
};

// The filter of a channel, a word per tap: the weight in the low half for even channels, in the high half for odd ones.
// A pair of taps is the right operand of one MMA: taps 0 and 1 of a row, or tap 2 of two rows.
// After the last channel there are zeros, which lanes outside the diagonals read.
constexpr int kTapWords = 12, kZeroWords = 16;
HYPERSEG_HOST_DEVICE constexpr int pair_across(int row) { return 2 * row; }
constexpr int kPairFromTop = 6, kPairFromMiddle = 8;               // tap 2 of the first two rows, of the last two
constexpr int kTop = kPairFromTop, kBottom = kPairFromMiddle + 1;  // tap 2 of one row
HYPERSEG_HOST_DEVICE constexpr int word_of(int tap) {
  return tap % 3 < 2 ? pair_across(tap / 3) + tap % 3 : tap == 8 ? kBottom : kPairFromTop + tap / 3;
}

// Shared-memory layout: offsets in 2-byte elements.
template <int SIDE, Part PART>
struct SharedLayout {
  using Size = SquareTile<SIDE, PART>;
  int channels, hidden, outputs;  // with the 1 and padded to 8, padded to 16 and to 8
  int input_stride, project_stride;
  int expand, project, chunk, filters, biases, axes, bytes;

  SharedLayout(int channels_, int hidden_, int outputs_)
      : channels(PART == Part::kRest ? 0 : round_up(channels_ + 1, 8)),
        hidden(round_up(hidden_, 16)),
        outputs(PART == Part::kExpand ? 0 : round_up(outputs_, 8)),
        input_stride(odd_units(channels)),
        project_stride(hidden + 8),
        expand(channels ? Size::kRows * 16 * input_stride : 0),
        project(expand + (channels ? hidden * input_stride : 0)),
        chunk(project + outputs * project_stride),
        filters(chunk + (outputs ? 2 * Size::kRows * 16 * Size::kHiddenStride : 0)),
        biases(filters + (outputs ? 2 * (kTapWords * hidden + kZeroWords) : 0)),
        axes(biases + (outputs ? 2 * hidden : 0)),
        bytes(2 * axes + (channels ? 2 * static_cast<int>(sizeof(QuadAxis)) * Size::kQuadsAcross +
                                         2 * static_cast<int>(sizeof(PixelAxis)) * Size::kAround
                                   : 0)) {}
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
// follows, then skip, coordinates, a 1 for the bias, zeros.
template <typename T, int SIDE, Part PART>
struct Window {
  using Size = SquareTile<SIDE, PART>;
  const LevelInputView<T>& input;
  const SharedLayout<SIDE, PART>& places;
  int n, top, left;
  bool previous_vectorized, skip_vectorized;

  HYPERSEG_DEVICE int first_of_skip() const { return static_cast<int>(input.previous.channels); }
  HYPERSEG_DEVICE int first_coordinate() const { return input.channels - input.coordinates; }

  // Return the position in the weights of a channel in shared memory.
  HYPERSEG_DEVICE int weight_of(int c) const {
    return c < first_of_skip()      ? c + input.coordinates + static_cast<int>(input.skip.channels)
           : c < first_coordinate() ? c + input.coordinates - first_of_skip()
                                    : c - first_coordinate();
  }

  HYPERSEG_DEVICE int row(int i) const { return reflect(top + i, static_cast<int>(input.skip.height)); }
  HYPERSEG_DEVICE int column(int i) const { return reflect(left + i, static_cast<int>(input.skip.width)); }

  HYPERSEG_DEVICE QuadAxis* quads() const {
    return reinterpret_cast<QuadAxis*>(shared_memory() + 2 * places.axes);  // rows, then columns
  }
  HYPERSEG_DEVICE PixelAxis* pixels() const { return reinterpret_cast<PixelAxis*>(quads() + 2 * Size::kQuadsAcross); }

  // Compute the axes that put() reads after a barrier.
  HYPERSEG_DEVICE void prepare() const {
    const int thread = threadIdx.x, last = Size::kThreads - 1 - thread;
    if (thread < 2 * Size::kAround) {
      const bool across = thread >= Size::kAround;
      const int i = thread - (across ? Size::kAround : 0) - Size::kBorder;
      pixels()[thread] =
          across ? PixelAxis{column(i) * static_cast<int>(input.skip.stride_w), input.coordinate(0, 0, column(i))}
                 : PixelAxis{row(i) * static_cast<int>(input.skip.stride_h), input.coordinate(1, row(i), 0)};
    }
    if (input.previous && last < 2 * Size::kQuadsAcross) {
      const bool across = last >= Size::kQuadsAcross;
      const int i = 2 * (last - (across ? Size::kQuadsAcross : 0)) - 1;
      const auto sample = [&](int k) {
        if (!Size::kBorder) k = min(max(k, 0), SIDE - 1);  // it is not stored
        return across ? input.column(column(k)) : input.row(row(k));
      };
      const Sample first = sample(i), second = sample(i + 1);
      const int stride = static_cast<int>(across ? input.previous.stride_w : input.previous.stride_h);
      const bool same = first.low == second.low && first.high == second.high;
      quads()[last] = {same ? first.low * stride : -1, first.high * stride, {first.weight, second.weight}};
    }
  }

  // Store all channels of the block's pixels.
  HYPERSEG_DEVICE void put(T* values) const {
    if (previous_vectorized)
      put_previous<true>(values);
    else if (input.previous)
      put_previous<false>(values);
    put_skip(values + first_of_skip());
  }

 private:
  // Eight channels at a time, or one.
  template <bool VECTORIZED>
  HYPERSEG_DEVICE void put_previous(T* values) const {
    constexpr int kUnit = VECTORIZED ? 8 : 1;
    const T* const map = input.previous.at(n, 0, 0, 0);
    const int tasks = static_cast<int>(input.previous.channels) / kUnit * Size::kQuads;
    const int stride = VECTORIZED ? kUnit : static_cast<int>(input.previous.stride_c);
    for (int i = threadIdx.x; i < tasks; i += Size::kThreads) {
      const int unit = i / Size::kQuads, quad = i - unit * Size::kQuads;
      const int down = quad / Size::kQuadsAcross, across = quad - down * Size::kQuadsAcross;
      const QuadAxis y = quads()[down], x = quads()[Size::kQuadsAcross + across];
      const T* const from = map + unit * stride;
      const int line = Size::kAround * places.input_stride;
      const int first_row = 2 * down - 1 + Size::kBorder, first_column = 2 * across - 1 + Size::kBorder;
      T* const to = values + first_row * line + first_column * places.input_stride + kUnit * unit;
      const auto stored = [&](int m) {  // whether pixel m of the four is in the window
        const int r = first_row + m / 2, c = first_column + m % 2;
        return Size::kBorder || (r >= 0 && r < SIDE && c >= 0 && c < SIDE);
      };
      const auto pixel = [&](int m) { return to + m / 2 * line + m % 2 * places.input_stride; };
      if (y.low < 0 || x.low < 0) {
#pragma unroll 1
        for (int m = 0; m < 4; ++m) {
          if (!stored(m)) continue;
          const Sample in_row = input.row(row(first_row + m / 2 - Size::kBorder));
          const Sample in_column = input.column(column(first_column + m % 2 - Size::kBorder));
          if constexpr (VECTORIZED)
            *reinterpret_cast<uint4*>(pixel(m)) = sampled(from, in_row, in_column);
          else
            *pixel(m) = from_float<T>(input.resized(n, unit, in_row, in_column));
        }
        continue;
      }
      if constexpr (!VECTORIZED) {
        const float a = to_float(from[y.low + x.low]), b = to_float(from[y.low + x.high]);
        const float c = to_float(from[y.high + x.low]), d = to_float(from[y.high + x.high]);
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const float w = x.weights[m % 2];
          const T value = from_float<T>(between(between(a, b, w), between(c, d, w), y.weights[m / 2]));
          if (stored(m)) *pixel(m) = value;
        }
        continue;
      }
      const uint4 a = *reinterpret_cast<const uint4*>(from + (y.low + x.low));
      const uint4 b = *reinterpret_cast<const uint4*>(from + (y.low + x.high));
      const uint4 c = *reinterpret_cast<const uint4*>(from + (y.high + x.low));
      const uint4 d = *reinterpret_cast<const uint4*>(from + (y.high + x.high));
      uint4 results[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float2 corners[4] = {unpack<T>((&a.x)[k]), unpack<T>((&b.x)[k]), unpack<T>((&c.x)[k]),
                                   unpack<T>((&d.x)[k])};
#pragma unroll
        for (int column = 0; column < 2; ++column) {
          const float w = x.weights[column];
          const float2 upper{between(corners[0].x, corners[1].x, w), between(corners[0].y, corners[1].y, w)};
          const float2 lower{between(corners[2].x, corners[3].x, w), between(corners[2].y, corners[3].y, w)};
#pragma unroll
          for (int row = 0; row < 2; ++row)
            (&results[2 * row + column].x)[k] =
                pack<T>(between(upper.x, lower.x, y.weights[row]), between(upper.y, lower.y, y.weights[row]));
        }
      }
#pragma unroll
      for (int m = 0; m < 4; ++m)
        if (stored(m)) *reinterpret_cast<uint4*>(pixel(m)) = results[m];
    }
  }

  HYPERSEG_DEVICE uint4 sampled(const T* from, const Sample& y, const Sample& x) const {
    const auto eight = [&](int of_row, int of_column) {
      return *reinterpret_cast<const uint4*>(from + of_row * input.previous.stride_h +
                                             of_column * input.previous.stride_w);
    };
    return blend<T>(eight(y.low, x.low), eight(y.low, x.high), eight(y.high, x.low), eight(y.high, x.high), x.weight,
                    y.weight);
  }

  // Store all channels but those of previous. The threads with the least of those have the most pixels.
  HYPERSEG_DEVICE void put_skip(T* values) const {
    const T* const map = input.skip.at(n, 0, 0, 0);
    const int count = static_cast<int>(input.skip.channels), padded = places.channels - first_of_skip();
    const int stride = static_cast<int>(input.skip.stride_c);
    for (int i = Size::kThreads - 1 - threadIdx.x; i < Size::kHalo; i += Size::kThreads) {
      const int down = i / Size::kAround, across = i - down * Size::kAround;
      const PixelAxis y = pixels()[down], x = pixels()[Size::kAround + across];
      const T* const from = map + (y.offset + x.offset);
      T* const to = values + i * places.input_stride;
      if (skip_vectorized) {
#pragma unroll 2
        for (int c = 0; c < count; c += 8) copy_async(to + c, from + c, true);
        const uint32_t one = pack<T>(1.0f, 0.0f), pair = pack<T>(x.coordinate, y.coordinate);
        *reinterpret_cast<uint4*>(to + count) = input.coordinates ? uint4{pair, one, 0, 0} : uint4{one, 0, 0, 0};
        continue;
      }
      const T* value = from;
#pragma unroll 2
      for (int c = 0; c < count; ++c, value += stride) to[c] = *value;
      if (input.coordinates) {
        to[count] = from_float<T>(x.coordinate);
        to[count + 1] = from_float<T>(y.coordinate);
      }
      to[count + input.coordinates] = from_float<T>(1.0f);
#pragma unroll 1
      for (int c = count + input.coordinates + 1; c < padded; ++c) to[c] = from_float<T>(0.0f);
    }
  }
};

// Copy rows of weights to shared memory, column k from column_of(k). From row `rows` on the last one is repeated, or
// there are zeros, then also from column `columns` on. PAIRED: two adjacent columns at a time, which copies
// asynchronously.
template <bool PAIRED, bool REPEATED, int WARPS, typename T, typename Of>
HYPERSEG_DEVICE void stage_rows(T* to, int stride, int padded_rows, int padded_columns, const T* from, int rows,
                                int columns, int warp, int lane, const Of& column_of) {
  constexpr int kUnit = PAIRED ? 2 : 1;
  for (int k = lane * kUnit; k < (REPEATED ? columns : padded_columns); k += 32 * kUnit) {
    const bool inside = REPEATED || k < columns;
    const T* const source = from + (inside ? column_of(k) : 0);
    T* target = to + warp * stride + k;
    const auto copy = [&](const T* value, bool here) {
      if constexpr (PAIRED)
        copy_async<4>(target, value, here);
      else
        *target = here ? *value : from_float<T>(0.0f);
      target += WARPS * stride;
    };
    const T* value = source + warp * columns;
    int r = warp;
#pragma unroll 4
    for (; r < rows; r += WARPS, value += WARPS * columns) copy(value, inside);
#pragma unroll 1
    for (; r < padded_rows; r += WARPS) copy(source + (rows - 1) * columns, REPEATED);
  }
}

// The hidden map [image, y, x, hidden channels padded to 16], between the two kernels.
template <typename T>
struct SplitHiddenMap {
  T* data;
  int height, width, channels;

  HYPERSEG_DEVICE T* at(int n, int y, int x) const {
    return data + ((static_cast<int64_t>(n) * height + y) * width + x) * channels;
  }
};

// Two 16-bit floats as integers in the same order: 0 and -0 are equal, NaN is the largest.
template <typename T>
HYPERSEG_DEVICE uint32_t ranks(uint32_t two) {
  two = without_negative_zeros<T>(two);
  return two ^ (two >> 15 & 0x10001) * 0x7fff;
}

// The tiles of all patches, numbered patch by patch.
struct TileGrid {
  FastDivmod per_patch, per_row;
  PatchGrid patches;
};

// What can be read or written by wider units: previous and skip in 8-element vectors, weights and outputs in pairs.
struct Units {
  bool previous, skip, weights, out;
};

template <typename T, int SIDE, int OUTPUTS, Part PART>  // outputs in 8-element vectors
HYPERSEG_KERNEL((SquareTile<SIDE, PART>::kThreads), SIDE == 16  ? (OUTPUTS == 4 ? 2 : 3)
                                                    : SIDE == 8 ? 4
                                                                : 12)
    inverted_residual_mma_kernel(LevelInputView<T> input, Patches<T> patches, TileGrid grid, Map<T> out, int hidden,
                                 SharedLayout<SIDE, PART> places, SplitHiddenMap<T> map, Units units, uint8_t* labels) {
  using Size = SquareTile<SIDE, PART>;
  constexpr int kLine = Size::kAround * Size::kHiddenStride;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int thread = threadIdx.x, warp = warp_index(), lane = thread % 32, channels = input.channels;
  const int outputs = static_cast<int>(out.channels);
  const int patch = grid.per_patch.quotient(blockIdx.x), tile = blockIdx.x - patch * grid.per_patch.value();
  const int tile_y = grid.per_row.quotient(tile), tile_x = tile - tile_y * grid.per_row.value();
  const PatchGrid::Place at = grid.patches.place(patch);
  const int n = at.n, left = at.x * patches.patch_w + tile_x * SIDE, top = at.y * patches.patch_h + tile_y * SIDE;

  T* const values = reinterpret_cast<T*>(shared_memory());
  T* const expand = values + places.expand;
  T* const project = values + places.project;
  uint32_t* const filters = reinterpret_cast<uint32_t*>(values + places.filters);
  float* const biases = reinterpret_cast<float*>(values + places.biases);

  const Window<T, SIDE, PART> window{input, places, n, top, left, units.previous, units.skip};
  const T* const weights = patches.of(n, at.y, at.x);
  if constexpr (PART != Part::kRest) {
    // The channels that pad the last 16 repeat the last hidden channel and are multiplied by 0 afterwards: zero weights
    // would turn an infinite input into NaN.
    const auto stage = [&](auto paired) {
      stage_rows<decltype(paired)::value, true, Size::kWarps>(expand, places.input_stride, places.hidden,
                                                              places.channels, weights, hidden, channels, warp, lane,
                                                              [&](int k) { return window.weight_of(k); });
    };
    units.weights ? stage(std::true_type{}) : stage(std::false_type{});
    for (int h = Size::kThreads - 1 - thread; h < places.hidden; h += Size::kThreads) {
      T* const row = expand + h * places.input_stride;
      row[channels] = from_float<T>(patches.shift(min(h, hidden - 1)));
#pragma unroll 1
      for (int k = channels + 1; k < places.channels; ++k) row[k] = from_float<T>(0.0f);
    }
    window.prepare();
  }
  if constexpr (PART != Part::kExpand) {
    const T* const taps = weights + hidden * channels;
    const auto stage = [&](auto paired) {
      stage_rows<decltype(paired)::value, false, Size::kWarps>(
          project, places.project_stride, min(OUTPUTS * 8, round_up(outputs, 16)), places.hidden, taps + 9 * hidden,
          outputs, hidden, warp, lane, [](int k) { return k; });
    };
    units.weights ? stage(std::true_type{}) : stage(std::false_type{});
    for (int h = thread; h < places.hidden; h += Size::kThreads) {
      uint32_t words[kTapWords] = {};
#pragma unroll
      for (int tap = 0; tap < 9; ++tap) {
        const uint32_t bits = h < hidden ? *reinterpret_cast<const uint16_t*>(taps + h * 9 + tap) : 0;
        words[word_of(tap)] = bits << h % 2 * 16;
      }
      words[kPairFromMiddle] = words[kPairFromTop + 1];
      biases[h] = h < hidden ? patches.shift(hidden + h) : 0.0f;
#pragma unroll
      for (int i = 0; i < kTapWords; i += 4)
        *reinterpret_cast<uint4*>(filters + h * kTapWords + i) =
            uint4{words[i], words[i + 1], words[i + 2], words[i + 3]};
    }
    if (thread < kZeroWords) filters[places.hidden * kTapWords + thread] = 0;
  }
  const int group = lane / 4, pair = lane % 4 * 2;  // a lane's row, and its first column, of an accumulator
  // The first values of the sums. Outputs that do not exist are never the largest.
  float sums[Size::kRowsOfWarp][OUTPUTS ? OUTPUTS : 1][4];
#pragma unroll
  for (int j = 0; j < OUTPUTS; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int o = j * 8 + pair + e;
      const float first = o < outputs ? patches.shift(2 * hidden + o) : labels ? -INFINITY : 0.0f;
#pragma unroll
      for (int i = 0; i < Size::kRowsOfWarp; ++i) sums[i][j][e] = sums[i][j][e + 2] = first;
    }

  // Offsets of the vectors of the hidden map that a thread reads per chunk.
  constexpr int kVectors = (2 * Size::kHalo + Size::kThreads - 1) / Size::kThreads;
  int sources[kVectors];
  if constexpr (PART == Part::kRest) {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int i = thread + k * Size::kThreads, p = i / 2;
      sources[k] = (window.row(p / Size::kAround - Size::kBorder) * map.width +
                    window.column(p % Size::kAround - Size::kBorder)) *
                       map.channels +
                   i % 2 * 8;
    }
  }
  const auto copy_hidden = [&](int first, T* chunk) {
    const T* const from = map.at(n, 0, 0) + first;
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int i = thread + k * Size::kThreads;
      if (i < 2 * Size::kHalo) copy_async(chunk + i / 2 * Size::kHiddenStride + i % 2 * 8, from + sources[k], true);
    }
    commit_copies();
  };
  T* const chunks = values + places.chunk;
  constexpr int kChunkValues = Size::kRows * 16 * Size::kHiddenStride;
  if constexpr (PART == Part::kRest) {
    copy_hidden(0, chunks);
  } else {
    sync_block();  // the axes
    window.put(values);
    commit_copies();
    wait_for_copies<0>();
    sync_block();
  }

  // Expand 16 or 32 hidden channels; a warp has every kWarps-th row tile. FULL, TAIL: steps of 16 and 8 channels, whose
  // weights are in registers; with FULL == 0 any number.
  const T* const seen = values + (warp * 16 + lane % 16) * places.input_stride + lane / 16 * 8;
  const auto expand_tiles = [&](auto full, auto tail, int first, T* chunk) {
    constexpr int kFull = decltype(full)::value, kTail = decltype(tail)::value;
    const bool both = first + 16 < places.hidden;
    const T* const weight = expand + (first + lane / 16 * 8 + lane % 8) * places.input_stride + lane / 8 % 2 * 8;
    const T* const last_weight = expand + (first + lane % 16) * places.input_stride + places.channels - 8;
    uint32_t b[2][kFull + 1][4];
    const auto load_weights = [&](int half) {
#pragma unroll
      for (int k = 0; k < kFull; ++k) ldmatrix4(b[half][k], weight + half * 16 * places.input_stride + 16 * k);
      if (kTail) ldmatrix2(b[half][kFull], last_weight + half * 16 * places.input_stride);
    };
    if (kFull) {
      load_weights(0);
      if (both) load_weights(1);
    }
    const T* from = seen;
#pragma unroll 1
    for (int tile = warp; tile < Size::kRows; tile += Size::kWarps, from += Size::kWarps * 16 * places.input_stride) {
      uint32_t a[kFull + 1][4];
#pragma unroll
      for (int k = 0; k < kFull; ++k) ldmatrix4(a[k], from + 16 * k);
      if (kTail) ldmatrix2(a[kFull], from + 16 * kFull);
      const auto expand_half = [&](int half) {
        float expanded[2][4] = {};
        if (kFull) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
#pragma unroll
            for (int k = 0; k < kFull; ++k)
              if (k == 0)
                mma16<T>(expanded[j], a[k], b[half][k][2 * j], b[half][k][2 * j + 1], float4{});
              else
                mma16<T>(expanded[j], a[k], b[half][k][2 * j], b[half][k][2 * j + 1]);
            if (kTail) mma8<T>(expanded[j], a[kFull][0], a[kFull][1], b[half][kFull][j]);
          }
        } else {
#pragma unroll 1
          for (int k = 0; k < places.channels / 16 * 16; k += 16) {
            ldmatrix4(a[0], from + k);
            ldmatrix4(b[0][0], weight + half * 16 * places.input_stride + k);
#pragma unroll
            for (int j = 0; j < 2; ++j) mma16<T>(expanded[j], a[0], b[0][0][2 * j], b[0][0][2 * j + 1]);
          }
          if (places.channels % 16) {
            ldmatrix2(a[0], from + places.channels - 8);
            ldmatrix2(b[0][0], last_weight + half * 16 * places.input_stride);
#pragma unroll
            for (int j = 0; j < 2; ++j) mma8<T>(expanded[j], a[0][0], a[0][1], b[0][0][j]);
          }
        }
        uint32_t packed[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* v = expanded[j / 2] + j % 2 * 2;
          packed[j] = pack_relu6<T>(v[0], v[1]);
        }
        if constexpr (PART == Part::kAll) {
          store_matrix4<Size::kHiddenStride>(chunk + half * kChunkValues + tile * 16 * Size::kHiddenStride, lane,
                                             packed);
        } else {
#pragma unroll
          for (int below = 0; below < 2; ++below) {
            const int p = tile * 16 + group + below * 8;
            T* const own = map.at(n, top + p / SIDE, left + p % SIDE) + pair + first + half * 16;
            *reinterpret_cast<uint32_t*>(own) = packed[below];
            *reinterpret_cast<uint32_t*>(own + 8) = packed[2 + below];
          }
        }
      };
      expand_half(0);
      if (both) expand_half(1);
    }
  };
  const auto expand_pair = [&](int first) {
    const auto run = [&](auto full, auto tail) { expand_tiles(full, tail, first, chunks); };
    using No = std::integral_constant<int, 0>;
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    const int steps = places.channels / 8;
    if (steps == 5)
      run(Two{}, One{});
    else if (steps == 4)
      run(Two{}, No{});
    else if (steps == 3)
      run(One{}, One{});
    else if (steps == 2)
      run(One{}, No{});
    else
      run(No{}, No{});
  };
  if constexpr (PART == Part::kExpand) {
#pragma unroll 1
    for (int first = 0; first < places.hidden; first += 32) expand_pair(first);
    return;
  }

  // The 16 pixels of an MMA are one row of the tile, or several; all pixels of a warp are consecutive. Two taps of an
  // MMA are a pixel or a row apart.
  const int pixel = warp * Size::kRowsOfWarp * 16 + lane % 16;
  const int corner = (pixel / SIDE * Size::kAround + pixel % SIDE) * Size::kHiddenStride;
  const int by_column = corner + lane / 16 * Size::kHiddenStride;
  const int by_row = corner + 2 * Size::kHiddenStride + lane / 16 * kLine;
  const bool diagonal = lane % 4 == group / 2;
  // The zeros that a lane reads are not in the banks of the weights that others read with it.
  const uint32_t* taps = filters + (diagonal ? group * kTapWords : places.hidden * kTapWords + (group < 2 ? 4 : 0));
  const int tap_step = diagonal ? 8 * kTapWords : 0;
  const float* bias = biases + pair;
  const T* const last_weights = project + (lane / 16 * 8 + lane % 8) * places.project_stride + lane / 8 % 2 * 8;

#pragma unroll 1
  for (int first = 0; first < places.hidden; first += 16) {
    const int odd = first / 16 % 2;
    const T* const chunk = chunks + odd * kChunkValues;
    if constexpr (PART == Part::kRest) {
      wait_for_copies<0>();
      sync_block();  // one barrier per chunk, because chunks alternate between two buffers
      if (first + 16 < places.hidden) copy_hidden(first + 16, chunks + (1 - odd) * kChunkValues);
    } else if (!odd) {
      if (first > 0) sync_block();
      expand_pair(first);
      sync_block();
    }

    uint32_t hidden_values[Size::kRowsOfWarp][4];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float filtered[Size::kRowsOfWarp][4];
      uint32_t b[kTapWords];
#pragma unroll
      for (int i = 0; i < kTapWords; i += 4) {
        const uint4 four = *reinterpret_cast<const uint4*>(taps + i);
        b[i] = four.x, b[i + 1] = four.y, b[i + 2] = four.z, b[i + 3] = four.w;
      }
      taps += tap_step;
      const float2 two = load2(bias + 8 * j);
      const float4 start{two.x, two.y, two.x, two.y};
#pragma unroll
      for (int dy = 0; dy < Size::kRowsOfWarp + 2; ++dy) {
        uint32_t a[4];
        ldmatrix4(a, chunk + by_column + dy * kLine + 8 * j);
#pragma unroll
        for (int i = 0; i < Size::kRowsOfWarp; ++i) {
          if (dy < i || dy - i > 2) continue;
          const int row = pair_across(dy - i);
          if (dy == i)
            mma16<T>(filtered[i], a, b[row], b[row + 1], start);
          else
            mma16<T>(filtered[i], a, b[row], b[row + 1]);
        }
      }
#pragma unroll
      for (int dy = 0; dy < Size::kRowsOfWarp + 2; dy += 2) {
        uint32_t a[4];
        if (dy == Size::kRowsOfWarp + 1)
          ldmatrix2(a, chunk + by_row + dy * kLine + 8 * j);  // the last row alone
        else
          ldmatrix4(a, chunk + by_row + dy * kLine + 8 * j);
#pragma unroll
        for (int i = 0; i < Size::kRowsOfWarp; ++i) {
          if (dy == i) mma16<T>(filtered[i], a, b[kPairFromTop], b[kPairFromTop + 1]);
          if (dy == i + 1) mma16<T>(filtered[i], a, b[kPairFromMiddle], b[kPairFromMiddle + 1]);
          if (dy == i + 2) mma8<T>(filtered[i], a[0], a[1], b[kBottom]);
          if (dy == i - 1) mma8<T>(filtered[i], a[2], a[3], b[kTop]);
        }
      }
#pragma unroll
      for (int i = 0; i < Size::kRowsOfWarp; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          hidden_values[i][2 * j + e] = pack_relu6<T>(filtered[i][2 * e], filtered[i][2 * e + 1]);
    }
    bias += 16;
#pragma unroll
    for (int j = 0; j < OUTPUTS; j += 2) {
      if (j && 8 * j >= outputs) break;
      uint32_t b[4];
      const T* const weight = last_weights + first + j * 8 * places.project_stride;
      if (j + 1 < OUTPUTS)
        ldmatrix4(b, weight);
      else
        ldmatrix2(b, weight);
#pragma unroll
      for (int k = 0; k < 2 && j + k < OUTPUTS; ++k)
#pragma unroll
        for (int i = 0; i < Size::kRowsOfWarp; ++i) mma16<T>(sums[i][j + k], hidden_values[i], b[2 * k], b[2 * k + 1]);
    }
  }

  if (labels) {
    // The rank of a score in the high half, its class backwards in the low half: the largest has the lowest class.
    int best[2 * Size::kRowsOfWarp];
#pragma unroll
    for (int i = 0; i < 2 * Size::kRowsOfWarp; ++i) {
#pragma unroll
      for (int j = 0; j < OUTPUTS; ++j) {
        if (j && 8 * j >= outputs) break;
        const float* v = sums[i / 2][j] + i % 2 * 2;
        const uint32_t two = ranks<T>(pack<T>(v[0], v[1])), label = 255 - j * 8 - pair;
        const int low = static_cast<int>(two << 16 | label), high = static_cast<int>((two & 0xffff0000) | (label - 1));
        best[i] = max(j ? max(best[i], low) : low, high);
      }
      best[i] = max(best[i], static_cast<int>(shuffle_xor(static_cast<uint32_t>(best[i]), 1)));
      best[i] = max(best[i], static_cast<int>(shuffle_xor(static_cast<uint32_t>(best[i]), 2)));
    }
    // Each of the four lanes that have a pixel's scores stores the labels of other pixels.
#pragma unroll
    for (int of = 0; of < 2 * Size::kRowsOfWarp; of += 4) {
      int label = best[of];
#pragma unroll
      for (int i = 1; i < 4 && of + i < 2 * Size::kRowsOfWarp; ++i) label = lane % 4 == i ? best[of + i] : label;
      const int p = warp * Size::kRowsOfWarp * 16 + (of + lane % 4) * 8 + group;
      if (of + lane % 4 < 2 * Size::kRowsOfWarp)
        labels[(static_cast<int64_t>(n) * map.height + top + p / SIDE) * map.width + left + p % SIDE] =
            static_cast<uint8_t>(255 - label % 256);
    }
    return;
  }
  T* const map_of_pair = out.at(n, pair, top, left);
  const int down = static_cast<int>(out.stride_h), right = static_cast<int>(out.stride_w);
  const auto store = [&](auto in_pairs, int stride) {
#pragma unroll
    for (int i = 0; i < 2 * Size::kRowsOfWarp; ++i) {
      const unsigned p = (warp * Size::kRowsOfWarp * 2 + i) * 8 + group;
      T* const to = map_of_pair + static_cast<int>(p / SIDE * down + p % SIDE * right);
#pragma unroll
      for (int j = 0; j < OUTPUTS; ++j) {
        const float* v = sums[i / 2][j] + i % 2 * 2;
        const int o = j * 8 + pair;
        if (o >= outputs) break;
        if constexpr (decltype(in_pairs)::value) {
          store2(to + j * 8, float2{v[0], v[1]});
        } else {
          to[j * 8 * stride] = from_float<T>(v[0]);
          if (o + 1 < outputs) to[(j * 8 + 1) * stride] = from_float<T>(v[1]);
        }
      }
    }
  };
  if (units.out) return store(std::true_type{}, 1);
  const int stride = static_cast<int>(out.stride_c);
  stride == 1 ? store(std::false_type{}, 1) : store(std::false_type{}, stride);
}

// Whether offsets within an image fit in 32 bits.
template <typename S>
bool is_small(const Map<S>& map) {
  return (map.height - 1) * map.stride_h + (map.width - 1) * map.stride_w + (map.channels - 1) * map.stride_c <
         int64_t{1} << 31;
}

bool in_pairs(const void* data, std::initializer_list<int64_t> steps) { return load_unit(data, 1, steps, 2) >= 4; }

template <typename T, int SIDE, int OUTPUTS, Part PART>
void launch_part(const DecoderLevelArgs& level, const SplitHiddenMap<T>& map, const char* op, Stream stream) {
  const LevelInputView<T> input(level);
  const SharedLayout<SIDE, PART> places(level.channels(), level.hidden, OUTPUTS * 8);
  const int64_t across = level.patch_w() / SIDE, per_patch = across * (level.patch_h() / SIDE);
  const int64_t blocks = per_patch * level.grid_h * level.grid_w * level.images;
  const TileGrid grid{FastDivmod(per_patch), FastDivmod(across), PatchGrid(level.grid_h, level.grid_w)};
  const Map<T> out = level.out.of<T>();
  const bool channels_even = (level.skip.channels | level.previous.channels) % 2 == 0;
  const Units units{
      .previous = is_vectorized(input.previous),
      .skip = is_vectorized(input.skip) && level.previous.channels % 8 == 0,
      .weights = channels_even && level.hidden % 2 == 0 &&
                 in_pairs(level.weights, {level.weights_n, level.weights_y, level.weights_x, 9 * level.hidden}),
      .out =
          out.channels % 2 == 0 && out.stride_c == 1 && in_pairs(out.data, {out.stride_n, out.stride_h, out.stride_w})};
  launch<inverted_residual_mma_kernel<T, SIDE, OUTPUTS, PART>>(
      op, grid_of(op, blocks), SquareTile<SIDE, PART>::kThreads, static_cast<size_t>(places.bytes), stream, input,
      Patches<T>(level), grid, out, level.hidden, places, map, units, level.labels);
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
  // A variant for two vectors would double the kernels to compile.
  return level.out.channels <= 24 ? run_tiles<T, SIDE, 3>(level, op, stream) : run_tiles<T, SIDE, 4>(level, op, stream);
}

}  // namespace

int64_t hidden_map_size(const DecoderLevelArgs& level, Type type) {
  if (level.own_halo || level.hidden == 0 || type == Type::kFloat) return 0;
  return level.out.height * level.out.width * level.images * round_up(level.hidden, 16);
}

bool inverted_residual_mma_level(const DecoderLevelArgs& level, Type type, const char* op, Stream stream) {
  if (level.channels() > kMaxChannels || level.hidden > kMaxHidden || level.out.channels > kMaxOutputs) return false;
  if (!is_small(level.skip) || !is_small(level.previous) || !is_small(level.out) ||
      level.out.height * level.out.width * round_up(level.hidden, 16) >= int64_t{1} << 31)
    return false;
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
