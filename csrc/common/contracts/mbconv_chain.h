#pragma once

#include "common/tensor_checks.h"

namespace hyperseg {

// Lengths of the lists of mbconv_chain; the contract of mbconv applies to each block besides.
inline void check_mbconv_chain(const std::vector<torch::stable::Tensor>& weights, const std::vector<int64_t>& expanded,
                               const std::vector<int64_t>& strides, const std::vector<int64_t>& paddings,
                               const std::vector<int64_t>& residuals, const std::vector<int64_t>& kept) {
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
}

}  // namespace hyperseg
