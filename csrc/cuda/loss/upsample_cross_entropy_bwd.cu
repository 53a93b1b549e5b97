#include "cuda/device/bilinear_adjoint.cuh"
#include "cuda/device/block_reduce.cuh"
#include "cuda/device/launch.cuh"
#include "cuda/loss/softmax.cuh"
#include "cuda/loss/upsample_cross_entropy.h"
#include "cuda/loss/upsampled.cuh"

// Each logit gathers, in a fixed order, from the pixels that sample it. If a pixel that counts has a label that is not
// a class, the gradients of the logits that it samples become NaN.
namespace hyperseg::cuda {
namespace {

constexpr char kName[] = "upsample_cross_entropy_backward";
constexpr int kScratch = kTileThreads / 32 * sizeof(float);

// log_sums [images, height, width]: log of the sum of exp(score); may be skipped for pixels that do not count.
template <typename T, bool STAGED>
HYPERSEG_KERNEL(kTileThreads, 1)
log_sums_kernel(Map<const T> logits, Resizing resizing, PixelWeights weights, float* log_sums) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const unsigned tiles = resizing.tiles(), across = resizing.tiles_across();
  const int64_t n = blockIdx.x / tiles;
  const int tile = blockIdx.x % tiles, thread = threadIdx.x;
  const int64_t y = static_cast<int64_t>(tile / across) * kTileHeight + thread / kTileWidth;
  const int64_t x = static_cast<int64_t>(tile % across) * kTileWidth + thread % kTileWidth;
  const bool counts = y < resizing.rows.out && x < resizing.columns.out && weights.at(n, y, x) != 0.0f;
  // In a bootstrapped loss few pixels count, so most blocks end here.
  if (sum_of_block<kTileThreads>(counts ? 1.0f : 0.0f, reinterpret_cast<float*>(shared_memory())) == 0.0f) return;
  const Resized<T, STAGED> scores(logits.at(n, 0, 0, 0), logits, resizing, tile,
                                  reinterpret_cast<float*>(shared_memory() + kScratch));
  const Softmax softmax(scores, resizing.channels, -1);
  if (counts) log_sums[(n * resizing.rows.out + y) * resizing.columns.out + x] = softmax.maximum + softmax.logarithm;
}

struct LabelPixels {
  Labels labels;
  PixelWeights weights;
  const float* log_sums;
};

// A pixel of the label map: its gradient with respect to the score of each class.
template <typename T>
class ScoreGradient {
 public:
  HYPERSEG_DEVICE ScoreGradient(const LabelPixels& pixels, const T* image, const Map<const T>& logits,
                                const Resizing& resizing, int64_t n, int y, int x)
      : copy_(resizing.copy), weight_(pixels.weights.at(n, y, x)) {
    if (weight_ == 0.0f) return;
    const int64_t label = pixels.labels.at(n, y, x);
    log_sum_ = pixels.log_sums[(n * resizing.rows.out + y) * resizing.columns.out + x];
    label_ = static_cast<int>(label);
    if (label < 0 || label >= resizing.channels) weight_ = NAN;
    const Sample row(y, resizing.rows.scale, static_cast<int>(resizing.rows.in));
    const Sample column(x, resizing.columns.scale, static_cast<int>(resizing.columns.in));
    upper_ = image + row.low * logits.stride_h + column.low * logits.stride_w;
    right_ = (column.high - column.low) * logits.stride_w, down_ = (row.high - row.low) * logits.stride_h;
    row_weight_ = row.weight, column_weight_ = column.weight;
  }

  HYPERSEG_DEVICE bool counts() const { return weight_ != 0.0f; }
  HYPERSEG_DEVICE float at(int c, int64_t stride_c) const {
    const T* from = upper_ + c * stride_c;
    float score = to_float(from[0]);
    if (!copy_) {
      const float upper = score * (1.0f - column_weight_) + to_float(from[right_]) * column_weight_;
      const float lower =
          to_float(from[down_]) * (1.0f - column_weight_) + to_float(from[down_ + right_]) * column_weight_;
      score = upper * (1.0f - row_weight_) + lower * row_weight_;
    }
    return weight_ * (expf(score - log_sum_) - (c == label_ ? 1.0f : 0.0f));
  }

