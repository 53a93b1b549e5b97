#include "cuda/loss/upsample_argmax.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cuda/device/launch.cuh"
#include "cuda/loss/upsampled.cuh"

// Compiled without contraction: labels must not depend on the multiplications that a compiler fuses.
namespace hyperseg::cuda {
namespace {

constexpr char kName[] = "upsample_argmax";

// The first class with the largest score so far. The first NaN wins, as in torch.argmax.
struct Best {
  float score = -INFINITY;
  int label = 0;

  HYPERSEG_DEVICE void add(float value, int c) {
    const bool better = !(value <= score) && score == score;
    score = better ? value : score, label = better ? c : label;
  }
};

// The same for scores that are never -0, which would be larger than an equal 0 here. All NaN are the same NaN.
struct BestWithoutNegativeZero {
  float score = -INFINITY;
  int label = 0;

  HYPERSEG_DEVICE void add(float value, int c) {
    const float larger = max_or_nan(score, value);
    label = as_bits(larger) != as_bits(score) ? c : label;
    score = larger;
  }
};

// Any sizes: one thread per label.
template <typename T, bool STAGED>
HYPERSEG_KERNEL(kTileThreads, 4)
upsample_argmax_kernel(Map<const T> logits, Resizing resizing, TileStaging staging, uint8_t* labels) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const Tile tile = resizing.tile(blockIdx.x);
  const int64_t n = tile.n;
  const Resized<T, STAGED> logit(logits.at(n, 0, 0, 0), logits, resizing, staging, tile,
                                 reinterpret_cast<float*>(shared_memory()));
  Best best;
  for (int c = 0; c < resizing.channels; ++c) best.add(logit(c), c);
  if (logit.inside)
    labels[(n * resizing.rows.out + logit.y) * resizing.columns.out + logit.x] = static_cast<uint8_t>(best.label);
}

// Twice the size: labels 2 i - 1 and 2 i of an axis sample values i - 1 and i, so a thread has the four labels that
// share a cell of the map. A block has kCellsDown x kCellsAcross cells. An axis has one cell more than values: the last
// block has it, beside its own.
constexpr int kCellsDown = 8, kCellsAcross = 16, kCellThreads = kCellsDown * kCellsAcross;

struct Doubling {
  int height, width, channels;
  FastDivmod per_image, per_row;  // blocks

