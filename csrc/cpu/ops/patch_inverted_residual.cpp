#include <torch/csrc/stable/library.h>

#include <string>

#include "common/contracts/patch_inverted_residual.h"
#include "cpu/base/tensors.h"
#include "cpu/decoder/level.h"

namespace hyperseg::cpu {
namespace {

Tensor patch_inverted_residual(const Tensor& x, const Tensor& weights, std::optional<Tensor> bias, int64_t hidden,
                               int64_t out_channels, std::string halo) {
  check_patch_inverted_residual("patch_inverted_residual", x, weights, bias, hidden, out_channels, halo);
  Tensor out = new_map(x, out_channels);
  with_type(x, "patch_inverted_residual", [&](auto type) {
    using scalar_t = decltype(type);
    DecoderLevel<scalar_t> level;
    level.skip = read<scalar_t>(x);
    level.with_coordinates = false;
    level.images = x.size(0);
    level.hidden = hidden;
    level.out_channels = out_channels;
    level.own_halo = halo == "own";
    level.bias = values<scalar_t>(bias);
    level.set_weights(weights);
    level.out = write<scalar_t>(out);
    level.run();
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) {
  m.impl("patch_inverted_residual", TORCH_BOX(&patch_inverted_residual));
}

}  // namespace hyperseg::cpu
