#include "cuda/loss/upsample_argmax.h"

#include "cuda/device/launch.cuh"
#include "cuda/loss/upsampled.cuh"

// Compiled without contraction: labels must not depend on the multiplications that a compiler fuses.
namespace hyperseg::cuda {
namespace {

// One thread per label.
template <typename T, bool STAGED>
HYPERSEG_KERNEL(kTileThreads, 1)
upsample_argmax_kernel(Map<const T> logits, Resizing resizing, uint8_t* labels) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const unsigned tiles = resizing.tiles();
  const int64_t n = blockIdx.x / tiles;
  const Resized<T, STAGED> logit(logits.at(n, 0, 0, 0), logits, resizing, blockIdx.x % tiles,
                                 reinterpret_cast<float*>(shared_memory()));
  float best = 0.0f;
  int label = 0;
  for (int c = 0; c < resizing.channels; ++c) {
    const float value = logit(c);
    // Greater, or NaN if the best is not NaN: the first NaN wins, as in torch.argmax.
    const bool better = !(value <= best) && best == best;
    if (c == 0 || better) best = value, label = c;
  }
  if (logit.inside)
    labels[(n * resizing.rows.out + logit.y) * resizing.columns.out + logit.x] = static_cast<uint8_t>(label);
}

}  // namespace

void upsample_argmax(const Map<const void>& logits, Type type, int64_t images, uint8_t* labels, int64_t height,
                     int64_t width, Stream stream) {
  const Resizing resizing(logits, height, width);
  const int64_t bytes = resizing.staged_bytes();
  const Grid grid = grid_of("upsample_argmax", images * resizing.tiles());
  with_type(type, [&](auto value) {
    using T = decltype(value);
    const auto run = bytes ? launch<upsample_argmax_kernel<T, true>, Map<const T>, Resizing, uint8_t*>
                           : launch<upsample_argmax_kernel<T, false>, Map<const T>, Resizing, uint8_t*>;
    run("upsample_argmax", grid, kTileThreads, bytes, stream, logits.of<const T>(), resizing, labels);
  });
}

}  // namespace hyperseg::cuda
