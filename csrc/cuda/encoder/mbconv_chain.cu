#include "cuda/encoder/mbconv_chain.h"

#include <algorithm>
#include <memory>

#include "cuda/device/launch.cuh"
#include "cuda/encoder/mbconv_steps.cuh"

namespace hyperseg::cuda {
namespace {

constexpr const char* kChainOp = "mbconv_chain";

// Every tile is computed by all threads of a block.
using ChainTall = GemmTile<4, 1, 2>;
using ChainSquare = GemmTile<2, 2, 2>;
using ChainWide = GemmTile<1, 2, 4>;
using ChainSmall = GemmTile<1, 1, 8>;
static_assert(ChainTall::kThreads == kChainThreads && ChainSquare::kThreads == kChainThreads &&
              ChainWide::kThreads == kChainThreads && ChainSmall::kThreads == kChainThreads &&
              kMmaThreads == kChainThreads && kGateThreads == kChainThreads);

enum ChainKind {
  kExpandDepthwise3,
  kExpandDepthwise3Half,  // stride 2
  kExpandDepthwise5,
  kExpandDepthwise5Half,
  kGate,
  kProjectTall,
  kProjectSquare,
  kProjectWide,
  kProjectSmall,
};

template <typename T>
struct ChainStep {
  ChainKind kind;
  int tiles;
  union {
    MbconvPointwise<T> pointwise;
    MbconvExpandDepthwise<T> depthwise;
    SqueezeExciteGate<T> gate;
  };
};

template <typename T>
struct MbconvChain {
  unsigned* barrier;
  int steps;
  bool constants_ready;  // see common/constants.h
  // ChainStep has no constructor, because its parts have some.
  alignas(ChainStep<T>) char memory[kChainSteps * sizeof(ChainStep<T>)];

  HYPERSEG_HOST_DEVICE const ChainStep<T>& step(int i) const {
    return reinterpret_cast<const ChainStep<T>*>(memory)[i];
  }
};
static_assert(sizeof(MbconvChain<half>) <= 32764);  // all arguments of a kernel

// Wait for the step before.
HYPERSEG_DEVICE void wait_for_inputs(const GridBarrier& barrier, bool first_step) {
  if (first_step) {
    wait_for_previous_kernel();
    let_next_kernel_start();
  } else {
    barrier.wait();
  }
}

// Compute the block's tiles of a step. stage() of the first one reads constants while other blocks are still busy with
// the step before. A block without a tile also waits: how many arrivals it expects depends on it.
template <typename Tile>
HYPERSEG_DEVICE void compute_tiles(int tiles, const GridBarrier& barrier, bool first_step, const Tile& tile_of) {
  bool waits = true;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    auto work = tile_of(static_cast<unsigned>(tile), opaque(threadIdx.x));
    work.stage();
    if (waits) wait_for_inputs(barrier, first_step);
    waits = false;
    work.run();
    sync_block();  // all threads have finished with the shared memory
  }
  if (waits) wait_for_inputs(barrier, first_step);
}

template <typename T, typename TILE, bool PROJECT>
struct PointwiseWork {
  PointwiseTile<T, TILE, PROJECT> tile;
  HYPERSEG_DEVICE void stage() { tile.stage_weights(); }
  HYPERSEG_DEVICE void run() { tile.run(); }
};

template <typename T>
struct GateWork {
  GateSlice<T> slice;
  HYPERSEG_DEVICE void stage() { slice.load_constants(); }
  HYPERSEG_DEVICE void run() { slice.run(); }
};

template <typename T>
HYPERSEG_KERNEL(kChainThreads, 2)
mbconv_chain_kernel(HYPERSEG_TABLE MbconvChain<T> chain) {
  if (!chain.constants_ready) wait_for_previous_kernel();
  GridBarrier barrier(chain.barrier);
#pragma unroll 1
  for (int i = 0; i < chain.steps; ++i) {
    const ChainStep<T>& step = chain.step(i);
    const auto pointwise = [&]<typename TILE, bool PROJECT>() {
      compute_tiles(step.tiles, barrier, i == 0, [&](unsigned tile, int thread) {
        return PointwiseWork<T, TILE, PROJECT>{{step.pointwise, tile, thread}};
      });
    };
    const auto expand_depthwise = [&]<int SIZE, int STRIDE>() {
      compute_tiles(step.tiles, barrier, i == 0, [&](unsigned tile, int thread) {
        return MmaSlice<T, SIZE, STRIDE, kTileRows, true>{step.depthwise.depthwise, step.depthwise.expansion, tile,
                                                          thread};
      });
    };
    if (i) barrier.arrive();
    switch (step.kind) {
      case kExpandDepthwise3:
        expand_depthwise.template operator()<3, 1>();
        break;
      case kExpandDepthwise3Half:
        expand_depthwise.template operator()<3, 2>();
        break;
      case kExpandDepthwise5:
        expand_depthwise.template operator()<5, 1>();
        break;
      case kExpandDepthwise5Half:
        expand_depthwise.template operator()<5, 2>();
        break;
      case kGate:
        compute_tiles(step.tiles, barrier, i == 0,
                      [&](unsigned tile, int thread) { return GateWork<T>{{step.gate, tile, thread}}; });
        break;
      case kProjectTall:
        pointwise.template operator()<ChainTall, true>();
        break;
      case kProjectSquare:
        pointwise.template operator()<ChainSquare, true>();
        break;
      case kProjectWide:
        pointwise.template operator()<ChainWide, true>();
        break;
      case kProjectSmall:
        pointwise.template operator()<ChainSmall, true>();
        break;
    }
  }
}

// The table of a chain. It is large, so it is not on the stack.
template <typename T>
class Table {
 public:
  explicit Table(const Mbconv& first) : chain_(new MbconvChain<T>) {
    chain_->barrier = first.barrier;
    chain_->steps = 0;
    chain_->constants_ready = first.constants_ready;
  }
  MbconvChain<T>& chain() { return *chain_; }
  unsigned most_tiles() const { return static_cast<unsigned>(most_tiles_); }

