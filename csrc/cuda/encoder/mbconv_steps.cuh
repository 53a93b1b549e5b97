#pragma once

#include "cuda/encoder/mbconv.h"
#include "cuda/encoder/mbconv_depthwise.cuh"
#include "cuda/encoder/mbconv_depthwise_mma.cuh"
#include "cuda/encoder/mbconv_gate.cuh"
#include "cuda/encoder/mbconv_plan.h"
#include "cuda/encoder/mbconv_pointwise.cuh"

// The arguments of the steps of a block: expand, depthwise, or both in one, gate, project.
namespace hyperseg::cuda {

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
MbconvPointwise<T> expand_of(const Mbconv& block) {
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
  problem.constants_ready = block.constants_ready;
  problem.barrier = block.barrier;
  return problem;
}

// Without an expansion before it, `in` is the block's input.
template <typename T>
MbconvDepthwise<T> depthwise_of(const Mbconv& block, const MbconvPlan& plan) {
  const MbconvTiling& tiling = plan.tiling;
  MbconvDepthwise<T> problem{};
  problem.in = block.expand && !plan.within ? hidden_map<const T>(block, block.expanded, block.x.height, block.x.width)
                                            : block.x.of<const T>();
  problem.staged = static_cast<int>(plan.staged);
  problem.in_vectors = in_vectors(problem.in);
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
  problem.tiles = static_cast<int>(tiling.tiles);
  problem.steps = static_cast<int>(tiling.steps);
  problem.by_slices = FastDivmod(tiling.slices);
  problem.by_groups = FastDivmod(tiling.groups);
  problem.by_tiles_down = FastDivmod(tiling.down);
  problem.constants_ready = block.constants_ready;
  problem.barrier = block.barrier;
  return problem;
}

template <typename T>
struct MbconvExpandDepthwise {
  MbconvDepthwise<T> depthwise;
  Expansion<T> expansion;
};

template <typename T>
MbconvExpandDepthwise<T> expand_depthwise_of(const Mbconv& block, const MbconvPlan& plan) {
  MbconvExpandDepthwise<T> problem{depthwise_of<T>(block, plan), {}};
  if (!plan.within) return problem;
  Expansion<T>& expansion = problem.expansion;
  expansion.weights = typed<T>(block.expand);
  expansion.bias = typed<T>(block.expand_bias);
  expansion.depth = static_cast<int>(block.x.channels);
  expansion.stride_n = static_cast<int>(block.x.stride_n);
  expansion.stride_h = static_cast<int>(block.x.stride_h);
  expansion.stride_w = static_cast<int>(block.x.stride_w);
  return problem;
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
  const auto at_once = [&](int64_t width) {
    return block.squeezed % width == 0 && reinterpret_cast<uintptr_t>(block.gate) % (width * sizeof(T)) == 0;
  };
  problem.weight_width = at_once(4) ? 4 : at_once(2) ? 2 : 1;
  problem.constants_ready = block.constants_ready;
  return problem;
}

template <typename T>
MbconvPointwise<T> project_of(const Mbconv& block, const MbconvTiling& tiling) {
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
  problem.constants_ready = block.constants_ready;
  return problem;
}

// Divide the output of a 1x1 convolution into tiles; return their number, and in `shared` the bytes of a block, without
// those for gates.
template <typename TILE, typename T>
int64_t tile_pointwise(MbconvPointwise<T>& problem, int64_t images, size_t& shared) {
  problem.row_tiles = static_cast<int>(blocks_of(problem.pixels, TILE::kRows));
  problem.column_tiles = static_cast<int>(blocks_of(problem.out_channels, TILE::kColumns));
  shared = TILE::shared_bytes(blocks_of(problem.depth, kChunk<T>));
  problem.stages_bytes = static_cast<int>(shared);
  return images * problem.row_tiles * problem.column_tiles;
}

}  // namespace hyperseg::cuda
