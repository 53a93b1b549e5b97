#include "cuda/encoder/mbconv.h"

#include <algorithm>

#include "cuda/device/launch.cuh"
#include "cuda/encoder/mbconv_steps.cuh"

// Three launches: expand, depthwise, project; or two, if the depthwise kernel expands its windows itself.
// Squeeze-excite needs every pixel before the projection can start. A separate launch computes the gates if each block
// of the projection would take too long for them.
namespace hyperseg::cuda {
namespace {

template <typename TILE, bool PROJECT, typename T>
void launch_pointwise(MbconvPointwise<T> problem, int64_t images, Stream stream) {
  size_t shared = 0;
  const int64_t blocks = tile_pointwise<TILE>(problem, images, shared);
  if constexpr (PROJECT) {
    constexpr size_t kWorkspace = 2 * TILE::kThreads * sizeof(float);
    shared += Gates<T>::bytes(problem.depth);
    if (shared + kWorkspace <= kMaxShared &&
        computes_gates(problem.gate.squeezed, problem.gate.parts, problem.gate.channels, TILE::kThreads, blocks)) {
      problem.gate.gates = nullptr;
      shared += kWorkspace;
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

// The depthwise convolution, with the expansion if the plan has it `within`.
template <typename T>
void filter(const Mbconv& block, const MbconvPlan& plan, Stream stream) {
  const MbconvExpandDepthwise<T> problem = expand_depthwise_of<T>(block, plan);
  const Grid grid = grid_of(kOp, block.images * plan.tiling.sums());
  with_window(block, [&]<int SIZE, int STRIDE>() {
    if constexpr (sizeof(T) == 2 && SIZE > 0) {
      const auto start = [&]<int ROWS>() {
        const auto expanding = [&]<bool EXPAND>() {
          launch<mbconv_depthwise_mma_kernel<T, SIZE, STRIDE, ROWS, EXPAND>>(
              kOp, grid, kMmaThreads, plan.shared, stream, problem.depthwise, problem.expansion);
        };
        plan.within ? expanding.template operator()<true>() : expanding.template operator()<false>();
      };
      if constexpr (STRIDE == 1) {
        if (plan.tiling.rows == kTallRows) return start.template operator()<kTallRows>();
      }
      start.template operator()<kTileRows>();
    } else {
      launch<mbconv_depthwise_kernel<T, SIZE, STRIDE>>(kOp, grid, kDepthwiseThreads, plan.shared, stream,
                                                       problem.depthwise);
    }
  });
}

}  // namespace

void mbconv_first_step(const Mbconv& block, const MbconvPlan& plan, Stream stream) {
  with_type(block.type, [&](auto value) {
    using T = decltype(value);
    if (block.expand && !plan.within)
      pointwise<false>(expand_of<T>(block), block.images, stream);
    else
      filter<T>(block, plan, stream);
  });
}

void mbconv(const Mbconv& block, const MbconvPlan& plan, Stream stream) {
  mbconv_first_step(block, plan, stream);
  with_type(block.type, [&](auto value) {
    using T = decltype(value);
    if (block.expand && !plan.within) filter<T>(block, plan, stream);
    pointwise<true>(project_of<T>(block, plan.tiling), block.images, stream);
  });
}

}  // namespace hyperseg::cuda
