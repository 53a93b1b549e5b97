#include "cuda/training/patch_gemm.h"

#include "cuda/device/launch.cuh"
#include "cuda/device/mma_tile.cuh"
#include "cuda/device/vectors.cuh"
#include "cuda/training/channel_sums.cuh"
#include "cuda/training/patches.cuh"
#include "cuda/training/row_layout.cuh"

// Batched per-patch GEMM. A block computes several tiles of one patch in sequence and stages each result in shared
// memory, from where adjacent threads store, and sum, adjacent values. Operands of 16-bit floats are staged in
// 8-element (16-byte) vectors: channels of a pixel, and contiguous values of the patch's matrix, which stays in shared
// memory for all tiles if it fits.
namespace hyperseg::cuda {
namespace {

constexpr int kPixels = 64;       // per tile
constexpr int kTilesOfBlock = 8;  // maximum per block: they share a row of sums
template <typename T>
constexpr int kOutputs = std::is_same_v<T, float> ? 64 : 80;  // per tile
template <typename T>
constexpr int kInputs = std::is_same_v<T, float> ? mma_tile_detail::kDepth : 80;  // in shared memory at once

HYPERSEG_HOST_DEVICE constexpr bool normalised(Epilogue kind) {
  return kind == Epilogue::kNormalised || kind == Epilogue::kNormalisedPaired;
}
HYPERSEG_HOST_DEVICE constexpr bool moments(Epilogue kind) {
  return kind == Epilogue::kHiddenMoments || kind == Epilogue::kNormalised;
}
HYPERSEG_HOST_DEVICE constexpr bool gated(Epilogue kind) { return kind == Epilogue::kHiddenGated; }
HYPERSEG_HOST_DEVICE constexpr bool hidden(Epilogue kind) {
  return kind == Epilogue::kHidden || kind == Epilogue::kHiddenMoments || kind == Epilogue::kHiddenGated;
}
HYPERSEG_HOST_DEVICE constexpr bool summed(Epilogue kind) {
  return kind != Epilogue::kPlain && kind != Epilogue::kHidden;
}
HYPERSEG_HOST_DEVICE constexpr bool paired(Epilogue kind) {
  return kind == Epilogue::kHiddenGated || kind == Epilogue::kNormalisedPaired || kind == Epilogue::kThroughRelu;
}
template <Epilogue KIND>
using SumsOf = std::conditional_t<moments(KIND), Moments, GradientSums>;

// Gradients are multiplied by the transposed matrix, whose outputs are contiguous in memory.
HYPERSEG_HOST_DEVICE constexpr bool transposed(Epilogue kind) {
  return kind == Epilogue::kHiddenGated || kind == Epilogue::kPlain;
}

// Strides of the input's channels and of the matrix.
struct Strides {
  int channel, output, input;
};

// Offset of each pixel of a tile.
struct PixelOffsets {
  int64_t input[kPixels], other[kPixels], out[kPixels], rest[kPixels];
};

// Shared-memory layout: the matrix, then the input or the result, then the small arrays of both.
template <typename T, Epilogue KIND>
struct GemmSharedLayout {
  static constexpr bool kSimt = std::is_same_v<T, float>;
  static constexpr int M = kPixels, N = kOutputs<T>, K = kInputs<T>;
  using Left = mma_tile_detail::RowMajor<K>;
  using Right = std::conditional_t<transposed(KIND), mma_tile_detail::DepthMajor<N>, mma_tile_detail::RowMajor<K>>;
  // Stride of a tile of floats. Vectorized stores need 16-byte alignment, with the rows of fragments in different
  // banks; scalar stores need rows and columns in different banks.
  static constexpr int kTileStride = hidden(KIND) ? N + 8 : N + 1;

