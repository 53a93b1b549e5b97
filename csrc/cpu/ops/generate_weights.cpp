#include "cpu/decoder/generate_weights.h"

#include <torch/csrc/stable/library.h>

#include "common/contracts/generate_weights.h"
#include "common/tensors.h"

namespace hyperseg::cpu {
namespace {

Tensor generate_weights_op(const Tensor& signal, std::vector<Tensor> generators, std::vector<int64_t> offsets,
                           std::vector<int64_t> groups, std::vector<int64_t> sizes) {
  check_generate_weights("generate_weights", signal, generators, offsets, groups, sizes);
  return generate_weights(signal, generators, offsets, groups, sizes);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) { m.impl("generate_weights", TORCH_BOX(&generate_weights_op)); }

}  // namespace hyperseg::cpu
