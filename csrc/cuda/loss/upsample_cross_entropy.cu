#include "cuda/loss/upsample_cross_entropy.h"

#include "cuda/device/block_reduce.cuh"
#include "cuda/device/launch.cuh"
#include "cuda/loss/softmax.cuh"
#include "cuda/loss/upsampled.cuh"

// A label that is neither a class nor ignore_index makes the loss NaN, and so does a class weight that is no finite
// number of at least 0: an error would need host synchronisation.
namespace hyperseg::cuda {
namespace {

constexpr char kName[] = "upsample_cross_entropy";
constexpr int kWarps = kTileThreads / 32;
constexpr int kScratch = 2 * kWarps * sizeof(float);
constexpr int kTotalThreads = 1024, kEachThreads = 256;

// Either of them is null if it is not wanted.
struct PixelResults {
  float* losses;   // multiplied by the class weights
  float* weights;  // the class weights
};

// Sums over a block's pixels of the losses, multiplied by the class weights, and of the class weights.
struct PlainSums {
  float* sums;  // null if not wanted
  float* totals;
};

HYPERSEG_DEVICE float weight_of(int64_t label, const ClassWeights& of_class, int classes) {
  if (label < 0 || label >= classes) return NAN;
  if (!of_class.data) return 1.0f;
  const float weight = of_class.data[label * of_class.stride];
  return weight >= 0.0f && weight < INFINITY ? weight : NAN;
}

// One thread per pixel.
template <typename T, bool STAGED>
HYPERSEG_KERNEL(kTileThreads, 4)
pixel_losses_kernel(Map<const T> logits, Resizing resizing, TileStaging staging, Labels labels, ClassWeights of_class,
                    int64_t ignore_index, PixelResults results, PlainSums plain) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  float* scratch = reinterpret_cast<float*>(shared_memory());
  const Tile tile = resizing.tile(blockIdx.x);
  const int64_t n = tile.n;
  const Resized<T, STAGED> scores(logits.at(n, 0, 0, 0), logits, resizing, staging, tile,
                                  reinterpret_cast<float*>(shared_memory() + kScratch));
  const int64_t label = labels.at(n, scores.y, scores.x);
  const bool ignored = label == ignore_index;
  const Softmax softmax(scores, resizing.channels, label);
  const float weight = ignored ? 0.0f : weight_of(label, of_class, resizing.channels);
  const float loss = ignored ? -0.0f : weight * (softmax.logarithm + (softmax.maximum - softmax.score));
  const int64_t pixel = (n * resizing.rows.out + scores.y) * resizing.columns.out + scores.x;
  if (scores.inside && results.losses) results.losses[pixel] = loss;
  if (scores.inside && results.weights) results.weights[pixel] = weight;
  if (!plain.sums) return;
  const float sum = sum_of_block<kTileThreads>(scores.inside ? loss : 0.0f, scratch);
  const float total = sum_of_block<kTileThreads>(scores.inside ? weight : 0.0f, scratch + kWarps);
  if (threadIdx.x == 0) plain.sums[blockIdx.x] = sum, plain.totals[blockIdx.x] = total;
}

// One block: the loss from the sums of all blocks, and the factor from class weights to weights of pixels.
HYPERSEG_KERNEL(kTotalThreads, 1)
plain_total_kernel(const float* sums, const float* totals, int64_t blocks, float* loss, float* each) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  double sum = 0.0, total = 0.0;
  for (int64_t i = threadIdx.x; i < blocks; i += kTotalThreads) sum += sums[i], total += totals[i];
  double* scratch = reinterpret_cast<double*>(shared_memory());
  sum = sum_for_first<kTotalThreads>(sum, scratch);
  total = sum_for_first<kTotalThreads>(total, scratch + kTotalThreads);
  if (threadIdx.x != 0) return;
  const double divisor = total == 0.0 ? 1.0 : total;
  *loss = static_cast<float>(sum / divisor);
  *each = 1.0f / static_cast<float>(divisor);
}

HYPERSEG_KERNEL(kEachThreads, 1)
plain_weights_kernel(float* weights, int64_t pixels, const float* each) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kEachThreads + threadIdx.x;
  if (i < pixels) weights[i] *= *each;
}

void launch_losses(const LossInputs& inputs, const ClassWeights& of_class, int64_t ignore_index,
                   const PixelResults& results, const PlainSums& plain, Stream stream) {
  const Resizing resizing(inputs.logits, inputs.height, inputs.width);
  const Grid grid = grid_of(kName, loss_blocks(inputs));
  with_type(inputs.type, [&](auto value) {
    using T = decltype(value);
    const Map<const T> logits = inputs.logits.of<const T>();
    const auto staging = resizing.staging(logits);
    const size_t shared = kScratch + (staging ? resizing.staged_bytes(*staging) : 0);
    const auto run = [&](auto is_staged) {
      launch<pixel_losses_kernel<T, is_staged.value>>(kName, grid, kTileThreads, shared, stream, logits, resizing,
                                                      staging.value_or(TileStaging{}), inputs.labels, of_class,
                                                      ignore_index, results, plain);
    };
    staging ? run(std::true_type{}) : run(std::false_type{});
  });
}

}  // namespace

int64_t loss_blocks(const LossInputs& inputs) {
  return inputs.images * Resizing(inputs.logits, inputs.height, inputs.width).tiles();
}

void plain_cross_entropy(const LossInputs& inputs, const ClassWeights& of_class, int64_t ignore_index, float* sums,
                         float* totals, float* each, float* loss, float* weights, Stream stream) {
  launch_losses(inputs, of_class, ignore_index, {nullptr, weights}, {sums, totals}, stream);
  constexpr size_t kShared = kTotalThreads * 2 * sizeof(double);
  launch<plain_total_kernel>(kName, {1}, kTotalThreads, kShared, stream, sums, totals, loss_blocks(inputs), loss, each);
  const int64_t pixels = inputs.images * inputs.height * inputs.width;
  launch<plain_weights_kernel>(kName, grid_of(kName, (pixels + kEachThreads - 1) / kEachThreads), kEachThreads, 0,
                               stream, weights, pixels, each);
}

void pixel_losses(const LossInputs& inputs, const ClassWeights& of_class, int64_t ignore_index, float* losses,
                  float* weights, Stream stream) {
  launch_losses(inputs, of_class, ignore_index, {losses, of_class.data ? weights : nullptr}, {}, stream);
}

}  // namespace hyperseg::cuda
