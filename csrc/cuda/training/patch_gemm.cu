#include "cuda/training/patch_gemm.h"

#include "cuda/device/launch.cuh"
#include "cuda/device/mma_tile.cuh"
#include "cuda/device/vectors.cuh"
#include "cuda/training/channel_sums.cuh"
#include "cuda/training/patches.cuh"
#include "cuda/training/row_layout.cuh"

// A block computes several tiles of the product of one patch, one after the other, and lays each into shared memory,
// from where threads side by side store, and sum, what lies side by side. Operands in half types are laid by eights:
// the channels of a pixel, and what lies side by side in a patch's matrix, which stays for all tiles if it fits.
namespace hyperseg::cuda {
namespace {

constexpr int kPixels = 64;       // of a tile
constexpr int kTilesOfBlock = 8;  // at most: they share a row of sums
template <typename T>
constexpr int kOutputs = std::is_same_v<T, float> ? 64 : 80;  // of a tile
template <typename T>
constexpr int kInputs = std::is_same_v<T, float> ? tile_product_detail::kDepth : 80;  // in shared memory at once

HYPERSEG_ANYWHERE constexpr bool normalised(Product kind) {
  return kind == Product::kNormalised || kind == Product::kNormalisedPaired;
}
HYPERSEG_ANYWHERE constexpr bool moments(Product kind) {
  return kind == Product::kHiddenMoments || kind == Product::kNormalised;
}
HYPERSEG_ANYWHERE constexpr bool gated(Product kind) { return kind == Product::kHiddenGated; }
HYPERSEG_ANYWHERE constexpr bool hidden(Product kind) {
  return kind == Product::kHidden || kind == Product::kHiddenMoments || kind == Product::kHiddenGated;
}
HYPERSEG_ANYWHERE constexpr bool summed(Product kind) { return kind != Product::kPlain && kind != Product::kHidden; }
HYPERSEG_ANYWHERE constexpr bool paired(Product kind) {
  return kind == Product::kHiddenGated || kind == Product::kNormalisedPaired || kind == Product::kThroughRelu;
}
template <Product KIND>
using SumsOf = std::conditional_t<moments(KIND), Moments, GradientSums>;

// Gradients go back through the transposed matrix: what lies side by side in memory are its outputs.
HYPERSEG_ANYWHERE constexpr bool transposed(Product kind) {
  return kind == Product::kHiddenGated || kind == Product::kPlain;
}

// Of the input's channels, of the matrix.
struct Strides {
  int channel, output, input;
};

// Where each pixel of a tile lies.
struct PixelOffsets {
  int64_t input[kPixels], other[kPixels], out[kPixels], behind[kPixels];
};

// Shared memory: the matrix, the input or what was made of it, and what little belongs to both.
template <typename T, Product KIND>
struct Room {
  static constexpr bool kExact = std::is_same_v<T, float>;
  static constexpr int M = kPixels, N = kOutputs<T>, K = kInputs<T>;
  using Left = tile_product_detail::Rows<K>;
  using Right = std::conditional_t<transposed(KIND), tile_product_detail::Depths<N>, tile_product_detail::Rows<K>>;
  // Of floats of the tile: by eights they are on 16 bytes and fragments' rows in banks of their own; one by one neither
  // rows nor columns meet in a bank.
  static constexpr int kTileStride = hidden(KIND) ? N + 8 : N + 1;