  static constexpr int kNorms = K > N ? K : N;
  static constexpr size_t kRightValues = kSimt ? K * (N + 1) : (transposed(KIND) ? K : N) * Right::kStride;
  static constexpr size_t kLeftBytes = (kSimt ? K * (M + 1) : M * Left::kStride) * sizeof(T);
  static constexpr size_t kTileBytes = M * kTileStride * sizeof(float);
  static constexpr size_t kSumBytes = summed(KIND) ? kGemmThreads * (hidden(KIND) ? 8 : 1) * sizeof(SumsOf<KIND>) : 0;
  static constexpr size_t kMost = kLeftBytes > kTileBytes ? kLeftBytes : kTileBytes;
  static constexpr size_t kLeftAt = (kRightValues * sizeof(T) + 15) / 16 * 16;
  static constexpr size_t kNormAt = kLeftAt + ((kMost > kSumBytes ? kMost : kSumBytes) + 15) / 16 * 16;
  static constexpr size_t kOffsetsAt = kNormAt + 2 * kNorms * sizeof(float);
  static constexpr size_t kBytes = kOffsetsAt + sizeof(PixelOffsets);
};

// Epilogue of one sum.
template <Epilogue KIND, typename Out>
HYPERSEG_DEVICE float finished(float v, float other, float scale, float shift, SumsOf<KIND>& sums) {
  if constexpr (gated(KIND)) v = flat_in_relu6(fmaf(other, scale, shift)) ? 0.0f : v;
  if constexpr (KIND == Epilogue::kThroughRelu) v = v + shift <= 0.0f ? 0.0f : other;
  if constexpr (moments(KIND)) sums.add(to_float(from_float<Out>(v)));
  if constexpr (KIND == Epilogue::kNormalisedPaired) sums.add(other, v);
  if constexpr (gated(KIND) || KIND == Epilogue::kThroughRelu) sums.add(v, other);
  return v;
}

template <typename T, Epilogue KIND>
HYPERSEG_KERNEL(kGemmThreads, gated(KIND) ? 3 : 4)
patch_gemm_kernel(PatchGemm gemm, Strides strides, bool vectorized, float* partial) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  using namespace mma_tile_detail;
  using Out = std::conditional_t<normalised(KIND), float, T>;
  using Sums = SumsOf<KIND>;
  using Shared = GemmSharedLayout<T, KIND>;
  constexpr bool kSimt = Shared::kSimt;
  constexpr int M = Shared::M, N = Shared::N, K = Shared::K, kStride = Shared::kTileStride;
  const int pixels = gemm.pixels.count(), stored = gemm.stored;
  const int outputs = gemm.matrix.outputs, inputs = gemm.matrix.inputs;
  const int thread = threadIdx.x;
  const unsigned across = (stored + N - 1) / N, down = (pixels + kTilesOfBlock * M - 1) / (kTilesOfBlock * M);
  const int first_output = static_cast<int>(blockIdx.x % across) * N;
  const unsigned part = blockIdx.x / across;
  const int first_of_block = static_cast<int>(part % down) * kTilesOfBlock * M;
  const int end_of_block = min(pixels, first_of_block + kTilesOfBlock * M);
  const Patch patch(part / down, gemm.grid);
  const T* weights = matrix_of<T>(gemm.matrix, patch) + int64_t{first_output} * strides.output;
  const T *input = gemm.input.as<const T>(), *other = gemm.other.as<const T>();
  Out *out = gemm.out.as<Out>(), *rest = gemm.rest.as<Out>();
  char* memory = shared_memory();
  T* right = reinterpret_cast<T*>(memory);
  T* left = reinterpret_cast<T*>(memory + Shared::kLeftAt);
  float* tile = reinterpret_cast<float*>(memory + Shared::kLeftAt);
  float *norm_scale = reinterpret_cast<float*>(memory + Shared::kNormAt), *norm_shift = norm_scale + Shared::kNorms;
  PixelOffsets& offsets = *reinterpret_cast<PixelOffsets*>(memory + Shared::kOffsetsAt);

  // The outputs of a block, and how its threads traverse a tile: adjacent channels, eight at a time or one.
  constexpr int kChannels = hidden(KIND) ? 8 : 1;
  const int channels = min(N, stored - first_output), needed = min(channels, outputs - first_output);
  const int groups = channels / kChannels, slots = kGemmThreads / groups;
  const int slot = thread / groups, n = (thread - slot * groups) * kChannels, o = first_output + n;
  const bool by_channel = !hidden(KIND) && gemm.out.stride_c != 1;
  const T* other_channel = other + o * gemm.other.stride_c;
  const bool is_rest = KIND == Epilogue::kPlain && o >= gemm.split;
  const int64_t* out_offsets = is_rest ? offsets.rest : offsets.out;
  Out* out_channel = is_rest ? rest + (o - gemm.split) * gemm.rest.stride_c : out + o * gemm.out.stride_c;
  Sums sums[kChannels];
  const float shift = KIND == Epilogue::kThroughRelu && o < outputs ? gemm.norm.shift[o] : 0.0f;
  if (gated(KIND) && thread < N) {
    norm_scale[thread] = thread < needed ? gemm.norm.scale[first_output + thread] : 0.0f;
    norm_shift[thread] = thread < needed ? gemm.norm.shift[first_output + thread] : 0.0f;
  }

