#include "cuda/encoder/mbconv_chain.h"

namespace hyperseg::cuda {

bool chainable(const Mbconv& block, const MbconvPlan& plan, bool first) {
  // The projection has up to 72 KB of stages, then the gates and a workspace for them.
  constexpr int64_t kStages = 72 << 10, kWorkspace = 2 * kChainThreads * sizeof(float), kGateBytes = 2, kPadded = 64;
  return block.type != Type::kFloat && kStages + kWorkspace + kGateBytes * (block.hidden + kPadded) <= kChainShared &&
         (plan.within || (first && !block.expand));
}

}  // namespace hyperseg::cuda