 private:
  bool copy_;
  float weight_, log_sum_ = 0.0f, row_weight_ = 0.0f, column_weight_ = 0.0f;
  int label_ = 0;
  const T* upper_ = nullptr;
  int64_t right_ = 0, down_ = 0;
};

// A tile of logits, each sampled by at most kReaders x kReaders pixels; these pixels form a window of this size.
constexpr int kReaders = 4, kClasses = 8;
constexpr int kWindow = (2 * kTileHeight + kReaders) * (2 * kTileWidth + kReaders);

// The block first computes the gradient of each window pixel for some classes, once, then gathers.
template <typename T>
HYPERSEG_KERNEL(kTileThreads, 2)
gather_window_kernel(const float* grad, Map<const T> logits, Resizing resizing, LabelPixels pixels, T* d_logits) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int h = static_cast<int>(resizing.rows.in), w = static_cast<int>(resizing.columns.in);
  const int height = static_cast<int>(resizing.rows.out), width = static_cast<int>(resizing.columns.out);
  const int across = (w + kTileWidth - 1) / kTileWidth, tiles = (h + kTileHeight - 1) / kTileHeight * across;
  const int parts = (resizing.channels + kClasses - 1) / kClasses, thread = threadIdx.x;
  const int first_class = static_cast<int>(blockIdx.x % parts) * kClasses;
  const int classes = min(kClasses, resizing.channels - first_class);
  const unsigned block = blockIdx.x / parts;
  const int64_t n = block / tiles;
  const int top = block % tiles / across * kTileHeight, left = block % tiles % across * kTileWidth;
  const int window_y = earliest_reader(top, resizing.rows.scale),
            window_x = earliest_reader(left, resizing.columns.scale);
  // One more than readers, because the first may be one before the earliest reader.
  const int last_y = earliest_reader(min(top + kTileHeight, h) - 1, resizing.rows.scale) + 1 + kReaders;
  const int last_x = earliest_reader(min(left + kTileWidth, w) - 1, resizing.columns.scale) + 1 + kReaders;
  const int rows = min(last_y, height) - window_y, columns = min(last_x, width) - window_x;

  float* scratch = reinterpret_cast<float*>(shared_memory());
  float* pulls = scratch + kTileThreads / 32;  // [kClasses, kWindow]
  float counted = 0.0f;
  const T* image = logits.at(n, 0, 0, 0);
  for (int i = thread; i < rows * columns; i += kTileThreads) {
    const ScoreGradient<T> pull(pixels, image, logits, resizing, n, window_y + i / columns, window_x + i % columns);
    if (pull.counts()) counted = 1.0f;
#pragma unroll
    for (int c = 0; c < kClasses; ++c)
      pulls[c * kWindow + i] = pull.counts() && c < classes ? pull.at(first_class + c, logits.stride_c) : 0.0f;
  }
  const bool any = sum_of_block<kTileThreads>(counted, scratch) != 0.0f;

  const int i = top + thread / kTileWidth, j = left + thread % kTileWidth;
  if (i >= h || j >= w) return;
  float sums[kClasses] = {};
  if (any) {
    const int first_y = first_reader(i, resizing.rows.scale, h), first_x = first_reader(j, resizing.columns.scale, w);
    float shares[kReaders];
#pragma unroll
    for (int b = 0; b < kReaders; ++b)
      shares[b] = first_x + b < width ? share_of(j, first_x + b, resizing.columns.scale, w) : 0.0f;
    for (int a = 0; a < kReaders && first_y + a < height; ++a) {
      const float share_y = share_of(i, first_y + a, resizing.rows.scale, h);
      const float* row = pulls + (first_y + a - window_y) * columns + first_x - window_x;
#pragma unroll
      for (int b = 0; b < kReaders; ++b) {
        const float share = share_y * shares[b];
        if (share == 0.0f) continue;  // a weight of 0 excludes NaN, too
#pragma unroll
        for (int c = 0; c < kClasses; ++c) sums[c] += share * row[c * kWindow + b];
      }
    }
  }
  const float factor = *grad;
  T* out = d_logits + ((n * resizing.channels + first_class) * h + i) * w + j;
#pragma unroll
  for (int c = 0; c < kClasses; ++c)
    if (c < classes) out[static_cast<int64_t>(c) * h * w] = from_float<T>(sums[c] * factor);
}

