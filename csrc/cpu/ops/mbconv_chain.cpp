#include "common/contracts/mbconv_chain.h"

#include <torch/csrc/stable/library.h>

#include "cpu/encoder/mbconv_tensors.h"

namespace hyperseg::cpu {
namespace {

// Block after block: between them the threads stay awake, and no time is spent in Python.
std::vector<Tensor> mbconv_chain_op(const Tensor& x, std::vector<Tensor> weights, std::vector<int64_t> expanded,
                                    std::vector<int64_t> strides, std::vector<int64_t> paddings,
                                    std::vector<int64_t> residuals, std::vector<int64_t> kept) {
  const std::vector<MbconvTensors> chain = blocks_of_chain(weights, expanded, strides, paddings, residuals, kept);
  std::vector<Tensor> outputs;
  Tensor map = x;
  for (size_t i = 0; i < chain.size(); ++i) {
    map = run_mbconv(map, chain[i]);
    if (kept[i]) outputs.push_back(map);
  }
  return outputs;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) { m.impl("mbconv_chain", TORCH_BOX(&mbconv_chain_op)); }

}  // namespace hyperseg::cpu
