#include "cuda/device/bilinear_adjoint.cuh"
#include "cuda/device/block_reduce.cuh"
#include "cuda/device/elementwise.cuh"
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
HYPERSEG_KERNEL(kTileThreads, 4)
log_sums_kernel(Map<const T> logits, Resizing resizing, TileStaging staging, PixelWeights weights, float* log_sums) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const Tile tile = resizing.tile(blockIdx.x);
  const int64_t n = tile.n, y = tile.top + threadIdx.x / kTileWidth, x = tile.left + threadIdx.x % kTileWidth;
  const bool counts = y < resizing.rows.out && x < resizing.columns.out && weights.at(n, y, x) != 0.0f;
  // In a bootstrapped loss few pixels count, so most blocks end here.
  if (sum_of_block<kTileThreads>(counts ? 1.0f : 0.0f, reinterpret_cast<float*>(shared_memory())) == 0.0f) return;
  const Resized<T, STAGED> scores(logits.at(n, 0, 0, 0), logits, resizing, staging, tile,
                                  reinterpret_cast<float*>(shared_memory() + kScratch));
  const Softmax softmax(scores, resizing.channels, -1);
  if (counts) log_sums[(n * resizing.rows.out + y) * resizing.columns.out + x] = softmax.maximum + softmax.logarithm;
}

struct LabelPixels {
  Labels labels;
  PixelWeights weights;
  const float* log_sums;
};

// A pixel of the label map: its gradient with respect to the score of each class. BY_PIXEL: channels are contiguous.
template <typename T, bool BY_PIXEL = false>
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
    const int64_t right = (column.high - column.low) * logits.stride_w;
    at_[0] = image + row.low * logits.stride_h + column.low * logits.stride_w, at_[1] = at_[0] + right;
    at_[2] = at_[0] + (row.high - row.low) * logits.stride_h, at_[3] = at_[2] + right;
    row_weight_ = row.weight, column_weight_ = column.weight;
  }

  HYPERSEG_DEVICE bool counts() const { return weight_ != 0.0f; }
  HYPERSEG_DEVICE float at(int c, int64_t stride_c) const {
    const auto value = [&](int corner) { return to_float(at_[corner][BY_PIXEL ? c : c * stride_c]); };
    float score = value(0);
    if (!copy_) {
      const float upper = score * (1.0f - column_weight_) + value(1) * column_weight_;
      const float lower = value(2) * (1.0f - column_weight_) + value(3) * column_weight_;
      score = upper * (1.0f - row_weight_) + lower * row_weight_;
    }
    return weight_ * (expf(score - log_sum_) - (c == label_ ? 1.0f : 0.0f));
  }

 private:
  bool copy_;
  float weight_, log_sum_ = 0.0f, row_weight_ = 0.0f, column_weight_ = 0.0f;
  int label_ = 0;
  const T* at_[4] = {};  // the upper left, upper right, lower left and lower right pixel
};

// A tile of logits, each sampled by at most kReaders x kReaders pixels; these pixels form a window of this size.
constexpr int kReaders = 4, kClasses = 8;
constexpr int kWindowWidth = 2 * kTileWidth + kReaders, kWindow = (2 * kTileHeight + kReaders) * kWindowWidth;

// The block first computes the gradient of each window pixel for some classes, once, then gathers.
template <typename T, bool BY_PIXEL>
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
  for (int i = thread; i < rows * kWindowWidth; i += kTileThreads) {
    const int dy = i / kWindowWidth, dx = i % kWindowWidth;
    if (dx >= columns) continue;
    const ScoreGradient<T, BY_PIXEL> pull(pixels, image, logits, resizing, n, window_y + dy, window_x + dx);
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
      const float* row = pulls + (first_y + a - window_y) * kWindowWidth + first_x - window_x;
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

// Any sizes: one thread per logit, which recomputes the scores of its readers.
template <typename T>
HYPERSEG_KERNEL(kValueThreads, 2)
gather_kernel(EachValue each, const float* grad, Map<const T> logits, Resizing resizing, LabelPixels pixels,
              int readers_h, int readers_w, Map<T> d_logits) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const auto [n, c, i, j, exists] = each.place();
  if (!exists) return;
  const int h = static_cast<int>(resizing.rows.in), w = static_cast<int>(resizing.columns.in);
  const int height = static_cast<int>(resizing.rows.out), width = static_cast<int>(resizing.columns.out);
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
  *d_logits.at(n, c, i, j) = from_float<T>(sum * *grad);
}

}  // namespace

void upsample_cross_entropy_backward(const LossInputs& inputs, const float* grad, const PixelWeights& weights,
                                     float* log_sums, void* d_logits, Stream stream) {
  const Resizing resizing(inputs.logits, inputs.height, inputs.width);
  const int64_t h = inputs.logits.height, w = inputs.logits.width;
  const int64_t readers_h = readers(h, inputs.height), readers_w = readers(w, inputs.width);
  const LabelPixels pixels{inputs.labels, weights, log_sums};
  with_type(inputs.type, [&](auto value) {
    using T = decltype(value);
    const Map<const T> logits = inputs.logits.of<const T>();
    T* const target = static_cast<T*>(d_logits);
    const auto staging = resizing.staging(logits);
    const size_t shared = kScratch + (staging ? resizing.staged_bytes(*staging) : 0);
    const auto run = [&](auto is_staged) {
      launch<log_sums_kernel<T, is_staged.value>>(kName, grid_of(kName, inputs.images * resizing.tiles()), kTileThreads,
                                                  shared, stream, logits, resizing, staging.value_or(TileStaging{}),
                                                  weights, log_sums);
    };
    staging ? run(std::true_type{}) : run(std::false_type{});
    if (readers_h <= kReaders && readers_w <= kReaders) {
      const int64_t tiles = int64_t{blocks_of(h, kTileHeight)} * blocks_of(w, kTileWidth);
      const Grid grid = grid_of(kName, inputs.images * tiles * blocks_of(resizing.channels, kClasses));
      constexpr size_t kShared = kScratch + kClasses * kWindow * sizeof(float);
      const auto gather = [&](auto by_pixel) {
        launch<gather_window_kernel<T, by_pixel.value>>(kName, grid, kTileThreads, kShared, stream, grad, logits,
                                                        resizing, pixels, target);
      };
      logits.stride_c == 1 ? gather(std::true_type{}) : gather(std::false_type{});
    } else {
      const int64_t classes = resizing.channels;
      const Map<T> gradient{target, classes, h, w, classes * h * w, h * w, w, 1};
      const EachValue each(kName, inputs.images, gradient);
      launch<gather_kernel<T>>(kName, each.grid(), kValueThreads, 0, stream, each, grad, logits, resizing, pixels,
                               static_cast<int>(readers_h), static_cast<int>(readers_w), gradient);
    }
  });
}

}  // namespace hyperseg::cuda
