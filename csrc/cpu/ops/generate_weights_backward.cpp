#include "cpu/base/generator_backward.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "common/contracts/generate_weights.h"
#include "cpu/base/gradients.h"

namespace hyperseg::cpu {
namespace {

std::tuple<Tensor, std::vector<Tensor>> generate_weights_backward(const Tensor& grad, const Tensor& signal,
                                                                  std::vector<Tensor> generators,
                                                                  std::vector<int64_t> offsets,
                                                                  std::vector<int64_t> groups,
                                                                  std::vector<int64_t> sizes) {
  constexpr char kName[] = "generate_weights_backward";
  check_generate_weights(kName, signal, generators, offsets, groups, sizes);
  int64_t total = 0;
  for (int64_t size : sizes) total += size;
  check_same_kind(kName, "grad", grad, "signal", signal);
  check_shape(kName, "grad", grad, {signal.size(0), signal.size(2), signal.size(3), total});
  Tensor d_signal = dense_like(signal);
  std::vector<Tensor> d_generators;
  // Its rows are read whole.
  const Tensor dense = torch::stable::contiguous(grad);
  with_type(signal, "generate_weights_backward", [&](auto type) {
    using S = decltype(type);
    const S* gradient = static_cast<const S*>(dense.const_data_ptr());
    SignalBackward<S> backward(read<S>(signal), signal.size(0));
    for (size_t i = 0; i < generators.size(); ++i) {
      const Tensor& g = generators[i];
      d_generators.push_back(dense_like(g));
      backward.through({static_cast<const S*>(g.const_data_ptr()), g.stride(0), g.stride(1), g.size(0), g.size(1),
                        groups[i], sizes[i], offsets[i]},
                       gradient, dense.size(3), static_cast<S*>(d_generators.back().mutable_data_ptr()));
      gradient += sizes[i];
    }
    backward.write(static_cast<S*>(d_signal.mutable_data_ptr()));
  });
  return {d_signal, d_generators};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) {
  m.impl("generate_weights_backward", TORCH_BOX(&generate_weights_backward));
}

}  // namespace hyperseg::cpu
