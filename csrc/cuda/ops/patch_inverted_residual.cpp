#include "common/contracts/patch_inverted_residual.h"

#include "cuda/decoder/level_tensors.h"

namespace hyperseg::cuda {
namespace {

Tensor patch_inverted_residual(const Tensor& x, const Tensor& weights, std::optional<Tensor> bias, int64_t hidden,
                               int64_t out_channels, std::string halo) {
  constexpr const char* op = "patch_inverted_residual";
  check_patch_inverted_residual(op, x, weights, bias, hidden, out_channels, halo);
  const Type type = type_of(op, x);
  Tensor out = new_map(x, out_channels);
  const DeviceGuard device(x);
  const Tensor parameters = contiguous_along(weights, 3), shift = bias ? contiguous_along(*bias, 0) : weights;
  DecoderLevelArgs level;
  level.skip = read<void>(x);
  level.out = write<void>(out);
  set_weights(level, parameters);
  if (bias) level.bias = shift.const_data_ptr();
  level.images = static_cast<int>(x.size(0));
  level.hidden = static_cast<int>(hidden);
  level.own_halo = halo == "own";
  run_level(level, type, x, op, device.stream());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, HYPERSEG_DISPATCH, m) {
  m.impl("patch_inverted_residual", TORCH_BOX(&patch_inverted_residual));
}

}  // namespace hyperseg::cuda
