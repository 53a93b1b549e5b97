#include "cuda/encoder/mbconv_plan.h"

#include <cstdlib>
#include <cstring>

#include "common/check.h"

namespace hyperseg::cuda {
namespace {

MbconvTiling tiling_of(const Mbconv& block) {
  MbconvTiling tiling{};
  tiling.down = blocks_of(block.out.height, kTileRows);
  tiling.tiles = tiling.down * blocks_of(block.out.width, kTileColumns);
  tiling.slices = blocks_of(block.hidden, kSlice);
  tiling.steps = std::max<int64_t>(1, block.images * tiling.tiles * tiling.slices / (kSms * kResidentBlocks));
  tiling.groups = blocks_of(tiling.tiles, tiling.steps);
  return tiling;
}

// Total number of map pixels along an axis in the windows of all tiles.
int64_t in_windows(int64_t tiles, int64_t step, int64_t window, int64_t padding, int64_t extent) {
  int64_t sum = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = tile * step - padding;
    sum += std::min(first + window, extent) - std::max<int64_t>(first, 0);
  }
  return sum;
}

// Estimate whether expanding the windows in the depthwise kernel, each pixel once per window that contains it, is
// faster than a separate launch. In instructions counted in sm_90's code: per warp for 32 pixels x 32 channels, and per
// block for the rest of a tile.
template <int SIZE, int STRIDE>
bool expands_within(const Mbconv& block, const MbconvTiling& tiling, const MbconvCosts& costs) {
  constexpr double kCycle = 2.4;  // instructions
  constexpr double kStripe = 460, kChunk = 100, kStep = 12, kOwn = 700, kOwnChunk = 110, kOwnStep = 20;
  constexpr double kFilter = SIZE == 3 ? (STRIDE == 1 ? 5130 : 5610) : (STRIDE == 1 ? 8020 : 8610);
  constexpr double kOwnFilter = SIZE == 3 ? (STRIDE == 1 ? 5070 : 6940) : (STRIDE == 1 ? 7800 : 9920);
  // With 256 threads, of which each has half as many rows.
  constexpr double kWideFilter = SIZE == 3 ? (STRIDE == 1 ? 5830 : 7510) : (STRIDE == 1 ? 8820 : 10710);
  using W = DepthwiseWindow<SIZE, STRIDE>;
  if (requested_launches() != MbconvLaunches::kEstimated) return requested_launches() == MbconvLaunches::kFewest;
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
  const double tiles = static_cast<double>(blocks_of(block.images * tiling.sums(), kSms) * tiling.steps);
  const auto launched = [&](double instructions) {
    return std::max(costs.least, costs.between + instructions / kCycle);
  };
  const double within = launched(tiles * ((pixels / 32 + 0.5) * stripe + kFilter));  // the last stripe is not full
  const double filter = costs.threads == kDepthwiseThreads ? kOwnFilter : kWideFilter;
  return within < launched(tiles * filter) + launched(own_stripes * own_stripe / kSms);
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

MbconvPlan mbconv_plan(const Mbconv& block, const MbconvCosts& costs) {
  MbconvPlan plan{tiling_of(block)};
  constexpr int64_t kMaxValues = int64_t{1} << 29;  // limit of the input: the kernel uses 32-bit offsets
  const auto few = [](int64_t count, int64_t stride) { return stride >= 0 && count * stride < kMaxValues; };
  const Map<const void>& x = block.x;
  if (!block.expand || block.type == Type::kFloat || !in_vectors(block.expand, x.channels) || !in_vectors(x) ||
      !few(block.images, x.stride_n) || !few(x.height, x.stride_h) || !few(x.width, x.stride_w))
    return plan;
  with_window(block, [&]<int SIZE, int STRIDE>() {
    if constexpr (SIZE > 0) {
      const auto bytes = [&](int64_t staged, int64_t stages) {
        return depthwise_shared_bytes<kExpandingThreads>(2, SIZE, DepthwiseWindow<SIZE, STRIDE>::kValues, staged) +
               expansion_shared_bytes(2, static_cast<int>(std::min(x.channels, kMaxShared)), stages);
      };
      const auto fewest = [&](int64_t staged) { return bytes(staged, kFewestStages); };
      if (fewest(0) > costs.shared || !expands_within<SIZE, STRIDE>(block, plan.tiling, costs)) return;
      plan.within = true;
      plan.staged = staged_rows(block, fewest, costs.shared);
      plan.stages = kFewestStages;
      plan.shared = fewest(plan.staged);
      // Use more stages as long as the same number of blocks stays resident.
      const auto resident = [](int64_t shared) { return kSharedPerSm / (shared + kSharedReservedPerBlock); };
      const int64_t blocks = blocks_of(block.images * plan.tiling.sums(), kSms);
      for (int64_t stages = kFewestStages + 1; stages <= kMaxStages; ++stages) {
        const int64_t more = bytes(plan.staged, stages);
        if (more > costs.shared || resident(more) < std::min(blocks, resident(plan.shared))) break;
        plan.stages = stages;
        plan.shared = more;
      }
    }
  });
  return plan;
}

bool computes_gates(int64_t squeezed, int64_t parts, int64_t channels, int64_t threads, int64_t blocks,
                    const MbconvCosts& costs) {
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
  return rounds * within < costs.between + kGate + kSixteen * sums;
}

}  // namespace hyperseg::cuda
