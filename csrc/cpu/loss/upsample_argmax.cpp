#include "cpu/loss/upsample_argmax.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/acc.h"
#include "cpu/base/bilinear.h"
#include "cpu/simd/primitives.h"
#include "cpu/simd/simd.h"

// Labels are computed in tiles. A tile goes down its rows and keeps, for every class, the two logit rows around the
// current one, already widened to the tile's columns: a logit row is widened once for all label rows that sample it,
// and each label row takes one blend and one comparison per class.
namespace hyperseg::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTileHeight = 64;
constexpr int64_t kTileWidth = 128;  // even; two rows of 19 classes take 19 KB of the L1 cache

template <typename T>
HYPERSEG_INLINE void widen_body(const T* __restrict row, int32_t first, const int32_t* __restrict low,
                                const int32_t* __restrict high, const T* __restrict weight, T* __restrict out,
                                int64_t columns) {
  for (int64_t x = 0; x < columns; ++x) {
    out[x] = row[low[x] - first] * (T(1) - weight[x]) + row[high[x] - first] * weight[x];
  }
}

HYPERSEG_CLONES void widen(const float* row, int32_t first, const int32_t* low, const int32_t* high,
                           const float* weight, float* out, int64_t columns) {
  widen_body(row, first, low, high, weight, out, columns);
}

HYPERSEG_CLONES void widen(const double* row, int32_t first, const int32_t* low, const int32_t* high,
                           const double* weight, double* out, int64_t columns) {
  widen_body(row, first, low, high, weight, out, columns);
}

template <typename T>
HYPERSEG_INLINE void widen_twice_body(const T* __restrict row, T* __restrict out, int64_t pairs) {
  for (int64_t i = 0; i < pairs; ++i) {
    out[2 * i] = row[i] * T(0.25) + row[i + 1] * T(0.75);
    out[2 * i + 1] = row[i + 1] * T(0.75) + row[i + 2] * T(0.25);
  }
}

HYPERSEG_CLONES void widen_twice(const float* row, float* out, int64_t pairs) { widen_twice_body(row, out, pairs); }

HYPERSEG_CLONES void widen_twice(const double* row, double* out, int64_t pairs) { widen_twice_body(row, out, pairs); }

// out[x - x0] = the logit row at label column x of [x0, x1); row[0] is the logit in column `first`
template <typename T>
void sample(const Axis<T>& axis, const T* row, int64_t first, int64_t x0, int64_t x1, T* out) {
  const auto look_up = [&](int64_t from, int64_t to) {
    widen(row, static_cast<int32_t>(first), &axis.low[from], &axis.high[from], &axis.weight[from], out + from - x0,
          to - from);
  };
  // Exactly twice as wide, the usual case: only the outermost columns need look-ups, which are slow.
  const int64_t inner0 = 2 * std::max<int64_t>(x0 / 2, 1), inner1 = 2 * std::min(x1 / 2, axis.in - 1);
  if (axis.out == 2 * axis.in && inner0 < inner1) {
    look_up(x0, inner0);
    widen_twice(row, out + inner0 - x0, (inner1 - inner0) / 2);
    look_up(inner1, x1);
  } else {
    look_up(x0, x1);
  }
}

// labels[x] = the first class c with the largest upper[c][x] * (1 - weight) + lower[c][x] * weight
template <typename T, typename Index>  // equally wide, so that one vector mask fits both
HYPERSEG_INLINE void argmax_body(const T* __restrict upper, const T* __restrict lower, T weight, int64_t classes,
                                 uint8_t* __restrict labels, int64_t columns) {
  alignas(64) T best[kTileWidth];
  alignas(64) Index label[kTileWidth] = {};
  for (int64_t x = 0; x < kTileWidth; ++x) best[x] = upper[x] * (T(1) - weight) + lower[x] * weight;
  for (int64_t c = 1; c < classes; ++c) {
    upper += kTileWidth;
    lower += kTileWidth;
    for (int64_t x = 0; x < kTileWidth; ++x) {
      const T value = upper[x] * (T(1) - weight) + lower[x] * weight;
      // Greater, or NaN if the best is not NaN: the first NaN wins, as in torch.argmax.
      const bool better = !(value <= best[x]) & (best[x] == best[x]);
      best[x] = better ? value : best[x];
      label[x] = better ? static_cast<Index>(c) : label[x];
    }
  }
  for (int64_t x = 0; x < columns; ++x) labels[x] = static_cast<uint8_t>(label[x]);
}

