#include "cuda/encoder/pointwise_conv.cuh"

#include <algorithm>

#include "cuda/device/launch.cuh"
#include "cuda/encoder/mbconv_plan.h"

namespace hyperseg::cuda {
namespace {

// Call body(TILE{}) for the shape of a tile.
template <typename Body>
void with_tile(ConvTile tile, const Body& body) {
  if (tile == kConvTall) return body(ConvTall{});
  if (tile == kConvSquare) return body(ConvSquare{});
  if (tile == kConvWide) return body(ConvWide{});
  if (tile == kConvDeep) return body(ConvDeep{});
  body(ConvSmall{});
}

// The shape with the least estimated time. The instructions and the latency of a deep tile are half of those of others.
template <typename T>
ConvTile tile_of(int64_t images, int splits, const PointwiseConv& conv, bool deep) {
  ConvTile best = kConvSquare;
  int64_t least = -1;
  for (const ConvTile tile : {kConvSquare, kConvSmall, kConvTall, kConvWide, kConvDeep}) {
    if (sizeof(T) == 4 && (tile == kConvTall || tile == kConvWide)) continue;
    if (tile == kConvDeep && !deep) continue;
    with_tile(tile, [&](auto shape) {
      const int64_t time =
          cost<decltype(shape)>(images * splits, conv.height * conv.width, conv.columns, conv.depth() / splits) /
          (tile == kConvDeep ? 2 : 1);
      if (least >= 0 && time >= least) return;
      least = time;
      best = tile;
    });
  }
  return best;
}

// Fill an entry of the table; return its number of blocks, and raise `shared` to the bytes that they need. `alone`: no
// other convolution is in the launch.
template <typename T>
int64_t fill(ConvProblem<T>& to, int64_t images, const PointwiseConv& conv, bool alone, size_t& shared) {
  const bool two = conv.second.data != nullptr;
  to.maps[0] = conv.first.of<const T>();
  to.maps[1] = conv.second.of<const T>();
  to.weights = static_cast<const T*>(conv.weights);
  to.bias = static_cast<const T*>(conv.bias);
  to.out = conv.out.of<T>();
  to.sums = conv.sums;
  to.width = FastDivmod(conv.width);
  to.taps = conv.taps;
  to.maps_last = conv.taps == 2 ? 3 : two;
  to.pixels = static_cast<int>(conv.height * conv.width);
  to.depth = static_cast<int>(conv.depth());
  to.columns = static_cast<int>(conv.columns);
  to.images = static_cast<int>(images);
  to.sums_stride = static_cast<int>(conv.sums_stride());
  to.activation = conv.activation;
  to.doubled = conv.doubled;
  const int chunks = static_cast<int>(blocks_of(to.depth, kChunk<T>));
  to.chunks = static_cast<int>(blocks_of(chunks, conv.splits));
  const bool whole = conv.first.channels % kChunk<T> == 0;  // no chunk is of two maps
  to.map_chunks = FastDivmod(to.maps_last ? std::max<int64_t>(conv.first.channels / kChunk<T>, 1) : chunks);
  to.vectors = in_vectors(to.maps[0]) && (!two || in_vectors(to.maps[1])) && (!to.maps_last || whole);
  to.weight_vectors = in_vectors(conv.weights, to.depth);
  to.out_vectors = to.columns % 8 == 0 && in_vectors(to.out);
  to.out_pairs = to.columns % 2 == 0 && to.out.stride_w % 2 == 0 && to.out.stride_n % 2 == 0 &&
                 reinterpret_cast<uintptr_t>(to.out.data) % 4 == 0;
  const bool small = to.columns <= kDirectColumns && to.depth <= kDirectDepth && !to.maps_last;
  const bool rows = to.maps[0].stride_h == conv.width * to.maps[0].stride_w;
  if (sizeof(T) == 2 && small && rows && to.vectors && to.weight_vectors && !conv.sums && !conv.doubled) {
    to.tile = kConvDirect;
    to.direct_steps =
        static_cast<int>(std::clamp<int64_t>(images * to.pixels / (2 * kSms * kConvThreads), 1, kMostDirectSteps));
    to.row_tiles = static_cast<int>(blocks_of(to.pixels, to.direct_steps * kConvThreads));
    return images * to.row_tiles;
  }
  const bool deep = sizeof(T) == 2 && alone && to.vectors && to.weight_vectors && to.chunks >= kDeepChunks &&
                    to.depth % kChunk<T> == 0;
  to.tile = tile_of<T>(images, conv.splits, conv, deep);
  int64_t blocks = 0;
  with_tile(to.tile, [&](auto shape) {
    using TILE = decltype(shape);
    to.row_tiles = static_cast<int>(blocks_of(to.pixels, TILE::kRows));
    to.column_tiles = static_cast<int>(blocks_of(to.columns, TILE::kColumns));
    blocks = images * conv.splits * to.row_tiles * to.column_tiles;
    shared = std::max(shared, TILE::shared_bytes(to.chunks));
  });
  return blocks;
}

}  // namespace

void pointwise_convs(const char* op, Type type, const std::vector<int64_t>& images,
                     const std::vector<PointwiseConv>& convs, Stream stream) {
  with_type(type, [&](auto value) {
    using T = decltype(value);
    for (size_t first = 0; first < convs.size(); first += kMaxConvs) {
      ConvTable<T> table{};
      int64_t blocks = 0;
      size_t shared = 0;
      for (size_t i = first; i < convs.size() && table.count < kMaxConvs; ++i) {
        ConvProblem<T>& entry = table.convs[table.count++];
        entry.begin = static_cast<int>(blocks);
        blocks += fill(entry, images[i], convs[i], convs.size() == 1, shared);
        check(blocks < int64_t{1} << 31, op, ": too large for a GPU, it would take ", blocks, " blocks");
      }
      const Grid grid = grid_of(op, blocks);
      if constexpr (sizeof(T) == 2) {
        if (table.convs[0].tile == kConvDeep) {
          launch<deep_pointwise_conv_kernel<T>>(op, grid, kDeepThreads, shared, stream, table.convs[0]);
          continue;
        }
      }
      launch<pointwise_conv_kernel<T>>(op, grid, kConvThreads, shared, stream, table);
    }
  });
}

int conv_splits(Type type, int64_t images, const PointwiseConv& conv) {
  constexpr int64_t kMost = 8, kFewestChunks = 4;  // parts; chunks of the depth per part
  const int64_t chunk = type == Type::kFloat ? kChunk<float> : kChunk<half>;
  const int64_t chunks = blocks_of(conv.depth(), chunk);
  const int64_t blocks =
      images * blocks_of(conv.height * conv.width, ConvSquare::kRows) * blocks_of(conv.columns, ConvSquare::kColumns);
  const int64_t wanted = std::min({2 * kSms / blocks, chunks / kFewestChunks, kMost});
  if (wanted <= 1) return 1;
  return static_cast<int>(blocks_of(chunks, blocks_of(chunks, wanted)));  // no part is empty
}

void add_conv_sums(const char* op, Type type, const ConvSums& problem, Stream stream) {
  with_type(type, [&](auto value) {
    using T = decltype(value);
    ConvSumsProblem<T> sums{};
    sums.sums = problem.sums;
    sums.bias = static_cast<const T*>(problem.bias);
    sums.out = static_cast<T*>(problem.out);
    sums.mean = static_cast<T*>(problem.mean);
    sums.split_stride = problem.images * problem.pixels * problem.stride;
    sums.splits = problem.splits;
    sums.pixels = static_cast<int>(problem.pixels);
    sums.columns = static_cast<int>(problem.columns);
    sums.stride = static_cast<int>(problem.stride);
    sums.slices = static_cast<int>(blocks_of(problem.columns, kSumsChannels));
    sums.groups = problem.mean ? 1 : static_cast<int>(blocks_of(problem.pixels, kSumsPixels));
    sums.vectors = in_vectors(problem.out, problem.columns);
    const Grid grid = grid_of(op, problem.images * sums.groups * sums.slices);
    launch<conv_sums_kernel<T>>(op, grid, kSumsThreads, kSumsPixels * (kSumsChannels + 1) * sizeof(float), stream,
                                sums);
  });
}

}  // namespace hyperseg::cuda
