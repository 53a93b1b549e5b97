#include "mbconv.h"

#include <algorithm>

#include "launch.cuh"
#include "mbconv_depthwise.cuh"
#include "mbconv_expand_depthwise.cuh"
#include "mbconv_gate.cuh"
#include "mbconv_pointwise.cuh"

// Three launches: expand, depthwise, project; or two, where the depthwise convolution expands its windows itself. The
// squeeze needs every pixel before the projection may begin. A launch more for gates where each block of the projection
// would compute too many.
namespace hyperseg::cuda {
namespace {

constexpr const char* kOp = "mbconv";
constexpr int64_t kProcessors =
    132;                          // about what a GPU has of multiprocessors: tiles become smaller where they are few
constexpr int64_t kResident = 4;  // blocks of the depthwise convolution that one of them runs at once
constexpr int64_t kMostShared = 99 << 10;  // bytes that a block may have on every GPU since sm_80
constexpr int64_t kProcessorShared = 228 << 10, kReservedShared = 1 << 10;  // of a multiprocessor, of them a block
constexpr int64_t kMostStaged = 128;  // squeezed channels whose weights a block keeps in them

// Tiles of the depthwise convolution, and how many a block does one after the other.
struct Tiling {
  int64_t down, tiles, slices, steps, groups;

