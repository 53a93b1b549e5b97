#include "patch_product.h"

#include "channel_sums.cuh"
#include "launch.cuh"
#include "patches.cuh"
#include "tile_product.cuh"

// A block computes a tile of the product of one patch and lays it into shared memory, from where threads side by side
// store, and sum, what lies side by side.
namespace hyperseg::cuda {
namespace {

template <int N>
constexpr int kTileStride = N + 1;  // odd: neither rows nor columns meet in a bank

constexpr bool normalised(Product kind) { return kind == Product::kNormalised || kind == Product::kNormalisedPaired; }
constexpr bool moments(Product kind) { return kind == Product::kMoments || kind == Product::kNormalised; }

template <typename T, int M, int N, Product KIND>
HYPERSEG_KERNEL(kProductThreads, 4)
patch_product_kernel(PatchProduct product, float* partial) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  using Out = std::conditional_t<normalised(KIND), float, T>;
  constexpr int kSlots = kProductThreads / N, kStride = kTileStride<N>;
  const int pixels = product.pixels.count(), width = product.pixels.width, stored = product.stored;
  const int outputs = product.matrix.outputs, thread = threadIdx.x;
  const unsigned across = (stored + N - 1) / N, down = (pixels + M - 1) / M;
  const int first_output = static_cast<int>(blockIdx.x % across) * N;
  const unsigned tile_row = blockIdx.x / across;
  const int first_pixel = static_cast<int>(tile_row % down) * M;
  const Patch patch(tile_row / down, product.grid);
  const T* weights = matrix_of<T>(product.matrix, patch);
  const T* input = product.input.as<const T>();
  const T zero = from_float<T>(0.0f);
  float* tile = reinterpret_cast<float*>(shared_memory() + tile_product_bytes<T, M, N>());

  const auto read = [&](int m, int k) {
    const int p = first_pixel + m;
    if (p >= pixels) return zero;
    const int y = product.pixels.across.quotient(p);
    const T value = input[offset_of(product.input, patch, y, p - y * width) + k * product.input.stride_c];
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

  Out *out = product.out.as<Out>(), *behind = product.behind.as<Out>();
  const auto store = [&](int p, int o, float v) {
    const int y = product.pixels.across.quotient(p), x = p - y * width;
    if (o < product.split)
      out[offset_of(product.out, patch, y, x) + o * product.out.stride_c] = from_float<Out>(v);
    else
      behind[offset_of(product.behind, patch, y, x) + (o - product.split) * product.behind.stride_c] =
          from_float<Out>(v);
  };
  const bool by_channel = product.out.stride_c != 1;
  if (KIND != Product::kPlain || !by_channel) {
    using Sums = std::conditional_t<moments(KIND), Moments, GradientSums>;
    const int n = thread % N, slot = thread / N, o = first_output + n;
    const bool counted = o < outputs;
    float scale = 0.0f, shift = 0.0f;
    if constexpr (KIND == Product::kGated) scale = counted ? product.norm.scale[o] : 0.0f;
    if constexpr (KIND == Product::kGated || KIND == Product::kThroughRelu)
      shift = counted ? product.norm.shift[o] : 0.0f;
    Sums sums;
    for (int m = slot; m < M && first_pixel + m < pixels && o < stored; m += kSlots) {
      const int p = first_pixel + m;
      float v = tile[m * kStride + n], other = 0.0f;
      if constexpr (KIND == Product::kGated || KIND == Product::kThroughRelu || KIND == Product::kNormalisedPaired) {
        const int y = product.pixels.across.quotient(p);
        const int64_t at = offset_of(product.other, patch, y, p - y * width) + o * product.other.stride_c;
        if (counted) other = to_float(product.other.as<const T>()[at]);
      }
      if constexpr (KIND == Product::kGated) v = flat_in_relu6(fmaf(other, scale, shift)) ? 0.0f : v;
      if constexpr (KIND == Product::kThroughRelu) v = v + shift <= 0.0f ? 0.0f : other;
      if constexpr (moments(KIND)) sums.add(to_float(from_float<Out>(v)));
      if constexpr (KIND == Product::kNormalisedPaired) sums.add(other, v);
      if constexpr (KIND == Product::kGated || KIND == Product::kThroughRelu) sums.add(v, other);
      if (by_channel)
        tile[m * kStride + n] = v;
      else
        store(p, o, v);
    }
    if constexpr (KIND != Product::kPlain) {
      Sums* shared = reinterpret_cast<Sums*>(shared_memory());  // where the product's operands were
      shared[slot * N + n] = sums;
      store_row(shared, kSlots, N, min(N, outputs - first_output), partial + int64_t{2} * tile_row * stored,
                first_output, stored);
    }
  }
  if (!by_channel) return;
  if (KIND != Product::kPlain) sync_block();
  const int m = thread % M, p = first_pixel + m;
  if (p >= pixels) return;
  for (int n = thread / M; n < N && first_output + n < stored; n += kProductThreads / M)
    store(p, first_output + n, tile[m * kStride + n]);
}

template <Product KIND>
void launch_product(const PatchProduct& product, float* partial, Type type, const char* op, Stream stream) {
  const int64_t pixels = product.pixels.count(), patches = product.grid.patches();
  with_type(type, [&](auto value) {
    using T = decltype(value);
    with_tile(pixels, product.stored, [&](auto m, auto n) {
      constexpr int M = m.value, N = n.value;
      const int64_t tiles = (pixels + M - 1) / M * ((product.stored + N - 1) / N);
      launch<patch_product_kernel<T, M, N, KIND>>(
          op, grid_of(op, patches * tiles), kProductThreads,
          tile_product_bytes<T, M, N>() + M * kTileStride<N> * sizeof(float), stream, product, partial);
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
    case Product::kMoments:
      return launch_product<Product::kMoments>(product, partial, type, op, stream);
    case Product::kNormalised:
      return launch_product<Product::kNormalised>(product, partial, type, op, stream);
    case Product::kNormalisedPaired:
      return launch_product<Product::kNormalisedPaired>(product, partial, type, op, stream);
    case Product::kGated:
      return launch_product<Product::kGated>(product, partial, type, op, stream);
    case Product::kThroughRelu:
      return launch_product<Product::kThroughRelu>(product, partial, type, op, stream);
  }
}

}  // namespace hyperseg::cuda
