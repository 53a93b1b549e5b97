#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "common/contracts/normalise_frames.h"
#include "common/contracts/stem.h"
#include "cpu/base/tasks.h"
#include "cpu/base/tensors.h"

namespace hyperseg::cpu {
namespace {

constexpr int64_t kRows = 16;  // per task

// A row of the frames, with its last pixel repeated up to `width`. table: [3, 256], the value of each byte.
template <typename S>
void normalise_row(const Map<const uint8_t>& frames, const uint8_t* from, const S* table, int64_t width, S* to) {
  const int64_t green = frames.stride_c, blue = 2 * frames.stride_c;
  for (int64_t x = 0; x < frames.width; ++x, from += frames.stride_w) {
    to[3 * x] = table[from[0]];
    to[3 * x + 1] = table[256 + from[green]];
    to[3 * x + 2] = table[512 + from[blue]];
  }
  for (int64_t x = frames.width; x < width; ++x) std::copy_n(to + 3 * (x - 1), 3, to + 3 * x);
}

Tensor normalise_frames_op(const Tensor& frames, const Tensor& scale, const Tensor& shift, const Tensor& like,
                           int64_t height, int64_t width) {
  check_normalise_frames(frames, scale, shift, like, height, width);
  Tensor out = torch::stable::new_empty(like, {frames.size(0), height, width, 3});
  with_type(like, "normalise_frames", [&](auto value) {
    using S = decltype(value);
    using T = acc_t<S>;
    const std::vector<T> factor = values<T>(scale), offset = values<T>(shift);
    std::vector<S> table(3 * 256);
    for (int64_t i = 0; i < 3 * 256; ++i)
      table[i] = static_cast<S>(static_cast<T>(i % 256) * factor[i / 256] + offset[i / 256]);
    const Map<const uint8_t> map = map_of_frames(frames);
    S* const to = static_cast<S*>(out.mutable_data_ptr());
    const int64_t rows = frames.size(0) * height;
    for_each_task((rows + kRows - 1) / kRows, [&](int64_t task) {
      for (int64_t row = task * kRows; row < std::min((task + 1) * kRows, rows); ++row)
        normalise_row(map, map.at(row / height, 0, std::min(row % height, map.height - 1), 0), table.data(), width,
                      to + row * width * 3);
    });
  });
  return torch::stable::transpose(torch::stable::transpose(out, 2, 3), 1, 2);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) { m.impl("normalise_frames", TORCH_BOX(&normalise_frames_op)); }

}  // namespace hyperseg::cpu