  static constexpr int kNorms = K > N ? K : N;
  static constexpr size_t kRightValues = kExact ? K * (N + 1) : (transposed(KIND) ? K : N) * Right::kStride;
  static constexpr size_t kLeftBytes = (kExact ? K * (M + 1) : M * Left::kStride) * sizeof(T);
  static constexpr size_t kTileBytes = M * kTileStride * sizeof(float);
  static constexpr size_t kSumBytes =
      summed(KIND) ? kProductThreads * (hidden(KIND) ? 8 : 1) * sizeof(SumsOf<KIND>) : 0;
  static constexpr size_t kMost = kLeftBytes > kTileBytes ? kLeftBytes : kTileBytes;
  static constexpr size_t kLeftAt = (kRightValues * sizeof(T) + 15) / 16 * 16;
  static constexpr size_t kNormAt = kLeftAt + ((kMost > kSumBytes ? kMost : kSumBytes) + 15) / 16 * 16;
  static constexpr size_t kOffsetsAt = kNormAt + 2 * kNorms * sizeof(float);
  static constexpr size_t kBytes = kOffsetsAt + sizeof(PixelOffsets);
};

// What becomes of one sum.
template <Product KIND, typename Out>
HYPERSEG_DEVICE float finished(float v, float other, float scale, float shift, SumsOf<KIND>& sums) {
  if constexpr (gated(KIND)) v = flat_in_relu6(fmaf(other, scale, shift)) ? 0.0f : v;
  if constexpr (KIND == Product::kThroughRelu) v = v + shift <= 0.0f ? 0.0f : other;
  if constexpr (moments(KIND)) sums.add(to_float(from_float<Out>(v)));
  if constexpr (KIND == Product::kNormalisedPaired) sums.add(other, v);
  if constexpr (gated(KIND) || KIND == Product::kThroughRelu) sums.add(v, other);
  return v;
}

template <typename T, Product KIND>
HYPERSEG_KERNEL(kProductThreads, 4)
patch_product_kernel(PatchProduct product, Strides strides, bool eights, float* partial) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  using namespace tile_product_detail;
  using Out = std::conditional_t<normalised(KIND), float, T>;
  using Sums = SumsOf<KIND>;
  using Shared = Room<T, KIND>;
  constexpr bool kExact = Shared::kExact;
  constexpr int M = Shared::M, N = Shared::N, K = Shared::K, kStride = Shared::kTileStride;
  const int pixels = product.pixels.count(), stored = product.stored;
  const int outputs = product.matrix.outputs, inputs = product.matrix.inputs;
  const int thread = threadIdx.x;
  const unsigned across = (stored + N - 1) / N, down = (pixels + kTilesOfBlock * M - 1) / (kTilesOfBlock * M);
  const int first_output = static_cast<int>(blockIdx.x % across) * N;
  const unsigned part = blockIdx.x / across;
  const int first_of_block = static_cast<int>(part % down) * kTilesOfBlock * M;
  const int end_of_block = min(pixels, first_of_block + kTilesOfBlock * M);
  const Patch patch(part / down, product.grid);
  const T* weights = matrix_of<T>(product.matrix, patch) + int64_t{first_output} * strides.output;
  const T *input = product.input.as<const T>(), *other = product.other.as<const T>();
  Out *out = product.out.as<Out>(), *behind = product.behind.as<Out>();
  char* memory = shared_memory();
  T* right = reinterpret_cast<T*>(memory);
  T* left = reinterpret_cast<T*>(memory + Shared::kLeftAt);
  float* tile = reinterpret_cast<float*>(memory + Shared::kLeftAt);
  float *norm_scale = reinterpret_cast<float*>(memory + Shared::kNormAt), *norm_shift = norm_scale + Shared::kNorms;
  PixelOffsets& offsets = *reinterpret_cast<PixelOffsets*>(memory + Shared::kOffsetsAt);

  // This block's outputs, and how its threads go over a tile: channels side by side, eight at a time or one.
  constexpr int kChannels = hidden(KIND) ? 8 : 1;
  const int channels = min(N, stored - first_output), wanted = min(channels, outputs - first_output);
  const int groups = channels / kChannels, slots = kProductThreads / groups;
  const int slot = thread / groups, n = (thread - slot * groups) * kChannels, o = first_output + n;
  const bool by_channel = !hidden(KIND) && product.out.stride_c != 1;
  const T* other_channel = other + o * product.other.stride_c;
  const bool is_behind = KIND == Product::kPlain && o >= product.split;
  const int64_t* out_offsets = is_behind ? offsets.behind : offsets.out;
  Out* out_channel =
      is_behind ? behind + (o - product.split) * product.behind.stride_c : out + o * product.out.stride_c;
  Sums sums[kChannels];
  const float shift = KIND == Product::kThroughRelu && o < outputs ? product.norm.shift[o] : 0.0f;
  if (gated(KIND) && thread < N) {
    norm_scale[thread] = thread < wanted ? product.norm.scale[first_output + thread] : 0.0f;
    norm_shift[thread] = thread < wanted ? product.norm.shift[first_output + thread] : 0.0f;
  }