constexpr int kThreads = 256;

// Any sizes: one thread per logit, which recomputes the scores of its readers.
template <typename T>
HYPERSEG_KERNEL(kThreads, 2)
gather_kernel(const float* grad, Map<const T> logits, Resizing resizing, LabelPixels pixels, int readers_h,
              int readers_w, int64_t count, T* d_logits) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (place >= count) return;
  const int h = static_cast<int>(resizing.rows.in), w = static_cast<int>(resizing.columns.in);
  const int height = static_cast<int>(resizing.rows.out), width = static_cast<int>(resizing.columns.out);
  const int64_t row = place / w, plane = row / h, n = plane / resizing.channels;
  const int i = static_cast<int>(row - plane * h), j = static_cast<int>(place - row * w);
  const int c = static_cast<int>(plane - n * resizing.channels);
  const int first_y = first_reader(i, resizing.rows.scale, h), first_x = first_reader(j, resizing.columns.scale, w);
  const T* image = logits.at(n, 0, 0, 0);
  float sum = 0.0f;
  for (int y = first_y; y < min(first_y + readers_h, height); ++y) {
    const float share_y = share_of(i, y, resizing.rows.scale, h);
    if (share_y == 0.0f) continue;
    for (int x = first_x; x < min(first_x + readers_w, width); ++x) {
      const float share = share_y * share_of(j, x, resizing.columns.scale, w);
      if (share == 0.0f) continue;
      const ScoreGradient<T> pull(pixels, image, logits, resizing, n, y, x);
      if (pull.counts()) sum += share * pull.at(c, logits.stride_c);
    }
  }
  d_logits[place] = from_float<T>(sum * *grad);
}

}  // namespace

void upsample_cross_entropy_backward(const LossInputs& inputs, const float* grad, const PixelWeights& weights,
                                     float* log_sums, void* d_logits, Stream stream) {
  const Resizing resizing(inputs.logits, inputs.height, inputs.width);
  const int64_t h = inputs.logits.height, w = inputs.logits.width, staged = resizing.staged_bytes();
  const int64_t readers_h = readers(h, inputs.height), readers_w = readers(w, inputs.width);
  const LabelPixels pixels{inputs.labels, weights, log_sums};
  with_type(inputs.type, [&](auto value) {
    using T = decltype(value);
    const Map<const T> logits = inputs.logits.of<const T>();
    T* const target = static_cast<T*>(d_logits);
    const auto run = [&](auto is_staged) {
      launch<log_sums_kernel<T, is_staged.value>>(kName, grid_of(kName, inputs.images * resizing.tiles()), kTileThreads,
                                                  kScratch + staged, stream, logits, resizing, weights, log_sums);
    };
    staged ? run(std::true_type{}) : run(std::false_type{});
    if (readers_h <= kReaders && readers_w <= kReaders) {
      const int64_t tiles = int64_t{blocks_of(h, kTileHeight)} * blocks_of(w, kTileWidth);
      const Grid grid = grid_of(kName, inputs.images * tiles * blocks_of(resizing.channels, kClasses));
      constexpr size_t kShared = kScratch + kClasses * kWindow * sizeof(float);
      launch<gather_window_kernel<T>>(kName, grid, kTileThreads, kShared, stream, grad, logits, resizing, pixels,
                                      target);
    } else {
      const int64_t count = inputs.images * resizing.channels * h * w;
      launch<gather_kernel<T>>(kName, grid_of(kName, (count + kThreads - 1) / kThreads), kThreads, 0, stream, grad,
                               logits, resizing, pixels, static_cast<int>(readers_h), static_cast<int>(readers_w),
                               count, target);
    }
  });
}

}  // namespace hyperseg::cuda