  template <typename S>
  explicit Doubling(const Map<S>& map)
      : height(static_cast<int>(map.height)),
        width(static_cast<int>(map.width)),
        channels(static_cast<int>(map.channels)),
        per_image(blocks()),
        per_row(blocks_of(map.width, kCellsAcross)) {}
  int64_t blocks() const { return int64_t{blocks_of(height, kCellsDown)} * blocks_of(width, kCellsAcross); }
};

// between() for weights of 1/4 and of 3/4, or of 0 at the border. float16 has no values so small that a product with
// 1/4 is not exact, so fusing that changes nothing, and sums are only -0 if both terms are: the staged values are not.
template <typename T>
constexpr bool kExactQuarters = std::is_same_v<T, half>;

template <typename T>
HYPERSEG_DEVICE float near_low(float low, float high) {
  if constexpr (kExactQuarters<T>) return fmaf(high, 0.25f, low * 0.75f);
  return low * 0.75f + high * 0.25f;
}
template <typename T>
HYPERSEG_DEVICE float near_high(float low, float high, float weight) {
  if constexpr (kExactQuarters<T>) return fmaf(low, 1.0f - weight, high * weight);
  return between(low, high, weight);
}

template <typename T>
HYPERSEG_KERNEL(kCellThreads, 8)
upsample_argmax_double_kernel(Map<const T> logits, Doubling map, TileStaging staging, uint8_t* labels) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int block = blockIdx.x, n = map.per_image.quotient(block), tile = block - n * map.per_image.value();
  const int tile_row = map.per_row.quotient(tile);
  const int top = tile_row * kCellsDown, left = (tile - tile_row * map.per_row.value()) * kCellsAcross;
  const int down = top + kCellsDown < map.height ? kCellsDown : map.height + 1 - top;
  const int across = left + kCellsAcross < map.width ? kCellsAcross : map.width + 1 - left;
  const int first_y = max(top - 1, 0), first_x = max(left - 1, 0);
  const int last_y = min(max(top + down - 1, 1), map.height - 1),
            last_x = min(max(left + across - 1, 1), map.width - 1);
  const float* const values = stage_tile<kCellThreads, kExactQuarters<T>>(
      logits.at(n, 0, 0, 0), logits, staging, first_y, first_x, last_y - first_y + 1, last_x - first_x + 1,
      reinterpret_cast<float*>(shared_memory()));
  sync_block();
  const int beside = across > kCellsAcross ? min(down, kCellsDown) : 0, below = down > kCellsDown ? across : 0;
  uint8_t* const image_labels = labels + n * int64_t{4} * map.height * map.width;
#pragma unroll 1
  for (int cell = threadIdx.x; cell < kCellThreads + beside + below; cell += kCellThreads) {
    int i = cell / kCellsAcross, j = cell % kCellsAcross;
    if (cell >= kCellThreads) {
      const int extra = cell - kCellThreads;
      i = extra < beside ? extra : kCellsDown;
      j = extra < beside ? kCellsAcross : extra - beside;
    }
    if (i >= down || j >= across) continue;
    const int y = top + i, x = left + j;
    const int low_y = max(y - 1, 0), low_x = max(x - 1, 0);
    const int right = low_x + 1 < map.width ? staging.pixel : 0, below_it = low_y + 1 < map.height ? staging.pitch : 0;
    const float weight_y = y > 0 ? 0.75f : 0.0f, weight_x = x > 0 ? 0.75f : 0.0f;
    const float* at[2][2];
    at[0][0] = values + (low_y - first_y) * staging.pitch + (low_x - first_x) * staging.pixel;
    at[0][1] = at[0][0] + right, at[1][0] = at[0][0] + below_it, at[1][1] = at[1][0] + right;
    // Not [2][2]: nvcc 13.0 leaves all rows but the first of such an array without their initial values.
    std::conditional_t<kExactQuarters<T>, BestWithoutNegativeZero, Best> best[4];
#pragma unroll 4
    for (int c = 0; c < map.channels; ++c) {
      const float a = *at[0][0]++, b = *at[0][1]++, d = *at[1][0]++, e = *at[1][1]++;
      const float above[2] = {near_low<T>(a, b), near_high<T>(a, b, weight_x)};
      const float under[2] = {near_low<T>(d, e), near_high<T>(d, e, weight_x)};
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        best[k].add(near_low<T>(above[k], under[k]), c);
        best[2 + k].add(near_high<T>(above[k], under[k], weight_y), c);
      }
    }
    const int row = 2 * map.width;
    uint8_t* const to = image_labels + (2 * y * row + 2 * x);
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
      for (int l = 0; l < 2; ++l)
        if ((k ? y < map.height : y > 0) && (l ? x < map.width : x > 0))
          to[(k - 1) * row + l - 1] = static_cast<uint8_t>(best[2 * k + l].label);
  }
}

// Return whether the kernel supports these sizes.
template <typename T>
bool doubled(const Map<const T>& logits, int64_t images, uint8_t* labels, int64_t height, int64_t width,
             Stream stream) {
  constexpr int64_t kMost = 1 << 20;  // positions are exact in float
  const bool twice = height == 2 * logits.height && width == 2 * logits.width;
  if (!twice || height >= kMost || width >= kMost || height * width >= int64_t{1} << 31 || logits.channels > kMaxStaged)
    return false;
  const TileStaging staging(logits, std::min<int64_t>(kCellsAcross + 1, logits.width));
  const int64_t bytes = staging.bytes(std::min<int64_t>(kCellsDown + 1, logits.height));
  if (bytes > kMaxStaged) return false;
  const Doubling map(logits);
  launch<upsample_argmax_double_kernel<T>>(kName, grid_of(kName, images * map.blocks()), kCellThreads, bytes, stream,
                                           logits, map, staging, labels);
  return true;
}

}  // namespace

void upsample_argmax(const Map<const void>& logits, Type type, int64_t images, uint8_t* labels, int64_t height,
                     int64_t width, Stream stream) {
  with_type(type, [&](auto value) {
    using T = decltype(value);
    const Map<const T> map = logits.of<const T>();
    if (doubled(map, images, labels, height, width, stream)) return;
    const Resizing resizing(logits, height, width);
    const Grid grid = grid_of(kName, images * resizing.tiles());
    const auto staging = resizing.staging(map);
    const auto run = staging ? launch<upsample_argmax_kernel<T, true>, Map<const T>, Resizing, TileStaging, uint8_t*>
                             : launch<upsample_argmax_kernel<T, false>, Map<const T>, Resizing, TileStaging, uint8_t*>;
    run(kName, grid, kTileThreads, staging ? resizing.staged_bytes(*staging) : 0, stream, map, resizing,
        staging.value_or(TileStaging{}), labels);
  });
}

}  // namespace hyperseg::cuda