  void filter(const Mbconv& block, const MbconvPlan& plan) {
    const int kind = kExpandDepthwise3 + (block.size == 5 ? 2 : 0) + (block.stride == 2 ? 1 : 0);
    add(static_cast<ChainKind>(kind), block.images * plan.tiling.sums()).depthwise =
        expand_depthwise_of<T>(block, plan);
  }

  void project(const Mbconv& block, const MbconvPlan& plan) {
    MbconvPointwise<T> problem = project_of<T>(block, plan.tiling);
    const auto takes = [&]<typename TILE>() {
      return cost<TILE>(block.images, problem.pixels, problem.out_channels, problem.depth);
    };
    const int64_t square = takes.template operator()<ChainSquare>(), wide = takes.template operator()<ChainWide>();
    const int64_t small = takes.template operator()<ChainSmall>(), tall = takes.template operator()<ChainTall>();
    const auto with = [&]<typename TILE>(ChainKind kind) {
      const int64_t tiles =
          block.images * blocks_of(problem.pixels, TILE::kRows) * blocks_of(problem.out_channels, TILE::kColumns);
      if (computes_gates(block.squeezed, problem.gate.parts, block.hidden, kChainThreads, tiles, kBetweenSteps)) {
        problem.gate.gates = nullptr;
      } else {
        add(kGate, block.images * problem.gate.slices).gate = problem.gate;
      }
      pointwise<TILE>(kind, problem, block.images);
    };
    if (small <= std::min({square, wide, tall}))
      with.template operator()<ChainSmall>(kProjectSmall);
    else if (tall <= std::min(square, wide))
      with.template operator()<ChainTall>(kProjectTall);
    else if (wide <= square)
      with.template operator()<ChainWide>(kProjectWide);
    else
      with.template operator()<ChainSquare>(kProjectSquare);
  }

 private:
  ChainStep<T>& add(ChainKind kind, int64_t tiles) {
    check(chain_->steps < kChainSteps && tiles < int64_t{1} << 30, kChainOp, ": too many steps or tiles, ",
          chain_->steps + 1, " and ", tiles);
    ChainStep<T>& step = reinterpret_cast<ChainStep<T>*>(chain_->memory)[chain_->steps++];
    step.kind = kind;
    step.tiles = static_cast<int>(tiles);
    most_tiles_ = std::max(most_tiles_, tiles);
    return step;
  }

  template <typename TILE>
  void pointwise(ChainKind kind, MbconvPointwise<T>& problem, int64_t images) {
    size_t shared = 0;
    const int64_t tiles = tile_pointwise<TILE>(problem, images, shared);
    add(kind, tiles).pointwise = problem;
  }

  std::unique_ptr<MbconvChain<T>> chain_;
  int64_t most_tiles_ = 0;
};

template <typename T>
void run_chain(const std::vector<Mbconv>& blocks, const std::vector<MbconvPlan>& plans, Stream stream) {
  Table<T> table(blocks[0]);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Mbconv& block = blocks[i];
    if (i) table.filter(block, plans[i]);
    table.project(block, plans[i]);
  }
  mbconv_first_step(blocks[0], plans[0], stream);
  const unsigned count = std::min(chain_blocks(blocks[0].type), table.most_tiles());
  launch_together<mbconv_chain_kernel<T>>(kChainOp, count, kChainThreads, kChainShared, stream, table.chain());
}

}  // namespace

unsigned chain_blocks(Type type) {
  if (type == Type::kHalf) return together_at_most<mbconv_chain_kernel<half>>(kChainOp, kChainThreads, kChainShared);
  if (type == Type::kBFloat16)
    return together_at_most<mbconv_chain_kernel<bfloat16>>(kChainOp, kChainThreads, kChainShared);
  return 0;
}

void mbconv_chain(const std::vector<Mbconv>& blocks, const std::vector<MbconvPlan>& plans, Stream stream) {
  if (blocks[0].type == Type::kHalf)
    run_chain<half>(blocks, plans, stream);
  else
    run_chain<bfloat16>(blocks, plans, stream);
}

}  // namespace hyperseg::cuda
