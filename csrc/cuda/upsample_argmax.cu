#include "upsample_argmax.h"

#include "bilinear.cuh"
#include "launch.cuh"

// Compiled without contraction: labels must not depend on which products a compiler fuses.
namespace hyperseg::cuda {
namespace {

constexpr int kHeight = 8, kWidth = 32, kThreads = kHeight * kWidth;
constexpr int64_t kMostStaged = 48 << 10;  // bytes of shared memory that any block may have

struct Axis {
  int64_t in, out;
  float scale;

  // So many values are sampled by `tile` pixels side by side.
  int64_t reach(int64_t tile) const {
    const int64_t needed = static_cast<int64_t>(static_cast<float>(tile) * scale) + 3;
    return needed < in ? needed : in;
  }
};

struct Problem {
  Axis rows, columns;
  int classes, staged_width;
  bool copy;  // the map keeps its size: nothing is sampled, and no neighbour's infinity times 0 is NaN
};

// One label a thread. STAGED: what the block samples is in shared memory, as float, pixel after pixel; the odd number
// of values a pixel keeps threads out of each other's banks.
template <typename T, bool STAGED>
HYPERSEG_KERNEL(kThreads, 1)
upsample_argmax_kernel(Map<const T> logits, Problem problem, uint8_t* labels) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int height = static_cast<int>(problem.rows.out), width = static_cast<int>(problem.columns.out);
  const int h = static_cast<int>(problem.rows.in), w = static_cast<int>(problem.columns.in);
  const int thread = threadIdx.x, tiles = (width + kWidth - 1) / kWidth;
  const int top = blockIdx.x / tiles * kHeight, left = blockIdx.x % tiles * kWidth;
  const int y = min(top + thread / kWidth, height - 1), x = min(left + thread % kWidth, width - 1);
  const T* map = logits.at(blockIdx.y, 0, 0, 0);
  const Sample row(y, problem.rows.scale, h), column(x, problem.columns.scale, w);
  const int stride = problem.classes | 1;
  float* staged = reinterpret_cast<float*>(shared_memory());
  int first_y = 0, first_x = 0;
  if constexpr (STAGED) {
    first_y = Sample(top, problem.rows.scale, h).low;
    first_x = Sample(left, problem.columns.scale, w).low;
    const int last_y = Sample(min(top + kHeight, height) - 1, problem.rows.scale, h).high;
    const int last_x = Sample(min(left + kWidth, width) - 1, problem.columns.scale, w).high;
    const int columns = last_x - first_x + 1, values = (last_y - first_y + 1) * columns * problem.classes;
    const bool by_pixel = logits.stride_c == 1;
    for (int i = thread; i < values; i += kThreads) {
      const int c = by_pixel ? i % problem.classes : i / columns % problem.classes;
      const int dx = by_pixel ? i / problem.classes % columns : i % columns, dy = i / (columns * problem.classes);
      const T value = map[c * logits.stride_c + (first_y + dy) * logits.stride_h + (first_x + dx) * logits.stride_w];
      staged[(dy * problem.staged_width + dx) * stride + c] = to_float(value);
    }
    sync_block();
  }
  const auto logit = [&](int yy, int xx, int c) {
    if constexpr (STAGED)
      return staged[((yy - first_y) * problem.staged_width + xx - first_x) * stride + c];
    else
      return to_float(map[c * logits.stride_c + yy * logits.stride_h + xx * logits.stride_w]);
  };
  float best = 0.0f;
  int label = 0;
  for (int c = 0; c < problem.classes; ++c) {
    const float upper =
        logit(row.low, column.low, c) * (1.0f - column.weight) + logit(row.low, column.high, c) * column.weight;
    const float lower =
        logit(row.high, column.low, c) * (1.0f - column.weight) + logit(row.high, column.high, c) * column.weight;
    const float value = problem.copy ? logit(row.low, column.low, c) : upper * (1.0f - row.weight) + lower * row.weight;
    // Greater, or NaN where the best is not: the first NaN wins, as in torch.argmax.
    const bool better = !(value <= best) && best == best;
    if (c == 0 || better) best = value, label = c;
  }
  if (top + thread / kWidth < height && left + thread % kWidth < width)
    labels[(static_cast<int64_t>(blockIdx.y) * height + y) * width + x] = static_cast<uint8_t>(label);
}

}  // namespace

void upsample_argmax(const Map<const void>& logits, Type type, int64_t images, uint8_t* labels, int64_t height,
                     int64_t width, Stream stream) {
  Problem problem;
  problem.rows = {logits.height, height, static_cast<float>(logits.height) / static_cast<float>(height)};
  problem.columns = {logits.width, width, static_cast<float>(logits.width) / static_cast<float>(width)};
  problem.classes = static_cast<int>(logits.channels);
  problem.copy = logits.height == height && logits.width == width;
  const int64_t rows = problem.rows.reach(kHeight), columns = problem.columns.reach(kWidth);
  problem.staged_width = static_cast<int>(columns);
  const bool small = rows < kMostStaged && columns < kMostStaged;
  const int64_t bytes = small ? 4 * rows * columns * (problem.classes | 1) : kMostStaged + 1;
  with_type(type, [&](auto value) {
    using T = decltype(value);
    for (int64_t first = 0; first < images; first += 65535) {  // as many as a grid may be high
      const int64_t count = images - first < 65535 ? images - first : 65535;
      Map<const T> part = logits.of<const T>();
      part.data += first * part.stride_n;
      uint8_t* target = labels + first * height * width;
      const Grid grid{blocks_of(width, kWidth) * blocks_of(height, kHeight), static_cast<unsigned>(count)};
      if (bytes <= kMostStaged)
        launch<upsample_argmax_kernel<T, true>>("upsample_argmax", grid, kThreads, bytes, stream, part, problem,
                                                target);
      else
        launch<upsample_argmax_kernel<T, false>>("upsample_argmax", grid, kThreads, 0, stream, part, problem, target);
    }
  });
}

}  // namespace hyperseg::cuda
