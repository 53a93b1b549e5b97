#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace hyperseg::cpu {

torch::stable::Tensor generate_weights(const torch::stable::Tensor& signal,  // [N, C, fh, fw]
                                       std::vector<torch::stable::Tensor> generators, std::vector<int64_t> offsets,
                                       std::vector<int64_t> groups, std::vector<int64_t> sizes);

}  // namespace hyperseg::cpu
