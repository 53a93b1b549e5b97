#include <algorithm>
#include <type_traits>

#include "cuda/device/launch.cuh"
#include "cuda/training/depthwise_mma.cuh"

namespace hyperseg::cuda {
namespace {

constexpr int kMaxGroups = kFilterThreads / 32;
constexpr int64_t kMaxBytes = 64 * 1024;  // of shared memory, so that several blocks share an SM

// From a pixel of a patch's window to its place in a map stored patch by patch, with halo "neighbour".
HYPERSEG_DEVICE int64_t neighbour_place(const PatchGrid& grid, const Patch& patch, int y, int x) {
  y = reflect(patch.row * grid.patch_h + y - 1, grid.rows * grid.patch_h);
  x = reflect(patch.column * grid.patch_w + x - 1, grid.columns * grid.patch_w);
  const int row = grid.by_patch_h.quotient(y), column = grid.by_patch_w.quotient(x);
  return (static_cast<int64_t>(patch.n * grid.rows + row) * grid.columns + column) * grid.patch_h * grid.patch_w +
         (y - row * grid.patch_h) * grid.patch_w + x - column * grid.patch_w;
}

template <typename T, bool OWN, bool MOMENTS>
HYPERSEG_KERNEL(kFilterThreads, 2)
depthwise_filter_mma_kernel(PatchDepthwise filter, DepthwiseTiles tiles, const T* hidden, T* filtered, float* partial) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int height = filter.grid.patch_h, width = filter.grid.patch_w, stored = filter.stored;
  const Patch patch(TilePart::patch(tiles), filter.grid);
  const TilePart part(filter, tiles);
  const int stride = tiles.stride, around = width + 2, pixels = height * width;
  T* window = reinterpret_cast<T*>(shared_memory());
  {
    float scale[8], shift[8];
    const int count = (height + 2) * around;
    const T* from = hidden + part.first + (OWN ? patch.index * count * stored : 0);
    each_vector(
        tiles, part, count,
        [&](int channel) {
          load_factors(filter.norm.scale, channel, filter.hidden, scale);
          load_factors(filter.norm.shift, channel, filter.hidden, shift);
        },
        [&](int pixel, int c) {
          int64_t place = pixel;
          if constexpr (!OWN) {
            const int y = tiles.window.quotient(pixel);
            place = neighbour_place(filter.grid, patch, y, pixel - y * around);
          }
          const uint4 v = *reinterpret_cast<const uint4*>(from + place * stored + c);
          store16_shared(window + pixel * stride + c, normalised<T>(v, scale, shift));
        });
  }
  sync_block();
  Moments moments[2];
  if (part.working) {
    const int lane = part.lane, channel = part.first + 8 * part.group;
    uint32_t weights[9];
    load_diagonals<T>(filter, patch, channel, lane, weights);
    T* out = filtered + patch.index * pixels * stored + channel + 2 * (lane % 4);
    for (int first = part.part * kTilePixels; first < pixels; first += tiles.parts * kTilePixels) {
      const int pixel = min(first + lane, pixels - 1), y = filter.grid.by_patch_w.quotient(pixel);
      const T* at = window + (y * around + pixel - y * width) * stride + 8 * part.group;
      float sums[2][4] = {};
      filter_tile<T, false>(at, tiles.window_row, stride, weights, sums);
      if (MOMENTS && moments[0].count == 0.0f) {  // around the group's first value
        const float2 v = unpack<T>(pack<T>(sums[0][0], sums[0][1]));
        moments[0].first = sum_of_rows(lane < 4 ? v.x : 0.0f), moments[1].first = sum_of_rows(lane < 4 ? v.y : 0.0f);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = first + 8 * i + lane / 4;
        if (row >= pixels) break;
        const uint32_t both = pack<T>(sums[i / 2][i % 2 * 2], sums[i / 2][i % 2 * 2 + 1]);
        *reinterpret_cast<uint32_t*>(out + row * stored) = both;
        if constexpr (MOMENTS) {
          const float2 v = unpack<T>(both);
          moments[0].add_rest(v.x - moments[0].first);
          moments[1].add_rest(v.y - moments[1].first);
        }
      }
      if constexpr (MOMENTS) moments[0].count += static_cast<float>(min(kTilePixels, pixels - first));
    }
  }
  if constexpr (MOMENTS) {
    moments[1].count = moments[0].count;
    if (part.working) {
#pragma unroll
      for (Moments& m : moments) m.sum = sum_of_rows(m.sum), m.squares = sum_of_rows(m.squares);
    }
    store_row(filter, tiles, part, patch, moments[0], moments[1], reinterpret_cast<Moments*>(shared_memory()), partial);
  }
}

int64_t window_pixels(const PatchDepthwise& filter) {
  return (int64_t{filter.grid.patch_h} + 2) * (filter.grid.patch_w + 2);
}

}  // namespace

DepthwiseTiles::DepthwiseTiles(const PatchDepthwise& filter, int64_t rows) : window(filter.grid.patch_w + 2) {
  const int all = filter.stored / 8;
  for (chunks = 1; chunks <= all; ++chunks) {
    const int each = (all + chunks - 1) / chunks;
    if (each > kMaxGroups || rows * 16 * (each | 1) > kMaxBytes) continue;
    groups = each;
    chunks = (all + groups - 1) / groups;
    break;
  }
  if (!fits()) return;
  by_groups = FastDivmod(groups), by_chunks = FastDivmod(chunks);
  stride = 8 * (groups | 1);  // rows are an odd number of 16 bytes: eight of them are in different banks
  window_row = (filter.grid.patch_w + 2) * stride, padded_row = (filter.grid.patch_w + 4) * stride;
  const int tiles = (filter.grid.patch_h * filter.grid.patch_w + kTilePixels - 1) / kTilePixels;
  parts = std::max(1, std::min(std::min(kMaxGroups / groups, 8), tiles));
}

bool filters_by_mma(const PatchDepthwise& filter, Type type) {
  return type != Type::kFloat && DepthwiseTiles(filter, window_pixels(filter)).fits();
}

bool depthwise_filter_mma(const PatchDepthwise& filter, const void* hidden, void* filtered, float* partial, Type type,
                          const char* op, Stream stream) {
  if (!filters_by_mma(filter, type)) return false;
  const int64_t rows = window_pixels(filter);
  const DepthwiseTiles tiles(filter, rows);
  const size_t shared = std::max(tiles.bytes(rows), 8 * tiles.groups * tiles.parts * sizeof(Moments));
  with_16_bit_type(type, [&](auto value) {
    using T = decltype(value);
    const auto run = [&](auto own, auto moments) {
      launch<depthwise_filter_mma_kernel<T, own.value, moments.value>>(
          op, grid_of(op, tiles.blocks(filter)), tiles.threads(), shared, stream, filter, tiles,
          static_cast<const T*>(hidden), static_cast<T*>(filtered), partial);
    };
    const auto with_halo = [&](auto moments) {
      filter.own ? run(std::true_type{}, moments) : run(std::false_type{}, moments);
    };
    partial ? with_halo(std::true_type{}) : with_halo(std::false_type{});
  });
  return true;
}

}  // namespace hyperseg::cuda
