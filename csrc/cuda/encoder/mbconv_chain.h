#pragma once

#include <vector>

#include "cuda/encoder/mbconv.h"
#include "cuda/encoder/mbconv_plan.h"

// Consecutive blocks in one cooperative launch. The first step of the first block is a launch of its own, which also
// clears the barrier; all later steps are separated by barriers of the grid.
namespace hyperseg::cuda {

constexpr int kChainThreads = 256;
constexpr int kChainSteps = 80;             // in one launch, among the kernel's arguments
constexpr int64_t kChainShared = 80 << 10;  // of a block: two fit per SM of sm_80 and sm_90
constexpr double kBetweenSteps = 1800;      // cycles: a barrier of the grid takes about a microsecond

// Whether all steps of the block, which has this plan, can be part of a chain; of the first one the steps after the
// first.
bool chainable(const Mbconv& block, const MbconvPlan& plan, bool first);

// The number of blocks that the current device holds at once; 0 if it cannot run chains.
unsigned chain_blocks(Type type);

// Compute the blocks in order. Each has its memory and a plan for kChainShared; `barrier` of the first one is set, and
// they have at most kChainSteps steps after the first.
void mbconv_chain(const std::vector<Mbconv>& blocks, const std::vector<MbconvPlan>& plans, Stream stream);

}  // namespace hyperseg::cuda
