#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "../common/acc.h"
#include "../common/map.h"
#include "bilinear.h"
#include "primitives.h"
#include "tasks.h"

// The body of decoder_level, patch_inverted_residual and 1x1 patch_conv2d: patches in runs along a row of the grid,
// each run a task. A task reads its part of the level's input (upsampling as it reads) into a small tile, makes
// the run's weights if they are to be generated, and computes each patch in tiles whose hidden maps stay in the caches.
namespace hyperseg::cpu {

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Memory for vectors: as std::vector, but on whole cache lines and not filled.
template <typename T>
class Buffer {
 public:
  T* reserve(int64_t count) {
    if (count > capacity_) {
      data_.reset(static_cast<T*>(::operator new(count * sizeof(T), kLine)));
      capacity_ = count;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kLine); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t capacity_ = 0;
};

// The generated weights [N, fh, fw, P], whatever their strides.
template <typename S>
struct PatchWeights {
  const S* data = nullptr;
  int64_t stride_n = 0, stride_h = 0, stride_w = 0, stride_p = 1, parameters = 0;

  const S* at(int64_t n, int64_t gy, int64_t gx) const { return data + n * stride_n + gy * stride_h + gx * stride_w; }

  template <typename T>
  void read(int64_t n, int64_t gy, int64_t gx, int64_t first, int64_t count, T* to) const {
    const S* source = at(n, gy, gx) + first * stride_p;
    if (stride_p == 1) {
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(source[i]);
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(source[i * stride_p]);
    }
  }
};

// The signal of patches [first, last) of a row of the grid, [patches, channels], from channel `offset` on.
template <typename S, typename T>
void read_signal(const Map<const S>& signal, int64_t offset, int64_t channels, int64_t n, int64_t gy, int64_t first,
                 int64_t last, T* to) {
  for (int64_t gx = first; gx < last; ++gx)
    for (int64_t c = 0; c < channels; ++c)
      to[(gx - first) * channels + c] = static_cast<T>(*signal.at(n, offset + c, gy, gx));
}

// in [rows, columns] as out [columns, rows], for the right side of a product: its rows end in zeros, as what lies in
// unused lanes is multiplied too, and takes a hundred times longer where it is denormal.
template <typename T>
void transpose_padded(int64_t rows, int64_t columns, const T* in, int64_t in_stride, T* out, int64_t padded) {
  primitives<T>().transpose(rows, columns, in, in_stride, out, padded);
  for (int64_t j = 0; j < columns; ++j) std::fill(out + j * padded + rows, out + (j + 1) * padded, T(0));
}

// One grouped 1x1 convolution, transposed: for each group [K, columns], columns padded for vector reads.
template <typename T>
struct Generator {
  Buffer<T> buffer;
  T* weights;
  int64_t groups, depth, rows_per_group, padded, size;  // size <= groups * rows_per_group

  template <typename S>
  Generator(const S* g, int64_t stride_row, int64_t stride_column, int64_t rows, int64_t depth, int64_t groups,
            int64_t size)
      : groups(groups),
        depth(depth),
        rows_per_group(rows / groups),
        padded(round_up(rows / groups, kPadding)),
        size(size) {
    weights = buffer.reserve(groups * depth * padded + kPadding);
    for_each_task(groups, [&](int64_t q) {
      const S* from = g + q * rows_per_group * stride_row;
      T* to = weights + q * depth * padded;
      if constexpr (std::is_same_v<S, T>) {
        if (stride_column == 1) return transpose_padded(rows_per_group, depth, from, stride_row, to, padded);
      }
      for (int64_t k = 0; k < depth; ++k) {
        for (int64_t r = 0; r < rows_per_group; ++r)
          to[k * padded + r] = static_cast<T>(from[r * stride_row + k * stride_column]);
        std::fill(to + k * padded + rows_per_group, to + (k + 1) * padded, T(0));
      }
    });
  }

  int64_t channels() const { return groups * depth; }  // of the signal

  // signal [patches, channels()] -> out [patches, stride].
  void generate(const Primitives<T>& run, int64_t patches, const T* signal, T* out, int64_t stride) const {
    for (int64_t q = 0; q < groups && q * rows_per_group < size; ++q)
      run.gemm({.m = patches,
                .n = std::min(rows_per_group, size - q * rows_per_group),
                .k = depth,
                .a = signal + q * depth,
                .lda = channels(),
                .b = weights + q * depth * padded,
                .ldb = padded,
                .c = out + q * rows_per_group,
                .ldc = stride});
  }
};

// From -1 to 1, as torch.linspace computes it.
template <typename T>
std::vector<T> coordinates(int64_t count) {
  std::vector<T> values(count, T(-1));
  const T step = count > 1 ? T(2) / static_cast<T>(count - 1) : T(0);
  for (int64_t i = 0; i < count; ++i)
    values[i] =
        i < count / 2 || count == 1 ? T(-1) + step * static_cast<T>(i) : T(1) - step * static_cast<T>(count - 1 - i);
  return values;
}

template <typename S>
struct Level {
  using T = acc_t<S>;

  Map<const S> skip, previous;  // previous may be empty
  bool with_coordinates = true;
  int64_t images = 0, grid_h = 0, grid_w = 0, hidden = 0, out_channels = 0;
  bool own_halo = true;
  Activation last = Activation::kNone;  // after a 1x1 level
  std::vector<T> bias;                  // empty, or [2 * hidden + out_channels]
  // Either weights [N, fh, fw, P] ...
  PatchWeights<S> weights;
  // ... or a signal and the generator that makes them of it.
  Map<const S> signal;
  int64_t signal_offset = 0;
  const Generator<T>* generator = nullptr;
  Map<S> out;

  void run() const;
};

}  // namespace hyperseg::cpu
