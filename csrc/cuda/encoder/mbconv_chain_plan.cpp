#include "cuda/encoder/mbconv_chain.h"

namespace hyperseg::cuda {
namespace {

int64_t depthwise_bytes(const Mbconv& block, int64_t staged) {
  int64_t bytes = 0;
  with_window(block, [&]<int SIZE, int STRIDE>() {
    bytes = depthwise_shared_bytes<kChainThreads>(2, SIZE, DepthwiseWindow<SIZE, STRIDE>::kValues, staged);
  });
  return bytes;
}

}  // namespace

bool chainable(const Mbconv& block) {
  // The projection has up to 72 KB of stages, then the gates and a workspace for them.
  constexpr int64_t kStages = 72 << 10, kWorkspace = 2 * kChainThreads * sizeof(float), kGateBytes = 2, kPadded = 64;
  return block.type != Type::kFloat && (block.size == 3 || block.size == 5) &&
         (block.stride == 1 || block.stride == 2) &&
         kStages + kWorkspace + kGateBytes * (block.hidden + kPadded) <= kChainShared &&
         depthwise_bytes(block, 0) <= kChainShared;
}

int64_t chain_staged_rows(const Mbconv& block) {
  return staged_rows(block, [&](int64_t staged) { return depthwise_bytes(block, staged); }, kChainShared);
}

}  // namespace hyperseg::cuda
