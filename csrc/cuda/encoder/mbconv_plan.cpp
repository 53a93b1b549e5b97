#include "cuda/encoder/mbconv_plan.h"

#include <cstdlib>
#include <cstring>

#include "common/check.h"

namespace hyperseg::cuda {
namespace {

constexpr int64_t kMaxSteps = 64;

// Return the tiling with tiles of `rows` rows, and in `cost` the estimated work of the busiest SM. `resident`: how many
// blocks of the depthwise convolution an SM holds. `tile` and `start`: instructions of a tile, and of a block besides
// its tiles, in units of those of a tile of kTileRows rows.
MbconvTiling tiling_of(const Mbconv& block, int64_t rows, int64_t resident, double tile, double start, double& cost) {
  MbconvTiling tiling{};
  tiling.rows = rows;
  tiling.down = blocks_of(block.out.height, rows);
  tiling.tiles = tiling.down * blocks_of(block.out.width, kTileColumns);
  tiling.slices = blocks_of(block.hidden, kSlice);
  // A block that computes several tiles loads its constants once. But the SMs must have equal shares, and an SM that
  // holds fewer blocks than it can takes as long for each as if it held all.
  const auto takes = [&](int64_t steps) {
    const int64_t blocks = block.images * blocks_of(tiling.tiles, steps) * tiling.slices;
    const int64_t shares = std::max<int64_t>(blocks_of(blocks, kSms), resident * blocks_of(blocks, kSms * resident));
    return static_cast<double>(shares) * (static_cast<double>(steps) * tile + start);
  };
  tiling.steps = 1;
  for (int64_t steps = 2; steps <= std::min<int64_t>(tiling.tiles, kMaxSteps); ++steps)
    if (takes(steps) < takes(tiling.steps)) tiling.steps = steps;
  tiling.groups = blocks_of(tiling.tiles, tiling.steps);
  cost = takes(tiling.steps);
  return tiling;
}

}  // namespace

MbconvLaunches requested_launches() {
  static const MbconvLaunches wish = [] {
    const char* const requested = std::getenv("HYPERSEG_MBCONV");
    if (!requested || !*requested) return MbconvLaunches::kEstimated;
    const bool fewest = !std::strcmp(requested, "fewest");
    check(fewest || !std::strcmp(requested, "most"), "HYPERSEG_MBCONV must be fewest or most, got ", requested);
    return fewest ? MbconvLaunches::kFewest : MbconvLaunches::kMost;
  }();
  return wish;
}

MbconvPlan mbconv_plan(const Mbconv& block, int64_t shared, bool chained) {
  MbconvPlan plan{};
  constexpr int64_t kMaxValues = int64_t{1} << 29;  // limit of the input: the expansion uses 32-bit offsets
  const auto few = [](int64_t count, int64_t stride) { return stride >= 0 && count * stride < kMaxValues; };
  const Map<const void>& x = block.x;
  const bool can_expand = block.expand && block.type != Type::kFloat && in_vectors(block.expand, x.channels) &&
                          in_vectors(x) && few(block.images, x.stride_n) && few(x.height, x.stride_h) &&
                          few(x.width, x.stride_w) && requested_launches() != MbconvLaunches::kMost;
  with_window(block, [&]<int SIZE, int STRIDE>() {
    plan.mma = SIZE > 0 && block.type != Type::kFloat;
    double cost = 0, tall_cost = 0;
    plan.tiling = tiling_of(block, kTileRows, plan.mma ? 3 : 4, 1, plan.mma ? 0.3 : 0.1, cost);
    if (plan.mma && STRIDE == 1 && !chained) {
      const MbconvTiling tall = tiling_of(block, kTallRows, 3, 1.45, 0.3, tall_cost);
      if (tall_cost < cost) plan.tiling = tall;
    }
    const auto bytes = [&](int64_t staged) {
      if constexpr (SIZE > 0) {
        const int64_t depth = plan.within ? x.channels : 0;
        if (plan.tiling.rows == kTallRows) return PlanarWindow<SIZE, STRIDE, kTallRows>::shared_bytes(staged, depth);
        if (plan.mma) return PlanarWindow<SIZE, STRIDE, kTileRows>::shared_bytes(staged, depth);
      }
      const int64_t value_bytes = block.type == Type::kFloat ? 4 : 2;
      return depthwise_shared_bytes(value_bytes, block.size, DepthwiseWindow<SIZE, STRIDE>::kValues, staged);
    };
    plan.within = plan.mma && can_expand;
    if (bytes(0) > shared) plan.within = false;
    const bool fits = block.squeezed <= kMaxStaged && bytes(block.squeezed) <= shared;
    plan.staged = fits && in_vectors(block.reduce, block.hidden) ? block.squeezed : 0;
    plan.shared = bytes(plan.staged);
  });
  return plan;
}

bool computes_gates(int64_t squeezed, int64_t parts, int64_t channels, int64_t threads, int64_t blocks,
                    double between) {
  // Cycles: of a step for gates alone, of sixteen partial sums at once, of a multiplication by four warps, of up to
  // eight loads of weights per thread, and of the rest.
  constexpr double kGate = 900, kSixteen = 700, kMultiply = 4.5, kLoads = 700, kRest = 1000;
  if (squeezed > threads) return false;
  if (requested_launches() != MbconvLaunches::kEstimated) return requested_launches() == MbconvLaunches::kFewest;
  const double sums = static_cast<double>(parts) * squeezed / threads / 16;
  const double multiplies = static_cast<double>(channels) * squeezed / 128;
  const int64_t width = squeezed % 4 == 0 ? 4 : squeezed % 2 == 0 ? 2 : 1;
  const double loads = static_cast<double>(blocks_of(channels, threads) * blocks_of(squeezed, 8 * width));
  const double rounds = static_cast<double>(blocks_of(blocks, 3 * kSms));
  const double within = kRest + kSixteen * sums + std::max(kMultiply * multiplies, kLoads * loads);
  return rounds * within < between + kGate + kSixteen * sums;
}

}  // namespace hyperseg::cuda
