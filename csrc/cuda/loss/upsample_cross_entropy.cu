#include "cuda/loss/upsample_cross_entropy.h"

#include "cuda/device/block_reduce.cuh"
#include "cuda/device/launch.cuh"
#include "cuda/loss/softmax.cuh"
#include "cuda/loss/upsampled.cuh"

// A label that is neither a class nor ignore_index makes the loss NaN: an error would need host synchronisation. The
// public function checks the labels before the call.
namespace hyperseg::cuda {
namespace {

constexpr char kName[] = "upsample_cross_entropy";
constexpr int kWarps = kTileThreads / 32;
constexpr int kScratch = 2 * kWarps * sizeof(float);
constexpr int kTotalThreads = 1024, kEachThreads = 256;

// Intermediate results of the plain loss: a sum and a count per block, and for each pixel whether it counts.
struct Plain {
  float* sums;
  int* counts;
  float* counted;
};

// One thread per pixel. Writes either `losses` or the fields of `plain`.
template <typename T, bool STAGED>
HYPERSEG_KERNEL(kTileThreads, 1)
pixel_losses_kernel(Map<const T> logits, Resizing resizing, Plane<int64_t> labels, int64_t ignore_index, float* losses,
                    Plain plain) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  float* scratch = reinterpret_cast<float*>(shared_memory());
  const unsigned tiles = resizing.tiles();
  const int64_t n = blockIdx.x / tiles;
  const Resized<T, STAGED> scores(logits.at(n, 0, 0, 0), logits, resizing, blockIdx.x % tiles,
                                  reinterpret_cast<float*>(shared_memory() + kScratch));
  const int64_t label = labels.at(n, scores.y, scores.x);
  const bool ignored = label == ignore_index;
  const Softmax softmax(scores, resizing.channels, label);
  const float loss = ignored ? -0.0f : softmax.logarithm + (softmax.maximum - softmax.score);
  const int64_t pixel = (n * resizing.rows.out + scores.y) * resizing.columns.out + scores.x;
  if (losses) {
    if (scores.inside) losses[pixel] = loss;
    return;
  }
  if (scores.inside) plain.counted[pixel] = ignored ? 0.0f : 1.0f;
  const float sum = sum_of_block<kTileThreads>(scores.inside ? loss : 0.0f, scratch);
  const float count = sum_of_block<kTileThreads>(scores.inside && !ignored ? 1.0f : 0.0f, scratch + kWarps);
  if (threadIdx.x == 0) plain.sums[blockIdx.x] = sum, plain.counts[blockIdx.x] = static_cast<int>(count);
}

// One block: the loss from all sums and counts, and the weight of each pixel that counts.
HYPERSEG_KERNEL(kTotalThreads, 1)
plain_total_kernel(const float* sums, const int* counts, int64_t blocks, float* loss, float* each) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  double sum = 0.0;
  int64_t count = 0;
  for (int64_t i = threadIdx.x; i < blocks; i += kTotalThreads) sum += sums[i], count += counts[i];
  sum = sum_for_first<kTotalThreads>(sum, reinterpret_cast<double*>(shared_memory()));
  count =
      sum_for_first<kTotalThreads>(count, reinterpret_cast<int64_t*>(shared_memory() + kTotalThreads * sizeof(double)));
  if (threadIdx.x != 0) return;
  const int64_t divisor = count ? count : 1;
  *loss = static_cast<float>(sum / static_cast<double>(divisor));
  *each = 1.0f / static_cast<float>(divisor);
}

HYPERSEG_KERNEL(kEachThreads, 1)
plain_weights_kernel(float* weights, int64_t pixels, const float* each) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kEachThreads + threadIdx.x;
  if (i < pixels) weights[i] *= *each;
}

void launch_losses(const LossInputs& inputs, int64_t ignore_index, float* losses, const Plain& plain, Stream stream) {
  const Resizing resizing(inputs.logits, inputs.height, inputs.width);
  const int64_t staged = resizing.staged_bytes();
  const Grid grid = grid_of(kName, loss_blocks(inputs));
  with_type(inputs.type, [&](auto value) {
    using T = decltype(value);
    const Map<const T> logits = inputs.logits.of<const T>();
    const auto run = [&](auto is_staged) {
      launch<pixel_losses_kernel<T, is_staged.value>>(kName, grid, kTileThreads, kScratch + staged, stream, logits,
                                                      resizing, inputs.labels, ignore_index, losses, plain);
    };
    staged ? run(std::true_type{}) : run(std::false_type{});
  });
}

}  // namespace

int64_t loss_blocks(const LossInputs& inputs) {
  return inputs.images * Resizing(inputs.logits, inputs.height, inputs.width).tiles();
}

void plain_cross_entropy(const LossInputs& inputs, int64_t ignore_index, float* sums, int* counts, float* each,
                         float* loss, float* weights, Stream stream) {
  launch_losses(inputs, ignore_index, nullptr, {sums, counts, weights}, stream);
  constexpr size_t kShared = kTotalThreads * (sizeof(double) + sizeof(int64_t));
  launch<plain_total_kernel>(kName, {1}, kTotalThreads, kShared, stream, sums, counts, loss_blocks(inputs), loss, each);
  const int64_t pixels = inputs.images * inputs.height * inputs.width;
  launch<plain_weights_kernel>(kName, grid_of(kName, (pixels + kEachThreads - 1) / kEachThreads), kEachThreads, 0,
                               stream, weights, pixels, each);
}

void pixel_losses(const LossInputs& inputs, int64_t ignore_index, float* losses, Stream stream) {
  launch_losses(inputs, ignore_index, losses, {}, stream);
}

}  // namespace hyperseg::cuda