  for (int first_pixel = first_of_block; first_pixel < end_of_block; first_pixel += M) {
    const int count = min(M, end_of_block - first_pixel);
    if (first_pixel > first_of_block) sync_block();
    if (thread < count) {
      const int p = first_pixel + thread, y = gemm.pixels.across.quotient(p);
      const int x = p - y * gemm.pixels.width;
      offsets.input[thread] = offset_of(gemm.input, patch, y, x);
      if (paired(KIND)) offsets.other[thread] = offset_of(gemm.other, patch, y, x);
      offsets.out[thread] = offset_of(gemm.out, patch, y, x);
      if (KIND == Epilogue::kPlain) offsets.rest[thread] = offset_of(gemm.rest, patch, y, x);
    }

    std::conditional_t<kSimt, SimtAccumulators<M, N>,
                       MmaAccumulators<T, M, N, typename Shared::Left, typename Shared::Right>>
        gemm_sums;
    for (int first = 0; first < inputs; first += K) {
      const int steps = min(K, inputs - first);
      const bool new_matrix = inputs > K || first_pixel == first_of_block;
      if (first > 0) sync_block();
      if constexpr (normalised(KIND)) {
        if (new_matrix && thread < K) {
          norm_scale[thread] = thread < steps ? gemm.norm.scale[first + thread] : 0.0f;
          norm_shift[thread] = thread < steps ? gemm.norm.shift[first + thread] : 0.0f;
        }
      }
      sync_block();
      const T* values = input + int64_t{first} * strides.channel;
      const T* matrix = weights + int64_t{first} * strides.input;
      if constexpr (kSimt) {
        const auto read = [&](int m, int k) {
          k -= first;
          const T value = values[offsets.input[min(m, count - 1)] + int64_t{k} * strides.channel];
          return normalised(KIND) ? relu6(fmaf(value, norm_scale[k], norm_shift[k])) : value;
        };
        const auto weight = [&](int column, int k) {
          if (column >= needed) return 0.0f;
          return matrix[int64_t{column} * strides.output + int64_t{k - first} * strides.input];
        };
        fill<T, M, 4>(left, read, first, steps, strides.channel == 1);
        fill<T, N, 4>(right, weight, first, steps, strides.input == 1);
        sync_block();
        gemm_sums.add(left, right, steps);
      } else {
        const int depth = (steps + 15) / 16 * 16;
        const auto line = [&](int m) { return values + offsets.input[m]; };
        const auto finish = [&](uint4 v, int k) {
          if constexpr (normalised(KIND))
            return Normalised8<T>{norm_scale, norm_shift}(v, k);
          else
            return v;
        };
        stage_vectors<kGemmThreads, Shared::Left::kStride, true>(left, count, count, depth / 8, steps, strides.channel,
                                                                 vectorized, line, finish);
        if (new_matrix) {
          const int columns = (channels + 7) / 8 * 8;
          const int between = transposed(KIND) ? strides.input : strides.output;
          const int within = transposed(KIND) ? strides.output : strides.input;
          const int lines = transposed(KIND) ? depth : columns, known = transposed(KIND) ? steps : needed;
          const int of_line = transposed(KIND) ? columns : depth, values_of_line = transposed(KIND) ? needed : steps;
          const auto row = [&](int i) { return matrix + int64_t{i} * between; };
          stage_vectors<kGemmThreads, Shared::Right::kStride, false>(right, lines, known, of_line / 8, values_of_line,
                                                                     within, false, row, Identity{});
        }
        sync_block();
        gemm_sums.add(left, right, steps, count, channels);
      }
    }
    sync_block();
    if constexpr (kSimt)
      gemm_sums.store([&](int row, int column, float sum) { tile[row * kStride + column] = sum; });
    else
      gemm_sums.store_pairs(
          [&](int row, int column, float v, float next) {
            float* to = tile + row * kStride + column;
            if constexpr (kStride % 2 == 0)
              store2(to, float2{v, next});
            else
              to[0] = v, to[1] = next;
          },
          channels);
    sync_block();

    // Adjacent pixels, one channel after the other.
    const auto store_by_channel = [&] {
      const int m = thread % M;
      if (m >= count) return;
      const float* sum = tile + m * kStride;
      int c = thread / M;
      const auto store = [&](Out* to, int64_t stride, int end) {
        constexpr int kStep = kGemmThreads / M;
        for (to += c * stride; c < end; c += kStep, to += kStep * stride) *to = from_float<Out>(sum[c]);
      };
      store(out + offsets.out[m] + first_output * gemm.out.stride_c, gemm.out.stride_c,
            min(channels, gemm.split - first_output));
      if (KIND == Epilogue::kPlain && c < channels)
        store(rest + offsets.rest[m] + (first_output - gemm.split) * gemm.rest.stride_c, gemm.rest.stride_c, channels);
    };
    if (KIND == Epilogue::kPlain && by_channel) {
      store_by_channel();
      continue;
    }
    for (int m = slot; m < count && slot < slots; m += slots) {
      float* sum = tile + m * kStride + n;
      if constexpr (hidden(KIND)) {
        float v[8], z[8] = {}, scales[8] = {}, shifts[8] = {};
        if constexpr (gated(KIND)) {
          load8(other + offsets.other[m] + o, z);
          load8(norm_scale + n, scales);
          load8(norm_shift + n, shifts);
        }
        load8(sum, v);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] = finished<KIND, Out>(v[i], z[i], scales[i], shifts[i], sums[i]);
        store8(out + offsets.out[m] + o, v);
      } else {
        float z = 0.0f;
        if constexpr (paired(KIND)) z = to_float(other_channel[offsets.other[m]]);
        const float v = finished<KIND, Out>(*sum, z, 0.0f, shift, sums[0]);
        if (by_channel)
          *sum = v;
        else
          out_channel[out_offsets[m]] = from_float<Out>(v);
      }
    }
    if (KIND != Epilogue::kPlain && by_channel) {
      sync_block();
      store_by_channel();
    }
  }
  if constexpr (summed(KIND)) {
    sync_block();
    Sums* shared = reinterpret_cast<Sums*>(memory + Shared::kLeftAt);  // in the memory of input and tile
#pragma unroll
    for (int i = 0; i < kChannels; ++i)
      if (slot < slots) shared[slot * channels + n + i] = sums[i];
    store_row(shared, slots, channels, needed, partial + int64_t{2} * part * stored, first_output, stored);
  }
}