HYPERSEG_CLONES void argmax(const float* upper, const float* lower, float weight, int64_t classes, uint8_t* labels,
                            int64_t columns) {
  argmax_body<float, int32_t>(upper, lower, weight, classes, labels, columns);
}

HYPERSEG_CLONES void argmax(const double* upper, const double* lower, double weight, int64_t classes, uint8_t* labels,
                            int64_t columns) {
  argmax_body<double, int64_t>(upper, lower, weight, classes, labels, columns);
}

// Return `count` contiguous values as T: `values` itself if possible, else a copy in `buffer`
template <typename T, typename scalar_t>
const T* as_contiguous(const scalar_t* values, int64_t stride, int64_t count, T* buffer) {
  if constexpr (std::is_same_v<T, scalar_t>) {
    if (stride == 1) return values;
  }
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) buffer[i] = static_cast<T>(values[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) buffer[i] = static_cast<T>(values[i * stride]);
  }
  return buffer;
}

template <typename scalar_t>
void run(const Tensor& logits, Tensor& labels) {
  using T = acc_t<scalar_t>;
  const int64_t N = logits.size(0), C = logits.size(1), H = labels.size(1), W = labels.size(2);
  const int64_t stride_n = logits.stride(0), stride_c = logits.stride(1);
  const int64_t stride_h = logits.stride(2), stride_w = logits.stride(3);
  const auto* const data = logits.const_data_ptr<scalar_t>();
  auto* const out = labels.mutable_data_ptr<uint8_t>();
  const bool copy = logits.size(2) == H && logits.size(3) == W;
  const Axis<T> rows(logits.size(2), H, copy), columns(logits.size(3), W, copy);
  // Pixels whose classes are contiguous are transposed, a logit row at a time.
  const bool by_pixels = std::is_same_v<T, scalar_t> && stride_c == 1 && C > 1;
  const int64_t tiles_x = (W + kTileWidth - 1) / kTileWidth, tiles_y = (H + kTileHeight - 1) / kTileHeight;

  torch::stable::parallel_for(0, N * tiles_y * tiles_x, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> buffer(columns.in * (by_pixels ? C : 1)), upper(C * kTileWidth), lower(C * kTileWidth);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t n = tile / tiles_x / tiles_y;
      const int64_t y0 = tile / tiles_x % tiles_y * kTileHeight, y1 = std::min(y0 + kTileHeight, H);
      const int64_t x0 = tile % tiles_x * kTileWidth, x1 = std::min(x0 + kTileWidth, W);
      const int64_t first = columns.low[x0], span = columns.high[x1 - 1] - first + 1;
      const auto fill = [&](std::vector<T>& widened, int64_t row) {
        const auto* const from = data + n * stride_n + row * stride_h + first * stride_w;
        if constexpr (std::is_same_v<T, scalar_t>) {
          if (by_pixels) primitives<T>().transpose(span, C, from, stride_w, buffer.data(), span);
        }
        for (int64_t c = 0; c < C; ++c) {
          const T* line =
              by_pixels ? &buffer[c * span] : as_contiguous(from + c * stride_c, stride_w, span, buffer.data());
          sample(columns, line, first, x0, x1, &widened[c * kTileWidth]);
        }
      };
      int64_t in_upper = -1, in_lower = -1;
      for (int64_t y = y0; y < y1; ++y) {
        if (in_upper != rows.low[y]) {
          std::swap(upper, lower);
          std::swap(in_upper, in_lower);
          if (in_upper != rows.low[y]) fill(upper, in_upper = rows.low[y]);
        }
        if (in_lower != rows.high[y]) fill(lower, in_lower = rows.high[y]);
        argmax(upper.data(), lower.data(), rows.weight[y], C, out + (n * H + y) * W + x0, x1 - x0);
      }
    }
  });
}

}  // namespace

void upsample_argmax(const Tensor& logits, Tensor& labels) {
  THO_DISPATCH_V2(logits.scalar_type(), "upsample_argmax", AT_WRAP([&] { run<scalar_t>(logits, labels); }),
                  ScalarType::Float, ScalarType::Double, ScalarType::Half, ScalarType::BFloat16);
}

}  // namespace hyperseg::cpu
