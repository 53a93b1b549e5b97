#include "cuda/loss/radix_select.h"

#include <utility>

#include "cuda/device/block_reduce.cuh"
#include "cuda/device/launch.cuh"

// Radix select of the k-th largest loss of each image: each pass histograms 4 bits of the float's bit pattern over the
// losses that match the prefix found so far. Integer counts, no atomics, no host synchronisation.
namespace hyperseg::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kTotalThreads = 1024;
constexpr int kDigitBits = 4, kDigits = 1 << kDigitBits, kPasses = 32 / kDigitBits;
constexpr int kCounters = kDigits + 1;   // a histogram, and the number of losses above the threshold
constexpr int kLosses = 4096;            // minimum pixels per block
constexpr int64_t kMaxBlocks = 64;       // maximum blocks per image
constexpr uint32_t kIgnored = 1u << 31;  // the bits of -0

// State of an image's selection before a pass.
struct SelectState {
  uint32_t bits;  // leading bits of the cut-off found so far
  int many;       // more losses than `count` are above the threshold, which is then the cut-off
  int64_t rank;   // rank of the cut-off among the losses that match the prefix, from 1
  int64_t above;  // number of losses above the threshold
  int64_t ties;   // number of losses that match the prefix
};

struct RankingArgs {
  int64_t pixels, count;
  float threshold;
  int blocks;  // blocks per image
};

// Compute the cut-off after a pass from its counts [blocks, kCounters] of this image. For all threads of the block.
HYPERSEG_DEVICE SelectState narrowed(SelectState cut, int pass, const uint32_t* counts, const RankingArgs& problem,
                                     int64_t* scratch) {
  if (cut.many) return cut;
  const int counter = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (counter < kCounters) {
    int64_t sum = 0;
    for (int b = warp; b < problem.blocks; b += kWarps) sum += counts[b * kCounters + counter];
    scratch[warp * kCounters + counter] = sum;
  }
  sync_block();
  int64_t* totals = scratch + kWarps * kCounters;
  if (threadIdx.x < kCounters) {
    int64_t sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += scratch[w * kCounters + threadIdx.x];
    totals[threadIdx.x] = sum;
  }
  sync_block();
  if (pass == 0 && totals[kDigits] > problem.count) {
    cut.many = 1, cut.above = totals[kDigits];
    return cut;
  }
  int digit = kDigits - 1;
  for (; digit > 0 && totals[digit] < cut.rank; --digit) cut.rank -= totals[digit], cut.above += totals[digit];
  cut.ties = totals[digit];
  cut.bits |= static_cast<uint32_t>(digit) << (32 - kDigitBits * (pass + 1));
  return cut;
}

constexpr size_t kNarrowing = (kWarps + 1) * kCounters * sizeof(int64_t);

// counts [images, blocks, kCounters] of this pass; `cuts` [kPasses, images]: the state before each pass.
HYPERSEG_KERNEL(kThreads, 1)
radix_histogram_kernel(const float* losses, RankingArgs problem, int pass, int64_t images, const uint32_t* counted,
                       uint32_t* counts, SelectState* cuts) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t n = blockIdx.x / problem.blocks;
  const int block = blockIdx.x % problem.blocks, thread = threadIdx.x;
  SelectState cut{0, 0, problem.count, 0, 0};
  if (pass > 0)
    cut = narrowed(cuts[(pass - 1) * images + n], pass - 1, counted + n * problem.blocks * kCounters, problem,
                   reinterpret_cast<int64_t*>(shared_memory()));
  if (block == 0 && thread == 0) cuts[pass * images + n] = cut;
  if (cut.many) return;
  sync_block();
  // One column of counters per thread, each in its own bank.
  uint32_t* own = reinterpret_cast<uint32_t*>(shared_memory()) + thread;
  for (int i = 0; i < kCounters; ++i) own[i * kThreads] = 0;
  const int shift = 32 - kDigitBits * (pass + 1);
  for (int64_t i = static_cast<int64_t>(block) * kThreads + thread; i < problem.pixels;
       i += problem.blocks * kThreads) {
    const float loss = losses[n * problem.pixels + i];
    const uint32_t bits = as_bits(loss) & ~kIgnored;  // a key that orders losses, NaN last
    if (pass == 0) {
      own[(bits >> shift) * kThreads] += 1;
      if (loss > problem.threshold) own[kDigits * kThreads] += 1;
    } else if ((bits ^ cut.bits) >> (shift + kDigitBits) == 0) {
      own[(bits >> shift) % kDigits * kThreads] += 1;
    }
  }
  sync_block();
  // A warp sums one counter after the other.
  for (int counter = thread / 32; counter < kCounters; counter += kWarps) {
    const uint32_t* column = reinterpret_cast<uint32_t*>(shared_memory()) + counter * kThreads;
    uint32_t sum = 0;
    for (int i = thread % 32; i < kThreads; i += 32) sum += column[i];
    for (int mask = 16; mask; mask /= 2) sum += shuffle_xor(sum, mask);
    if (thread % 32 == 0) counts[static_cast<int64_t>(blockIdx.x) * kCounters + counter] = sum;
  }
}

