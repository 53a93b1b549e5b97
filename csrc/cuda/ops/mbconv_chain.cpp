#include "cuda/encoder/mbconv_chain.h"

#include <algorithm>

#include "common/contracts/mbconv_chain.h"
#include "cuda/encoder/mbconv_tensors.h"

namespace hyperseg::cuda {
namespace {

// The chain's memory: each block overwrites that of the one before.
class ChainWorkspace {
 public:
  void extend(const MbconvBlock& of, const MbconvPlan& plan) {
    expanded_ = std::max(expanded_, plan.within ? 0 : of.expanded_values());
    filtered_ = std::max(filtered_, of.filtered_values());
    gates_ = std::max(gates_, of.gate_values());
    partials_ = std::max(partials_, of.block.images * plan.tiling.sums() * of.block.squeezed);
  }

  void allocate(const Tensor& x) {
    const auto values = [&](int64_t count) { return torch::stable::new_empty(x, {count}); };
    const auto words = [&](int64_t count) { return torch::stable::new_empty(x, {count}, ScalarType::Float); };
    tensors_ = {values(expanded_), values(filtered_), values(gates_), words(partials_), words(1)};
  }

  void give(Mbconv& block) {
    block.expanded = tensors_[0].mutable_data_ptr();
    block.filtered = tensors_[1].mutable_data_ptr();
    block.gates = tensors_[2].mutable_data_ptr();
    block.partials = static_cast<float*>(tensors_[3].mutable_data_ptr());
    block.barrier = static_cast<unsigned*>(tensors_[4].mutable_data_ptr());
  }

 private:
  int64_t expanded_ = 0, filtered_ = 0, gates_ = 0, partials_ = 0;
  std::vector<Tensor> tensors_;
};

// Consecutive blocks from `first` on that one chain can have, and their plans.
struct Part {
  size_t first, last;
  std::vector<MbconvPlan> plans;
};

Part part_of(const std::vector<MbconvBlock>& all, size_t first) {
  Part part{first, first, {}};
  for (int steps = 0; part.last < all.size(); ++part.last) {
    const Mbconv& block = all[part.last].block;
    const bool is_first = part.last == first;  // its first step is a launch
    const MbconvPlan plan = is_first ? mbconv_plan(block) : mbconv_plan(block, kChainShared, true);
    steps += 3;  // at most: gates may be computed with the projection
    if (!chainable(block, plan, is_first) || steps > kChainSteps) break;
    part.plans.push_back(plan);
  }
  return part;
}

void run_chain(std::vector<MbconvBlock>& all, const Part& part, const Tensor& x, Stream stream) {
  ChainWorkspace workspace;
  std::vector<Mbconv> blocks;
  bool ready = true;
  for (size_t i = part.first; i < part.last; ++i) {
    workspace.extend(all[i], part.plans[i - part.first]);
    ready = ready && all[i].block.constants_ready;
  }
  workspace.allocate(x);
  for (size_t i = part.first; i < part.last; ++i) {
    blocks.push_back(all[i].block);
    blocks.back().constants_ready = ready;
    workspace.give(blocks.back());
  }
  mbconv_chain(blocks, part.plans, stream);
}

std::vector<Tensor> mbconv_chain_op(const Tensor& x, std::vector<Tensor> weights, std::vector<int64_t> expanded,
                                    std::vector<int64_t> strides, std::vector<int64_t> paddings,
                                    std::vector<int64_t> residuals, std::vector<int64_t> kept) {
  const std::vector<MbconvTensors> chain = blocks_of_chain(weights, expanded, strides, paddings, residuals, kept);
  check_map("mbconv_chain", "x", x);
  const DeviceGuard device(x);
  const size_t count = chain.size();
  std::vector<MbconvBlock> all;
  all.reserve(count);
  for (const MbconvTensors& block : chain) all.emplace_back(all.empty() ? x : all.back().out, block);
  const bool chains = requested_launches() != MbconvLaunches::kMost && chain_blocks(all[0].block.type) > 0;
  for (size_t first = 0; first < count;) {
    const Part part = chains ? part_of(all, first) : Part{first, first, {}};
    if (part.last - first >= 2) {
      run_chain(all, part, x, device.stream());
      first = part.last;
    } else {
      run_mbconv(all[first++], x, device.stream());
    }
  }
  std::vector<Tensor> outputs;
  for (size_t i = 0; i < count; ++i)
    if (kept[i]) outputs.push_back(all[i].out);
  return outputs;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) {
  m.impl("mbconv_chain", TORCH_BOX(&mbconv_chain_op));
}

}  // namespace hyperseg::cuda
