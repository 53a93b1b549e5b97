#include "cuda/training/generate_weights_backward.h"

#include <algorithm>
#include <tuple>

#include "common/contracts/generate_weights.h"
#include "cuda/device/tensors.h"

namespace hyperseg::cuda {
namespace {

constexpr char kName[] = "generate_weights_backward";

std::tuple<Tensor, std::vector<Tensor>> generate_weights_backward_op(const Tensor& grad, const Tensor& signal,
                                                                     std::vector<Tensor> generators,
                                                                     std::vector<int64_t> offsets,
                                                                     std::vector<int64_t> groups,
                                                                     std::vector<int64_t> sizes) {
  check_generate_weights(kName, signal, generators, offsets, groups, sizes);
  int64_t parameters = 0;
  for (int64_t size : sizes) parameters += size;
  check_same_kind(kName, "grad", grad, "signal", signal);
  check_shape(kName, "grad", grad, {signal.size(0), signal.size(2), signal.size(3), parameters});
  const int64_t area = signal.size(2) * signal.size(3), patches = signal.size(0) * area;
  check(patches < int64_t{1} << 31, kName, ": a signal may have at most 2^31 patches, got ", patches);

  const GenerationBackward problem{type_of(kName, signal),     patches,          FastDivmod(area),
                                   FastDivmod(signal.size(3)), read<void>(grad), read<void>(signal)};
  const auto floats = [&](int64_t count) { return torch::stable::new_empty(signal, {count}, ScalarType::Float); };
  const auto data = [](Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); };
  const auto shape = signal.sizes();
  Tensor d_signal = torch::stable::new_empty(signal, shape);
  std::vector<Tensor> d_generators;
  const DeviceGuard device(signal);
  const size_t count = generators.size();
  Tensor sum = floats(count > Generators::kMost ? signal.numel() : 0);
  int64_t start = 0;
  for (size_t first = 0; first < count; first += Generators::kMost) {
    Generators some;
    for (size_t i = first; i < std::min<size_t>(first + Generators::kMost, count); ++i) {
      const Tensor& g = generators[i];
      const auto sides = g.sizes();
      d_generators.push_back(torch::stable::new_empty(g, sides));
      some.list[some.count++] = {generator_of(g, offsets[i], groups[i], sizes[i]),
                                 d_generators.back().mutable_data_ptr(), start};
      start += sizes[i];
    }
    Tensor partial = floats(partial_sums(problem, some)), parts = floats(passed_values(problem, some));
    generator_gradients(problem, some, data(partial), device.stream());
    const SignalGradient result{data(sum), d_signal.mutable_data_ptr(), first == 0, first + some.count == count};
    signal_gradient(problem, some, data(parts), result, device.stream());
  }
  return {d_signal, d_generators};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) {
  m.impl("generate_weights_backward", TORCH_BOX(&generate_weights_backward_op));
}

}  // namespace hyperseg::cuda