  for (int first_pixel = first_of_block; first_pixel < end_of_block; first_pixel += M) {
    const int count = min(M, end_of_block - first_pixel);
    if (first_pixel > first_of_block) sync_block();
    if (thread < count) {
      const int p = first_pixel + thread, y = product.pixels.across.quotient(p);
      const int x = p - y * product.pixels.width;
      offsets.input[thread] = offset_of(product.input, patch, y, x);
      if (paired(KIND)) offsets.other[thread] = offset_of(product.other, patch, y, x);
      offsets.out[thread] = offset_of(product.out, patch, y, x);
      if (KIND == Product::kPlain) offsets.behind[thread] = offset_of(product.behind, patch, y, x);
    }

    std::conditional_t<kExact, Exact<M, N>, Fragments<T, M, N, typename Shared::Left, typename Shared::Right>>
        product_sums;
    for (int first = 0; first < inputs; first += K) {
      const int steps = min(K, inputs - first);
      const bool new_matrix = inputs > K || first_pixel == first_of_block;
      if (first > 0) sync_block();
      if constexpr (normalised(KIND)) {
        if (new_matrix && thread < K) {
          norm_scale[thread] = thread < steps ? product.norm.scale[first + thread] : 0.0f;
          norm_shift[thread] = thread < steps ? product.norm.shift[first + thread] : 0.0f;
        }
      }
      sync_block();
      const T* values = input + int64_t{first} * strides.channel;
      const T* matrix = weights + int64_t{first} * strides.input;
      if constexpr (kExact) {
        const auto read = [&](int m, int k) {
          k -= first;
          const T value = values[offsets.input[min(m, count - 1)] + int64_t{k} * strides.channel];
          return normalised(KIND) ? relu6(fmaf(value, norm_scale[k], norm_shift[k])) : value;
        };
        const auto weight = [&](int column, int k) {
          if (column >= wanted) return 0.0f;
          return matrix[int64_t{column} * strides.output + int64_t{k - first} * strides.input];
        };
        fill<T, M, 4>(left, read, first, steps, strides.channel == 1);
        fill<T, N, 4>(right, weight, first, steps, strides.input == 1);
        sync_block();
        product_sums.add(left, right, steps);
      } else {
        const int depth = (steps + 15) / 16 * 16;
        const auto line = [&](int m) { return values + offsets.input[m]; };
        const auto finish = [&](uint4 v, int k) {
          if constexpr (normalised(KIND))
            return Normalised8<T>{norm_scale, norm_shift}(v, k);
          else
            return v;
        };
        lay_eights<kProductThreads, Shared::Left::kStride, true>(left, count, count, depth / 8, steps, strides.channel,
                                                                 eights, line, finish);
        if (new_matrix) {
          const int columns = (channels + 7) / 8 * 8;
          const int between = transposed(KIND) ? strides.input : strides.output;
          const int within = transposed(KIND) ? strides.output : strides.input;
          const int lines = transposed(KIND) ? depth : columns, known = transposed(KIND) ? steps : wanted;
          const int of_line = transposed(KIND) ? columns : depth, values_of_line = transposed(KIND) ? wanted : steps;
          const auto row = [&](int i) { return matrix + int64_t{i} * between; };
          lay_eights<kProductThreads, Shared::Right::kStride, false>(right, lines, known, of_line / 8, values_of_line,
                                                                     within, false, row, AsItIs{});
        }
        sync_block();
        product_sums.add(left, right, steps, count, channels);
      }
    }
    sync_block();
    if constexpr (kExact)
      product_sums.store([&](int row, int column, float sum) { tile[row * kStride + column] = sum; });
    else
      product_sums.store_pairs(
          [&](int row, int column, float v, float next) {
            float* to = tile + row * kStride + column;
            if constexpr (kStride % 2 == 0)
              store2(to, float2{v, next});
            else
              to[0] = v, to[1] = next;
          },
          channels);
    sync_block();

    // Pixels side by side, a channel after the other.
    const auto store_by_channel = [&] {
      const int m = thread % M;
      if (m >= count) return;
      const float* sum = tile + m * kStride;
      int c = thread / M;
      const auto store = [&](Out* to, int64_t stride, int end) {
        constexpr int kStep = kProductThreads / M;
        for (to += c * stride; c < end; c += kStep, to += kStep * stride) *to = from_float<Out>(sum[c]);
      };
      store(out + offsets.out[m] + first_output * product.out.stride_c, product.out.stride_c,
            min(channels, product.split - first_output));
      if (KIND == Product::kPlain && c < channels)
        store(behind + offsets.behind[m] + (first_output - product.split) * product.behind.stride_c,
              product.behind.stride_c, channels);
    };
    if (KIND == Product::kPlain && by_channel) {
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
    if (KIND != Product::kPlain && by_channel) {
      sync_block();
      store_by_channel();
    }
  }
  if constexpr (summed(KIND)) {
    sync_block();
    Sums* shared = reinterpret_cast<Sums*>(memory + Shared::kLeftAt);  // where input and tile were
#pragma unroll
    for (int i = 0; i < kChannels; ++i)
      if (slot < slots) shared[slot * channels + n + i] = sums[i];
    store_row(shared, slots, channels, wanted, partial + int64_t{2} * part * stored, first_output, stored);
  }
}

template <Product KIND>
void launch_product(const PatchProduct& product, float* partial, Type type, const char* op, Stream stream) {
  const int64_t blocks =
      product.grid.patches() * ((product.pixels.count() + kTilesOfBlock * kPixels - 1) / (kTilesOfBlock * kPixels));
  const Strides strides{stride_of(op, product.input.stride_c), stride_of(op, product.matrix.stride_output),
                        stride_of(op, product.matrix.stride_input)};
  const bool eights = by_eights(product.input, product.matrix.inputs);
  with_type(type, [&](auto value) {
    using T = decltype(value);
    constexpr int N = kOutputs<T>;
    launch<patch_product_kernel<T, KIND>>(op, grid_of(op, blocks * ((product.stored + N - 1) / N)), kProductThreads,
                                          Room<T, KIND>::kBytes, stream, product, strides, eights, partial);
  });
}

}  // namespace

PartialRows rows_of(const PatchProduct& product) {
  return PartialRows(product.grid.patches(), product.pixels.count(), kTilesOfBlock * kPixels);
}

void patch_product(const PatchProduct& product, Product kind, float* partial, Type type, const char* op,
                   Stream stream) {
  switch (kind) {
    case Product::kPlain:
      return launch_product<Product::kPlain>(product, partial, type, op, stream);
    case Product::kHidden:
      return launch_product<Product::kHidden>(product, partial, type, op, stream);
    case Product::kHiddenMoments:
      return launch_product<Product::kHiddenMoments>(product, partial, type, op, stream);
    case Product::kNormalised:
      return launch_product<Product::kNormalised>(product, partial, type, op, stream);
    case Product::kNormalisedPaired:
      return launch_product<Product::kNormalisedPaired>(product, partial, type, op, stream);
    case Product::kHiddenGated:
      return launch_product<Product::kHiddenGated>(product, partial, type, op, stream);
    case Product::kThroughRelu:
      return launch_product<Product::kThroughRelu>(product, partial, type, op, stream);
  }
}

}  // namespace hyperseg::cuda
