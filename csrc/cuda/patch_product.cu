#include "patch_product.h"

#include "channel_sums.cuh"
#include "launch.cuh"
#include "patches.cuh"
#include "tile_product.cuh"
#include "vectors.cuh"

// A block computes a tile of the product of one patch and lays it into shared memory, from where threads side by side
// store, and sum, what lies side by side.
namespace hyperseg::cuda {
namespace {

template <int N>
constexpr int kTileStride = N + 1;  // odd: neither rows nor columns meet in a bank

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

// How the threads go over a tile: channels side by side, eight at a time or one, and as many pixels at once.
template <int M, int N, Product KIND>
struct Sweep {
  static constexpr int kChannels = hidden(KIND) ? 8 : 1, kAcross = N / kChannels;
  static constexpr int kSlots = kProductThreads / kAcross < M ? kProductThreads / kAcross : M;
};

template <typename T, int M, int N, Product KIND>
HYPERSEG_ANYWHERE constexpr size_t shared_bytes() {
  const size_t used = tile_product_bytes<T, M, N>() + M * kTileStride<N> * sizeof(float);
  const size_t sums = summed(KIND) ? Sweep<M, N, KIND>::kSlots * N * sizeof(SumsOf<KIND>) : 0;
  return ((used > sums ? used : sums) + 7) / 8 * 8;
}

// Where each pixel of a tile lies.
template <int M>
struct PixelOffsets {
  int64_t input[M], other[M], out[M], behind[M];
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

template <typename T, int M, int N, Product KIND>
HYPERSEG_KERNEL(kProductThreads, 4)
patch_product_kernel(PatchProduct product, float* partial) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  using Out = std::conditional_t<normalised(KIND), float, T>;
  using Sums = SumsOf<KIND>;
  using Threads = Sweep<M, N, KIND>;
  constexpr int kStride = kTileStride<N>;
  const int pixels = product.pixels.count(), stored = product.stored, outputs = product.matrix.outputs;
  const int thread = threadIdx.x;
  const unsigned across = (stored + N - 1) / N, down = (pixels + M - 1) / M;
  const int first_output = static_cast<int>(blockIdx.x % across) * N;
  const unsigned tile_row = blockIdx.x / across;
  const int first_pixel = static_cast<int>(tile_row % down) * M, count = min(M, pixels - first_pixel);
  const Patch patch(tile_row / down, product.grid);
  const T* weights = matrix_of<T>(product.matrix, patch);
  const T *input = product.input.as<const T>(), *other = product.other.as<const T>();
  Out *out = product.out.as<Out>(), *behind = product.behind.as<Out>();
  const T zero = from_float<T>(0.0f);
  constexpr size_t kTileAt = tile_product_bytes<T, M, N>(), kOffsetsAt = shared_bytes<T, M, N, KIND>();
  float* tile = reinterpret_cast<float*>(shared_memory() + kTileAt);
  PixelOffsets<M>& offsets = *reinterpret_cast<PixelOffsets<M>*>(shared_memory() + kOffsetsAt);

  if (thread < M) {  // pixels beyond the patch are computed as the last one, and not stored
    const int p = first_pixel + min(thread, count - 1), y = product.pixels.across.quotient(p);
    const int x = p - y * product.pixels.width;
    offsets.input[thread] = offset_of(product.input, patch, y, x);
    if (paired(KIND)) offsets.other[thread] = offset_of(product.other, patch, y, x);
    offsets.out[thread] = offset_of(product.out, patch, y, x);
    if (KIND == Product::kPlain) offsets.behind[thread] = offset_of(product.behind, patch, y, x);
  }
  sync_block();
  const auto read = [&](int m, int k) {
    const T value = input[offsets.input[m] + k * product.input.stride_c];
    if constexpr (normalised(KIND))
      return from_float<T>(relu6(fmaf(to_float(value), product.norm.scale[k], product.norm.shift[k])));
    else
      return value;
  };
  const auto weight = [&](int n, int k) {
    const int o = first_output + n;
    return o < outputs ? weights[o * product.matrix.stride_output + k * product.matrix.stride_input] : zero;
  };
  tile_product<T, M, N>(product.matrix.inputs, read, product.input.stride_c == 1, weight,
                        product.matrix.stride_input == 1,
                        [&](int m, int n, float sum) { tile[m * kStride + n] = sum; });
  sync_block();

