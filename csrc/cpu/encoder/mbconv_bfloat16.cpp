#include "cpu/encoder/mbconv_bfloat16.h"

#include <algorithm>
#include <vector>

#include "common/check.h"
#include "cpu/base/buffer.h"
#include "cpu/base/tasks.h"
#include "cpu/simd/bfloat16.h"

// The two passes of mbconv.cpp as tasks of mbconv_bfloat16_kernels.cpp, which is compiled per instruction set.
namespace hyperseg::cpu {

int64_t filtered_size(const bfloat16::Block& block) {
  return round_up(block.out_height * block.out_width, bfloat16::kPixels) * round_up(block.hidden, bfloat16::kDepth);
}

int64_t packed_size(const bfloat16::Block& block) {
  return bfloat16::tiles(block.out_channels) * bfloat16::steps(block.hidden) * bfloat16::kTileValues;
}

#ifdef HYPERSEG_BFLOAT16
namespace bfloat16 {
extern const Kernels with_vectors;
#ifdef HYPERSEG_AMX
extern const Kernels with_tiles;
#endif
}  // namespace bfloat16

namespace {

const bfloat16::Kernels& kernels() {
#ifdef HYPERSEG_AMX
  if (bfloat16_level() == Bfloat16::kTiles) return bfloat16::with_tiles;
#endif
  return bfloat16::with_vectors;
}

constexpr int64_t kWidth = 48;                             // input columns per task, about: three tiles
constexpr int64_t kTasks = 16;                             // minimum, where the map is large enough
constexpr int64_t kProjectPixels = 8 * bfloat16::kPixels;  // per task of the projection, where the map is large enough
constexpr int64_t kMinimumRows = 8;                        // per task: the rows before the first are expanded once more

// Compute filtered[pixels, hidden] and, in the order of the tasks, its sums[hidden].
void expand_and_filter(const bfloat16::Block& block, int64_t image, uint16_t* filtered, float* sums) {
  const int64_t fresh = std::max<int64_t>((kWidth - block.size) / block.stride + 1, 1);  // output columns per task
  const int64_t columns = divide_up(block.out_width, fresh), width = divide_up(block.out_width, columns);
  const int64_t slices = divide_up(block.hidden, bfloat16::kChannels);
  const int64_t wanted = divide_up(kTasks, slices * columns);
  const int64_t strips = std::clamp<int64_t>(block.out_height / kMinimumRows, 1, wanted);
  const int64_t height = divide_up(block.out_height, strips), parts = strips * columns;
  std::vector<float> partial(parts * block.hidden);
  for_each_task(slices * parts, [&](int64_t task) {
    const int64_t part = task % parts, y0 = part / columns * height, x0 = part % columns * width;
    thread_local Buffer<float> memory;
    kernels().expand_and_filter({.block = block,
                                 .image = image,
                                 .first = task / parts * bfloat16::kChannels,
                                 .y0 = y0,
                                 .y1 = std::min(y0 + height, block.out_height),
                                 .x0 = x0,
                                 .x1 = std::min(x0 + width, block.out_width),
                                 .filtered = filtered,
                                 .sums = partial.data() + part * block.hidden,
                                 .scratch = memory.reserve(kernels().slice_scratch(block, width))});
  });
  std::copy_n(partial.data(), block.hidden, sums);
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t c = 0; c < block.hidden; ++c) sums[c] += partial[part * block.hidden + c];
}

}  // namespace

void mbconv_bfloat16(const bfloat16::Block& block, uint16_t* filtered, uint16_t* packed, uint16_t* out) {
  const int64_t pixels = block.out_height * block.out_width;
  std::vector<float> means(block.hidden), squeezed(block.squeezed), gates(block.hidden);
  for (int64_t image = 0; image < block.images; ++image) {
    expand_and_filter(block, image, filtered, means.data());
    for (float& sum : means) sum /= static_cast<float>(pixels);
    kernels().compute_gates(block, means.data(), squeezed.data(), gates.data());
    for_each_task(bfloat16::tiles(block.out_channels),
                  [&](int64_t tile) { kernels().pack_projection(block, gates.data(), tile, packed); });
    const int64_t chunk = pixels >= kTasks * kProjectPixels ? kProjectPixels : bfloat16::kPixels;
    for_each_task(divide_up(pixels, chunk), [&](int64_t task) {
      kernels().project(block, image, task * chunk, std::min((task + 1) * chunk, pixels), filtered, packed, out);
    });
  }
}
#else
void mbconv_bfloat16(const bfloat16::Block&, uint16_t*, uint16_t*, uint16_t*) {
  check(false, "mbconv: this build of the extension has no kernels for bfloat16");
}
#endif

}  // namespace hyperseg::cpu