  Tiling(int64_t images, int64_t hidden, int64_t height, int64_t width)
      : down(blocks_of(height, kTileRows)),
        tiles(down * blocks_of(width, kTileColumns)),
        slices(blocks_of(hidden, kSlice)),
        steps(std::max<int64_t>(1, images * tiles * slices / (kProcessors * kResident))),
        groups(blocks_of(tiles, steps)) {}
};

// What a multiprocessor has to do, in the time that it takes to read a value of an operand: as estimated from bytes and
// instructions on sm_90, a value of the result costs five and a block as many as kBlock beside its own.
template <typename TILE>
int64_t cost(int64_t images, int64_t pixels, int64_t columns, int64_t depth) {
  constexpr int64_t kResult = 5, kBlock = 13000;
  const int64_t blocks = images * blocks_of(pixels, TILE::kRows) * blocks_of(columns, TILE::kColumns);
  const int64_t one = (TILE::kRows + TILE::kColumns) * depth + kResult * TILE::kRows * TILE::kColumns + kBlock;
  return blocks_of(blocks, kProcessors) * one;
}

// Whether all blocks of the projection together compute the gates sooner than a launch takes: rounds of blocks, three a
// multiprocessor, of which each thread reads partial sums, sixteen at a time, and multiplies.
template <typename T>
bool computes_gates(const Gate<T>& gate, int64_t threads, int64_t blocks) {
  constexpr double kLaunch = 3500, kSixteen = 700, kProduct = 6, kSteps = 400;  // cycles
  if (gate.squeezed > threads) return false;
  const double sums = static_cast<double>(gate.parts) * gate.squeezed / threads / 16;
  const double products = static_cast<double>(gate.channels) * gate.squeezed / threads;
  const double rounds = static_cast<double>(blocks_of(blocks, 3 * kProcessors));
  return rounds * (kSteps + kSixteen * sums + kProduct * products) < kLaunch;
}

template <typename TILE, bool PROJECT, typename T>
void launch_pointwise(Pointwise<T> problem, int64_t images, Stream stream) {
  problem.row_tiles = static_cast<int>(blocks_of(problem.pixels, TILE::kRows));
  problem.column_tiles = static_cast<int>(blocks_of(problem.out_channels, TILE::kColumns));
  const int64_t blocks = images * problem.row_tiles * problem.column_tiles;
  size_t shared = TILE::shared_bytes(blocks_of(problem.depth, kChunk<T>));
  problem.stages_bytes = static_cast<int>(shared);
  if constexpr (PROJECT) {
    shared += Gates<T>::bytes(problem.depth);
    if (computes_gates(problem.gate, TILE::kThreads, blocks)) {
      problem.gate.gates = nullptr;
      shared += 2 * TILE::kThreads * sizeof(float);
    } else {
      const Grid grid = grid_of(kOp, images * problem.gate.slices);
      launch<mbconv_gate_kernel<T>>(kOp, grid, kGateThreads, (kGateThreads + kGateSqueezed) * sizeof(float), stream,
                                    problem.gate);
    }
  }
  check(static_cast<int64_t>(shared) <= kMostShared, kOp, ": a depth of ", problem.depth,
        " takes too much shared memory");
  const Grid grid = grid_of(kOp, blocks);
  launch<mbconv_pointwise_kernel<T, TILE, PROJECT>>(kOp, grid, TILE::kThreads, shared, stream, problem);
}

template <bool PROJECT, typename T>
void pointwise(const Pointwise<T>& problem, int64_t images, Stream stream) {
  using Tall = Tile<4, 1, 1>;
  using Square = Tile<2, 2, 1>;
  using Wide = Tile<1, 2, 2>;
  using Small = Tile<1, 1, 4>;
  const int64_t pixels = problem.pixels, columns = problem.out_channels, depth = problem.depth;
  const int64_t tall = cost<Tall>(images, pixels, columns, depth);
  const int64_t square = cost<Square>(images, pixels, columns, depth);
  const int64_t wide = cost<Wide>(images, pixels, columns, depth);
  const int64_t small = cost<Small>(images, pixels, columns, depth);
  const int64_t best = std::min({tall, square, wide, small});
  if (best == square)
    launch_pointwise<Square, PROJECT>(problem, images, stream);
  else if (best == tall)
    launch_pointwise<Tall, PROJECT>(problem, images, stream);
  else if (best == wide)
    launch_pointwise<Wide, PROJECT>(problem, images, stream);
  else
    launch_pointwise<Small, PROJECT>(problem, images, stream);
}

bool in_vectors(const void* data, int64_t stride) {
  return stride % 8 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

template <typename T>
const T* typed(const void* data) {
  return static_cast<const T*>(data);
}

// What is hidden, as a map of all its channels and the zeros beyond.
template <typename T>
Map<T> hidden_map(const Mbconv& block, void* data, int64_t height, int64_t width) {
  const int64_t stride = block.hidden_stride;
  return {static_cast<T*>(data), stride, height, width, height * width * stride, 1, width * stride, stride};
}

template <typename T>
void expand(const Mbconv& block, Stream stream) {
  Pointwise<T> problem{};
  problem.in = Rows<const T>(block.x.of<const T>());
  problem.weights = typed<T>(block.expand);
  problem.bias = typed<T>(block.expand_bias);
  problem.out = Rows<T>(hidden_map<T>(block, block.expanded, block.x.height, block.x.width));
  problem.pixels = static_cast<int>(block.x.height * block.x.width);
  problem.depth = static_cast<int>(block.x.channels);
  problem.columns = static_cast<int>(block.hidden);
  problem.out_channels = static_cast<int>(block.hidden_stride);
  problem.weight_vectors = in_vectors(block.expand, block.x.channels) && in_vectors(block.expand_bias, block.hidden);
  pointwise<false>(problem, block.images, stream);
}

template <typename T>
Depthwise<T> depthwise_of(const Mbconv& block, const Tiling& tiling) {
  Depthwise<T> problem{};
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

// body<SIZE, STRIDE>(), of the depthwise convolution: 0 for those without a kernel of their own.
template <typename Body>
void with_window(const Mbconv& block, const Body& body) {
  const auto is = [&](int size, int stride) { return block.size == size && block.stride == stride; };
  if (is(3, 1))
    body.template operator()<3, 1>();
  else if (is(3, 2))
    body.template operator()<3, 2>();
  else if (is(5, 1))
    body.template operator()<5, 1>();
  else if (is(5, 2))
    body.template operator()<5, 2>();
  else
    body.template operator()<0, 0>();
}

// Rows of `reduce` that are kept in shared memory, of which a block takes bytes(rows).
template <typename Bytes>
int64_t staged_rows(const Mbconv& block, const Bytes& bytes) {
  const bool fits = block.squeezed <= kMostStaged && bytes(block.squeezed) <= kMostShared;
  return fits && in_vectors(block.reduce, block.hidden) ? block.squeezed : 0;
}

template <typename T>
void filter(const Mbconv& block, const Tiling& tiling, Stream stream) {
  Depthwise<T> problem = depthwise_of<T>(block, tiling);
  problem.in =
      block.expand ? hidden_map<const T>(block, block.expanded, block.x.height, block.x.width) : block.x.of<const T>();
  problem.in_vectors = Rows<const T>::in_vectors(problem.in);
  const Grid grid{static_cast<unsigned>(block.images * tiling.groups * tiling.slices)};
  with_window(block, [&]<int SIZE, int STRIDE>() {
    const auto shared = [&](int64_t staged) {
      return depthwise_shared_bytes<T, kDepthwiseThreads>(block.size, Window<SIZE, STRIDE>::kValues, staged);
    };
    problem.staged = static_cast<int>(staged_rows(block, shared));
    launch<mbconv_depthwise_kernel<T, SIZE, STRIDE>>(kOp, grid, kDepthwiseThreads, shared(problem.staged), stream,
                                                     problem);
  });
}

// How a block expands: in a launch of its own, or within the depthwise convolution.
struct Plan {
  Tiling tiling;
  bool within = false;
  int64_t stages = 0, staged = 0, shared = 0;
};

// Pixels along an axis that the windows of all tiles have in the map.
int64_t in_windows(int64_t tiles, int64_t step, int64_t window, int64_t padding, int64_t extent) {
  int64_t sum = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = tile * step - padding;
    sum += std::min(first + window, extent) - std::max<int64_t>(first, 0);
  }
  return sum;
}

// Whether the windows of the tiles are sooner expanded where they are filtered, each pixel as often as there are
// windows that see it, than in a launch of its own. In instructions, as counted in sm_90's code: of a warp for 32
// pixels x 32 channels, and of a block for a tile without them.
template <int SIZE, int STRIDE>
bool expands_within(const Mbconv& block, const Tiling& tiling) {
  constexpr double kCycle = 2.4, kLaunch = 2600, kLeast = 4400;  // instructions; cycles of a launch beside its work
  constexpr double kStripe = 460, kChunk = 100, kStep = 12, kOwn = 700, kOwnChunk = 110, kOwnStep = 20;
  constexpr double kFilter = SIZE == 3 ? (STRIDE == 1 ? 5130 : 5610) : (STRIDE == 1 ? 8020 : 8610);
  constexpr double kOwnFilter = SIZE == 3 ? (STRIDE == 1 ? 5070 : 6940) : (STRIDE == 1 ? 7800 : 9920);
  using W = Window<SIZE, STRIDE>;
  const int64_t depth = block.x.channels, across = tiling.tiles / tiling.down;
  const double pixels =
      static_cast<double>(in_windows(tiling.down, kTileRows * STRIDE, W::kRows, block.top, block.x.height)) *
      static_cast<double>(in_windows(across, kTileColumns * STRIDE, W::kColumns, block.left, block.x.width)) /
      static_cast<double>(tiling.tiles);
  const double steps = blocks_of(depth, kStripeStep);
  const double stripe = kStripe + kChunk * blocks_of(depth, kStripeDepth) + kStep * steps;
  const double own_stripe = kOwn + kOwnChunk * blocks_of(depth, 2 * kStripeDepth) + kOwnStep * steps;
  const double own_stripes = static_cast<double>(block.images) * blocks_of(block.x.height * block.x.width, 32) *
                             blocks_of(block.hidden, kSlice);
  const double tiles =
      static_cast<double>(blocks_of(block.images * tiling.groups * tiling.slices, kProcessors) * tiling.steps);
  const auto launched = [&](double instructions) { return std::max(kLeast, kLaunch + instructions / kCycle); };
  const double within = launched(tiles * ((pixels / 32 + 0.5) * stripe + kFilter));  // the last stripe is not full
  return within < launched(tiles * kOwnFilter) + launched(own_stripes * own_stripe / kProcessors);
}

Plan plan_of(const Mbconv& block) {
  Plan plan{Tiling(block.images, block.hidden, block.out.height, block.out.width)};
  constexpr int64_t kMostValues = int64_t{1} << 29;  // of the input, which the kernel counts in 32 bits
  const auto few = [](int64_t count, int64_t stride) { return stride >= 0 && count * stride < kMostValues; };
  const Map<const void>& x = block.x;
  if (!block.expand || block.type == Type::kFloat || !in_vectors(block.expand, x.channels) ||
      !Rows<const half>::in_vectors(x.of<const half>()) || !few(block.images, x.stride_n) ||
      !few(x.height, x.stride_h) || !few(x.width, x.stride_w))
    return plan;
  with_window(block, [&]<int SIZE, int STRIDE>() {
    if constexpr (SIZE > 0) {
      const auto bytes = [&](int64_t staged, int64_t stages) {
        return depthwise_shared_bytes<half, kExpandingThreads>(SIZE, Window<SIZE, STRIDE>::kValues, staged) +
               Expansion<half>::shared_bytes(static_cast<int>(std::min(x.channels, kMostShared)), stages);
      };
      const auto fewest = [&](int64_t staged) { return bytes(staged, kFewestStages); };
      if (fewest(0) > kMostShared || !expands_within<SIZE, STRIDE>(block, plan.tiling)) return;
      plan.within = true;
      plan.staged = staged_rows(block, fewest);
      plan.stages = kFewestStages;
      plan.shared = fewest(plan.staged);
      // More of them where that leaves room for as many blocks as there are.
      const auto resident = [](int64_t shared) { return kProcessorShared / (shared + kReservedShared); };
      const int64_t blocks = blocks_of(block.images * plan.tiling.groups * plan.tiling.slices, kProcessors);
      for (int64_t stages = kFewestStages + 1; stages <= kMostStages; ++stages) {
        const int64_t more = bytes(plan.staged, stages);
        if (more > kMostShared || resident(more) < std::min(blocks, resident(plan.shared))) break;
        plan.stages = stages;
        plan.shared = more;
      }
    }
  });
  return plan;
}

template <typename T>
void expand_and_filter(const Mbconv& block, const Plan& plan, Stream stream) {
  Depthwise<T> problem = depthwise_of<T>(block, plan.tiling);
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
  const Grid grid = grid_of(kOp, block.images * plan.tiling.groups * plan.tiling.slices);
  with_window(block, [&]<int SIZE, int STRIDE>() {
    if constexpr (SIZE > 0)
      launch<mbconv_expand_depthwise_kernel<T, SIZE, STRIDE>>(kOp, grid, kExpandingThreads, plan.shared, stream,
                                                              problem, expansion);
  });
}

template <typename T>
Gate<T> gate_of(const Mbconv& block, const Tiling& tiling) {
  Gate<T> problem{};
  problem.partials = block.partials;
  problem.reduce_bias = typed<T>(block.reduce_bias);
  problem.weights = typed<T>(block.gate);
  problem.bias = typed<T>(block.gate_bias);
  problem.gates = static_cast<T*>(block.gates);
  problem.stride = block.hidden_stride;
  problem.parts = static_cast<int>(tiling.groups * tiling.slices);
  problem.channels = static_cast<int>(block.hidden);
  problem.squeezed = static_cast<int>(block.squeezed);
  problem.slices = static_cast<int>(blocks_of(block.hidden_stride, kGateChannels));
  problem.pixels = static_cast<float>(block.out.height * block.out.width);
  return problem;
}

template <typename T>
void project(const Mbconv& block, const Tiling& tiling, Stream stream) {
  Pointwise<T> problem{};
  problem.in = Rows<const T>(hidden_map<const T>(block, block.filtered, block.out.height, block.out.width));
  problem.weights = typed<T>(block.project);
  problem.bias = typed<T>(block.project_bias);
  problem.gate = gate_of<T>(block, tiling);
  if (block.residual) problem.added = Rows<const T>(block.x.of<const T>());
  problem.out = Rows<T>(block.out.of<T>());
  problem.pixels = static_cast<int>(block.out.height * block.out.width);
  problem.depth = static_cast<int>(block.hidden);
  problem.columns = static_cast<int>(block.out.channels);
  problem.out_channels = static_cast<int>(block.out.channels);
  problem.weight_vectors =
      in_vectors(block.project, block.hidden) && in_vectors(block.project_bias, block.out.channels);
  pointwise<true>(problem, block.images, stream);
}

}  // namespace

MbconvParts mbconv_parts(const Mbconv& block) {
  const Plan plan = plan_of(block);
  return {plan.tiling.groups * plan.tiling.slices, block.expand && !plan.within};
}

void mbconv(const Mbconv& block, Stream stream) {
  const Plan plan = plan_of(block);
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