template <Epilogue KIND>
void launch_gemm(const PatchGemm& gemm, float* partial, Type type, const char* op, Stream stream) {
  const int64_t blocks =
      gemm.grid.patches() * ((gemm.pixels.count() + kTilesOfBlock * kPixels - 1) / (kTilesOfBlock * kPixels));
  const Strides strides{stride_of(op, gemm.input.stride_c), stride_of(op, gemm.matrix.stride_output),
                        stride_of(op, gemm.matrix.stride_input)};
  const bool vectorized = is_vectorized(gemm.input, gemm.matrix.inputs);
  with_type(type, [&](auto value) {
    using T = decltype(value);
    constexpr int N = kOutputs<T>;
    launch<patch_gemm_kernel<T, KIND>>(op, grid_of(op, blocks * ((gemm.stored + N - 1) / N)), kGemmThreads,
                                       GemmSharedLayout<T, KIND>::kBytes, stream, gemm, strides, vectorized, partial);
  });
}

}  // namespace

PartialRows rows_of(const PatchGemm& gemm) {
  return PartialRows(gemm.grid.patches(), gemm.pixels.count(), kTilesOfBlock * kPixels);
}

void patch_gemm(const PatchGemm& gemm, Epilogue kind, float* partial, Type type, const char* op, Stream stream) {
  switch (kind) {
    case Epilogue::kPlain:
      return launch_gemm<Epilogue::kPlain>(gemm, partial, type, op, stream);
    case Epilogue::kHidden:
      return launch_gemm<Epilogue::kHidden>(gemm, partial, type, op, stream);
    case Epilogue::kHiddenMoments:
      return launch_gemm<Epilogue::kHiddenMoments>(gemm, partial, type, op, stream);
    case Epilogue::kNormalised:
      return launch_gemm<Epilogue::kNormalised>(gemm, partial, type, op, stream);
    case Epilogue::kNormalisedPaired:
      return launch_gemm<Epilogue::kNormalisedPaired>(gemm, partial, type, op, stream);
    case Epilogue::kHiddenGated:
      return launch_gemm<Epilogue::kHiddenGated>(gemm, partial, type, op, stream);
    case Epilogue::kThroughRelu:
      return launch_gemm<Epilogue::kThroughRelu>(gemm, partial, type, op, stream);
  }
}

}  // namespace hyperseg::cuda
