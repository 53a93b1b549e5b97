#include "cuda/decoder/generate_weights.h"

#include "common/contracts/generate_weights.h"
#include "cuda/device/tensors.h"

namespace hyperseg::cuda {

namespace {

Tensor generate_weights_op(const Tensor& signal, std::vector<Tensor> generators, std::vector<int64_t> offsets,
                           std::vector<int64_t> groups, std::vector<int64_t> sizes) {
  constexpr const char* op = "generate_weights";
  check_generate_weights(op, signal, generators, offsets, groups, sizes);
  const Type type = type_of(op, signal);
  std::vector<GeneratorArgs> parts;
  int64_t total = 0;
  for (size_t i = 0; i < generators.size(); ++i) {
    parts.push_back(generator_of(generators[i], offsets[i], groups[i], sizes[i]));
    total += sizes[i];
  }
  check(total <= kLargest, op, ": a patch may have at most 2^24 parameters, got ", total);
  Tensor out = torch::stable::new_empty(signal, {signal.size(0), signal.size(2), signal.size(3), total});
  const DeviceGuard device(signal);
  generate_weights(read<void>(signal), type, signal.size(0), parts, out.mutable_data_ptr(), device.stream());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) {
  m.impl("generate_weights", TORCH_BOX(&generate_weights_op));
}

}  // namespace hyperseg::cuda