  const auto store = [&](int m, int o, float v) {
    if (o < product.split)
      out[offsets.out[m] + o * product.out.stride_c] = from_float<Out>(v);
    else
      behind[offsets.behind[m] + (o - product.split) * product.behind.stride_c] = from_float<Out>(v);
  };
  const auto store_by_channel = [&] {
    const int m = thread % M, channels = min(N, stored - first_output);
    if (m >= count) return;
    for (int c = thread / M; c < channels; c += kProductThreads / M) store(m, first_output + c, tile[m * kStride + c]);
  };
  const bool by_channel = !hidden(KIND) && product.out.stride_c != 1;
  if (KIND == Product::kPlain && by_channel) return store_by_channel();

  constexpr int kChannels = Threads::kChannels;
  const int n = thread % Threads::kAcross * kChannels, slot = thread / Threads::kAcross, o = first_output + n;
  Sums sums[kChannels];
  float scale[kChannels] = {}, shift[kChannels] = {};
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    if (gated(KIND) && o + i < outputs) scale[i] = product.norm.scale[o + i];
    if ((gated(KIND) || KIND == Product::kThroughRelu) && o + i < outputs) shift[i] = product.norm.shift[o + i];
  }
  for (int m = slot; m < count && o < stored; m += Threads::kSlots) {
    float* sum = tile + m * kStride + n;
    if constexpr (hidden(KIND)) {
      float v[8], z[8] = {};
      if constexpr (gated(KIND)) load8(other + offsets.other[m] + o, z);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = finished<KIND, Out>(sum[i], z[i], scale[i], shift[i], sums[i]);
      store8(out + offsets.out[m] + o, v);
    } else {
      float z = 0.0f;
      if constexpr (paired(KIND)) z = to_float(other[offsets.other[m] + o * product.other.stride_c]);
      const float v = finished<KIND, Out>(*sum, z, scale[0], shift[0], sums[0]);
      if (by_channel)
        *sum = v;
      else
        store(m, o, v);
    }
  }
  if constexpr (summed(KIND)) {
    if (by_channel) {
      sync_block();
      store_by_channel();
    }
    sync_block();
    Sums* shared = reinterpret_cast<Sums*>(shared_memory());  // where product and tile were
#pragma unroll
    for (int i = 0; i < kChannels; ++i)
      if (slot < Threads::kSlots) shared[slot * N + n + i] = sums[i];
    store_row(shared, Threads::kSlots, N, min(N, outputs - first_output), partial + int64_t{2} * tile_row * stored,
              first_output, stored);
  }
}

template <Product KIND>
void launch_product(const PatchProduct& product, float* partial, Type type, const char* op, Stream stream) {
  const int64_t pixels = product.pixels.count(), patches = product.grid.patches();
  with_type(type, [&](auto value) {
    using T = decltype(value);
    with_tile(pixels, product.stored, [&](auto m, auto n) {
      constexpr int M = m.value, N = n.value;
      const int64_t tiles = (pixels + M - 1) / M * ((product.stored + N - 1) / N);
      launch<patch_product_kernel<T, M, N, KIND>>(op, grid_of(op, patches * tiles), kProductThreads,
                                                  shared_bytes<T, M, N, KIND>() + sizeof(PixelOffsets<M>), stream,
                                                  product, partial);
    });
  });
}

}  // namespace

PartialRows rows_of(const PatchProduct& product) {
  PartialRows rows;
  with_tile(product.pixels.count(), product.stored,
            [&](auto m, auto) { rows = PartialRows(product.grid.patches(), product.pixels.count(), m.value); });
  return rows;
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
