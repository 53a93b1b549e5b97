#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace hyperseg::cpu {

// Weights [N, fh, fw, sum of sizes] that the generators make from signal [N, C, fh, fw]. The arguments have been
// checked.
torch::stable::Tensor generate_weights(const torch::stable::Tensor& signal,
                                       const std::vector<torch::stable::Tensor>& generators,
                                       const std::vector<int64_t>& offsets, const std::vector<int64_t>& groups,
                                       const std::vector<int64_t>& sizes);

}  // namespace hyperseg::cpu
