#include "cuda/encoder/mbconv.h"

#include <algorithm>

#include "cuda/device/launch.cuh"
#include "cuda/encoder/mbconv_depthwise.cuh"
#include "cuda/encoder/mbconv_expand_depthwise.cuh"
#include "cuda/encoder/mbconv_gate.cuh"
#include "cuda/encoder/mbconv_plan.h"
#include "cuda/encoder/mbconv_pointwise.cuh"

// Three launches: expand, depthwise, project; or two, if the depthwise kernel expands its windows itself.
// Squeeze-excite needs every pixel before the projection can start. A separate launch computes the gates if each block
// of the projection would take too long for them.
namespace hyperseg::cuda {
namespace {

template <typename TILE, bool PROJECT, typename T>
void launch_pointwise(MbconvPointwise<T> problem, int64_t images, Stream stream) {
  problem.row_tiles = static_cast<int>(blocks_of(problem.pixels, TILE::kRows));
  problem.column_tiles = static_cast<int>(blocks_of(problem.out_channels, TILE::kColumns));
  const int64_t blocks = images * problem.row_tiles * problem.column_tiles;
  size_t shared = TILE::shared_bytes(blocks_of(problem.depth, kChunk<T>));
  problem.stages_bytes = static_cast<int>(shared);
  if constexpr (PROJECT) {
    shared += Gates<T>::bytes(problem.depth);
    if (computes_gates(problem.gate.squeezed, problem.gate.parts, problem.gate.channels, TILE::kThreads, blocks)) {
      problem.gate.gates = nullptr;
      shared += 2 * TILE::kThreads * sizeof(float);
    } else {
      const Grid grid = grid_of(kOp, images * problem.gate.slices);
      launch<mbconv_gate_kernel<T>>(kOp, grid, kGateThreads, (kGateThreads + kGateSqueezed) * sizeof(float), stream,
                                    problem.gate);
    }
  }
  check(static_cast<int64_t>(shared) <= kMaxShared, kOp, ": ", problem.depth, PROJECT ? " hidden" : " input",
        " channels take more shared memory than the CUDA kernels may have; use the backend triton or reference");
  const Grid grid = grid_of(kOp, blocks);
  launch<mbconv_pointwise_kernel<T, TILE, PROJECT>>(kOp, grid, TILE::kThreads, shared, stream, problem);
}

template <bool PROJECT, typename T>
void pointwise(const MbconvPointwise<T>& problem, int64_t images, Stream stream) {
  using Tall = GemmTile<4, 1, 1>;
  using Square = GemmTile<2, 2, 1>;
  using Wide = GemmTile<1, 2, 2>;
  using Small = GemmTile<1, 1, 4>;
  const auto takes = [&]<typename TILE>() {
    return cost<TILE>(images, problem.pixels, problem.out_channels, problem.depth);
  };
  const int64_t square = takes.template operator()<Square>(), small = takes.template operator()<Small>();
  if constexpr (sizeof(T) == 2) {
    const int64_t tall = takes.template operator()<Tall>(), wide = takes.template operator()<Wide>();
    const int64_t best = std::min({tall, square, wide, small});
    if (tall == best && tall < square) return launch_pointwise<Tall, PROJECT>(problem, images, stream);
    if (wide == best && wide < square) return launch_pointwise<Wide, PROJECT>(problem, images, stream);
  }
  square <= small ? launch_pointwise<Square, PROJECT>(problem, images, stream)
                  : launch_pointwise<Small, PROJECT>(problem, images, stream);
}

template <typename T>
const T* typed(const void* data) {
  return static_cast<const T*>(data);
}

// A hidden map with its zero-padded channels.
template <typename T>
Map<T> hidden_map(const Mbconv& block, void* data, int64_t height, int64_t width) {
  const int64_t stride = block.hidden_stride;
  return {static_cast<T*>(data), stride, height, width, height * width * stride, 1, width * stride, stride};
}

template <typename T>
void expand(const Mbconv& block, Stream stream) {
  MbconvPointwise<T> problem{};
  problem.in = PixelRows<const T>(block.x.of<const T>());
  problem.weights = typed<T>(block.expand);
  problem.bias = typed<T>(block.expand_bias);
  problem.out = PixelRows<T>(hidden_map<T>(block, block.expanded, block.x.height, block.x.width));
  problem.pixels = static_cast<int>(block.x.height * block.x.width);
  problem.depth = static_cast<int>(block.x.channels);
  problem.columns = static_cast<int>(block.hidden);
  problem.out_channels = static_cast<int>(block.hidden_stride);
  problem.weight_vectors = in_vectors(block.expand, block.x.channels) && in_vectors(block.expand_bias, block.hidden);
  pointwise<false>(problem, block.images, stream);
}

template <typename T>
MbconvDepthwise<T> depthwise_of(const Mbconv& block, const MbconvTiling& tiling) {
  MbconvDepthwise<T> problem{};
  problem.weights = typed<T>(block.depthwise);
  problem.bias = typed<T>(block.depthwise_bias);
  problem.reduce = typed<T>(block.reduce);
  problem.out = static_cast<T*>(block.filtered);
  problem.partials = block.partials;
  problem.out_stride = block.hidden_stride;
  problem.height = static_cast<int>(block.out.height);
  problem.width = static_cast<int>(block.out.width);
  problem.channels = static_cast<int>(block.hidden);
  problem.squeezed = static_cast<int>(block.squeezed);
  problem.size = static_cast<int>(block.size);
  problem.stride = static_cast<int>(block.stride);
  problem.top = static_cast<int>(block.top);
  problem.left = static_cast<int>(block.left);
  problem.tiles_down = static_cast<int>(tiling.down);
  problem.tiles = static_cast<int>(tiling.tiles);
  problem.steps = static_cast<int>(tiling.steps);
  problem.groups = static_cast<int>(tiling.groups);
  problem.slices = static_cast<int>(tiling.slices);
  return problem;
}

template <typename T>
void filter(const Mbconv& block, const MbconvTiling& tiling, Stream stream) {
  MbconvDepthwise<T> problem = depthwise_of<T>(block, tiling);
  problem.in =
      block.expand ? hidden_map<const T>(block, block.expanded, block.x.height, block.x.width) : block.x.of<const T>();
  problem.in_vectors = in_vectors(problem.in);
  const Grid grid{static_cast<unsigned>(block.images * tiling.sums())};
  with_window(block, [&]<int SIZE, int STRIDE>() {
    const auto shared = [&](int64_t staged) {
      return depthwise_shared_bytes<kDepthwiseThreads>(sizeof(T), block.size, DepthwiseWindow<SIZE, STRIDE>::kValues,
                                                       staged);
    };
    problem.staged = static_cast<int>(staged_rows(block, shared));
    launch<mbconv_depthwise_kernel<T, SIZE, STRIDE>>(kOp, grid, kDepthwiseThreads, shared(problem.staged), stream,
                                                     problem);
  });
}

template <typename T>
void expand_and_filter(const Mbconv& block, const MbconvPlan& plan, Stream stream) {
  MbconvDepthwise<T> problem = depthwise_of<T>(block, plan.tiling);
  problem.in = block.x.of<const T>();
  problem.staged = static_cast<int>(plan.staged);
  Expansion<T> expansion{};
  expansion.weights = typed<T>(block.expand);
  expansion.bias = typed<T>(block.expand_bias);
  expansion.depth = static_cast<int>(block.x.channels);
  expansion.stride_n = static_cast<int>(block.x.stride_n);
  expansion.stride_h = static_cast<int>(block.x.stride_h);
  expansion.stride_w = static_cast<int>(block.x.stride_w);
  expansion.stages = static_cast<int>(plan.stages);
  const Grid grid = grid_of(kOp, block.images * plan.tiling.sums());
  with_window(block, [&]<int SIZE, int STRIDE>() {
    if constexpr (SIZE > 0)
      launch<mbconv_expand_depthwise_kernel<T, SIZE, STRIDE>>(kOp, grid, kExpandingThreads, plan.shared, stream,
                                                              problem, expansion);
  });
}

template <typename T>
SqueezeExciteGate<T> gate_of(const Mbconv& block, const MbconvTiling& tiling) {
  SqueezeExciteGate<T> problem{};
  problem.partials = block.partials;
  problem.reduce_bias = typed<T>(block.reduce_bias);
  problem.weights = typed<T>(block.gate);
  problem.bias = typed<T>(block.gate_bias);
  problem.gates = static_cast<T*>(block.gates);
  problem.stride = block.hidden_stride;
  problem.parts = static_cast<int>(tiling.sums());
  problem.channels = static_cast<int>(block.hidden);
  problem.squeezed = static_cast<int>(block.squeezed);
  problem.slices = static_cast<int>(blocks_of(block.hidden_stride, kGateChannels));
  problem.pixels = static_cast<float>(block.out.height * block.out.width);
  return problem;
}

template <typename T>
void project(const Mbconv& block, const MbconvTiling& tiling, Stream stream) {
  MbconvPointwise<T> problem{};
  problem.in = PixelRows<const T>(hidden_map<const T>(block, block.filtered, block.out.height, block.out.width));
  problem.weights = typed<T>(block.project);
  problem.bias = typed<T>(block.project_bias);
  problem.gate = gate_of<T>(block, tiling);
  if (block.residual) problem.added = PixelRows<const T>(block.x.of<const T>());
  problem.out = PixelRows<T>(block.out.of<T>());
  problem.pixels = static_cast<int>(block.out.height * block.out.width);
  problem.depth = static_cast<int>(block.hidden);
  problem.columns = static_cast<int>(block.out.channels);
  problem.out_channels = static_cast<int>(block.out.channels);
  problem.weight_vectors =
      in_vectors(block.project, block.hidden) && in_vectors(block.project_bias, block.out.channels);
  pointwise<true>(problem, block.images, stream);
}

}  // namespace

void mbconv(const Mbconv& block, const MbconvPlan& plan, Stream stream) {
  with_type(block.type, [&](auto value) {
    using T = decltype(value);
    if constexpr (sizeof(T) == 2) {
      if (plan.within) expand_and_filter<T>(block, plan, stream);
    }
    if (!plan.within) {
      if (block.expand) expand<T>(block, stream);
      filter<T>(block, plan.tiling, stream);
    }
    project<T>(block, plan.tiling, stream);
  });
}

}  // namespace hyperseg::cuda
