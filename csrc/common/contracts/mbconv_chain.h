#pragma once

#include "common/contracts/mbconv.h"

namespace hyperseg {

// The blocks of mbconv_chain. Only the lengths of the lists are checked: the contract of mbconv applies to each block.
inline std::vector<MbconvTensors> blocks_of_chain(const std::vector<torch::stable::Tensor>& weights,
                                                  const std::vector<int64_t>& expanded,
                                                  const std::vector<int64_t>& strides,
                                                  const std::vector<int64_t>& paddings,
                                                  const std::vector<int64_t>& residuals,
                                                  const std::vector<int64_t>& kept) {
  constexpr const char* op = "mbconv_chain";
  const size_t blocks = strides.size();
  check(blocks > 0, op, ": there must be at least one block");
  size_t tensors = 0;
  for (int64_t e : expanded) tensors += e ? 10 : 8;
  check(expanded.size() == blocks && paddings.size() == 4 * blocks && residuals.size() == blocks &&
            kept.size() == blocks && weights.size() == tensors,
        op, ": for ", blocks, " strides give as many flags in expanded, residuals and kept, four paddings each, and 8 ",
        "or 10 weights each; got ", expanded.size(), ", ", residuals.size(), " and ", kept.size(), " flags, ",
        paddings.size(), " paddings and ", weights.size(), " weights");
  check(kept.back() != 0, op, ": the output of the last block must be kept");
  std::vector<MbconvTensors> chain;
  chain.reserve(blocks);
  auto next = weights.begin();
  const auto take_if = [&](bool given) { return given ? std::optional(*next++) : std::nullopt; };
  for (size_t i = 0; i < blocks; ++i) {
    const auto padding = paddings.begin() + 4 * i;
    // Elements of a braced list are evaluated from left to right.
    chain.push_back({take_if(expanded[i]),
                     take_if(expanded[i]),
                     *next++,
                     *next++,
                     *next++,
                     *next++,
                     *next++,
                     *next++,
                     *next++,
                     *next++,
                     strides[i],
                     {padding, padding + 4},
                     residuals[i] != 0});
  }
  return chain;
}

}  // namespace hyperseg