// Write weights [images, pixels], or multiply those there if `scaled`, and each block's sum of weighted losses.
HYPERSEG_KERNEL(kThreads, 1)
bootstrap_weights_kernel(const float* losses, RankingArgs problem, int64_t images, const uint32_t* counted,
                         const SelectState* cuts, bool scaled, float* weights, float* sums) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t n = blockIdx.x / problem.blocks;
  const int block = blockIdx.x % problem.blocks, thread = threadIdx.x;
  const SelectState cut =
      narrowed(cuts[(kPasses - 1) * images + n], kPasses - 1, counted + n * problem.blocks * kCounters, problem,
               reinterpret_cast<int64_t*>(shared_memory()));
  const float value = cut.many ? problem.threshold : as_float(cut.bits);
  const float all = static_cast<float>(problem.count), share = 1.0f / static_cast<float>(images);
  const float above = (cut.many ? 1.0f / static_cast<float>(cut.above) : 1.0f / all) * share;
  // Tied losses share the remaining weight.
  const float at =
      cut.many ? 0.0f : static_cast<float>(problem.count - cut.above) / (all * static_cast<float>(cut.ties)) * share;
  float sum = 0.0f;
  for (int64_t i = static_cast<int64_t>(block) * kThreads + thread; i < problem.pixels;
       i += problem.blocks * kThreads) {
    const float loss = losses[n * problem.pixels + i];
    const bool ignored = as_bits(loss) == kIgnored, number = loss == loss;
    const float share = ignored ? 0.0f : loss > value ? above : loss == value ? at : number ? 0.0f : loss;
    float* const weight = weights + n * problem.pixels + i;
    *weight = scaled ? *weight * share : share;
    sum += loss * share;
  }
  float* scratch = reinterpret_cast<float*>(shared_memory() + kNarrowing);
  sum = sum_of_block<kThreads>(sum, scratch);
  if (thread == 0) sums[blockIdx.x] = sum;
}

HYPERSEG_KERNEL(kTotalThreads, 1)
total_kernel(const float* sums, int64_t count, float* total) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += kTotalThreads) sum += sums[i];
  sum = sum_for_first<kTotalThreads>(sum, reinterpret_cast<double*>(shared_memory()));
  if (threadIdx.x == 0) *total = static_cast<float>(sum);
}

int64_t blocks_per_image(const BootstrapSpec& bootstrap) {
  const int64_t blocks = (bootstrap.pixels + kLosses - 1) / kLosses;
  return blocks < kMaxBlocks ? blocks : kMaxBlocks;
}

}  // namespace

// Workspace: cut-offs, then two sets of counts between which the passes alternate, then sums.
int64_t BootstrapSpec::workspace() const {
  const int64_t blocks = images * blocks_per_image(*this);
  return kPasses * images * sizeof(SelectState) + blocks * (2 * kCounters * sizeof(uint32_t) + sizeof(float));
}

void bootstrapped(const char* op, const BootstrapSpec& bootstrap, const float* losses, bool scaled, void* workspace,
                  float* weights, float* loss, Stream stream) {
  const int64_t images = bootstrap.images;
  const RankingArgs problem{bootstrap.pixels, bootstrap.count, bootstrap.threshold,
                            static_cast<int>(blocks_per_image(bootstrap))};
  const int64_t blocks = images * problem.blocks;
  SelectState* const cuts = static_cast<SelectState*>(workspace);
  uint32_t* counts = reinterpret_cast<uint32_t*>(cuts + kPasses * images);
  uint32_t* counted = counts + blocks * kCounters;
  float* const sums = reinterpret_cast<float*>(counted + blocks * kCounters);
  const Grid grid = grid_of(op, blocks);
  constexpr size_t kCounting = kCounters * kThreads * sizeof(uint32_t);
  static_assert(kCounting >= kNarrowing);
  for (int pass = 0; pass < kPasses; ++pass) {
    launch<radix_histogram_kernel>(op, grid, kThreads, kCounting, stream, losses, problem, pass, images, counted,
                                   counts, cuts);
    std::swap(counts, counted);
  }
  launch<bootstrap_weights_kernel>(op, grid, kThreads, kNarrowing + kWarps * sizeof(float), stream, losses, problem,
                                   images, counted, cuts, scaled, weights, sums);
  launch<total_kernel>(op, {1}, kTotalThreads, kTotalThreads * sizeof(double), stream, sums, blocks, loss);
}

}  // namespace hyperseg::cuda
