#include "cuda/training/level_gradient.h"

#include <type_traits>

#include "cuda/decoder/level.cuh"
#include "cuda/device/bilinear_adjoint.cuh"
#include "cuda/device/elementwise.cuh"
#include "cuda/device/vectors.cuh"

namespace hyperseg::cuda {
namespace {

template <typename T>
HYPERSEG_KERNEL(kValueThreads, 2)
level_input_kernel(EachValue each, LevelInputView<T> input, Map<T> out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const MapIndex at = each.place();
  if (!at.exists) return;
  *out.at(at.n, at.c, at.y, at.x) = from_float<T>(input.at(at.n, at.c, at.y, at.x));
}

// An axis of a map that is divided into patches, whose windows have a halo of one pixel.
struct WindowAxis {
  int size, patches;
  FastDivmod patch;

  WindowAxis(int64_t size, int patches)
      : size(static_cast<int>(size)), patches(patches), patch(static_cast<int64_t>(size / patches)) {}
  HYPERSEG_HOST_DEVICE int window() const { return patch.value() + 2; }
};

// The windows that contain a pixel of an axis: its own patch's, those of the patches next to it and, by reflection, the
// first and the last one.
struct WindowsOf {
  static constexpr int kMost = 5;
  int pixel, own, in;  // patch of the pixel; position in it
  int count;           // of positions to look at

  HYPERSEG_DEVICE WindowsOf(int pixel, const WindowAxis& axis) : pixel(pixel), own(axis.patch.quotient(pixel)) {
    in = pixel - own * axis.patch.value();
    const bool inside = in > 0 && in < axis.patch.value() - 1 && pixel != 1 && pixel != axis.size - 2;
    count = inside ? 1 : kMost;
  }
  // Find the window number `i` and the place in it; false if there is none.
  HYPERSEG_DEVICE bool find(const WindowAxis& axis, int i, int& window, int& place) const {
    const int size = axis.patch.value(), last = axis.patches - 1;
    window = i == 0 ? own : i == 1 ? own - 1 : i == 2 ? own + 1 : i == 3 ? 0 : last;
    place = i == 0 ? in + 1 : i == 1 || i == 4 ? size + 1 : 0;
    return i == 0 || (i == 1 && in == 0 && own > 0) || (i == 2 && in == size - 1 && own < last) ||
           (i == 3 && pixel == 1) || (i == 4 && pixel == axis.size - 2);
  }
};

// Windows in memory: [patch][channel][pixel] or [patch][pixel][channel].
struct WindowStrides {
  int64_t patch;
  int pixel, channel;
};

// A value per thread, or CHANNELS adjacent channels of a pixel.
template <typename T, int CHANNELS>
HYPERSEG_KERNEL(kValueThreads, 2)
collect_level_windows_kernel(EachValue each, WindowAxis rows, WindowAxis columns, WindowStrides strides,
                             const T* windows, int split, Map<T> skip, Map<T> previous) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const MapIndex at = each.place();
  if (!at.exists) return;
  const int c = at.c * CHANNELS;
  const WindowsOf row(at.y, rows), column(at.x, columns);
  const T* of_channel = windows + c * strides.channel;
  float2 sum{0.0f, 0.0f};
#pragma unroll 1
  for (int i = 0; i < row.count; ++i) {
    int top, y;
    if (!row.find(rows, i, top, y)) continue;
#pragma unroll 1
    for (int j = 0; j < column.count; ++j) {
      int left, x;
      if (!column.find(columns, j, left, x)) continue;
      const int64_t patch = static_cast<int64_t>(at.n * rows.patches + top) * columns.patches + left;
      const T* from = of_channel + patch * strides.patch + (y * columns.window() + x) * strides.pixel;
      if constexpr (CHANNELS == 2) {
        const float2 two = load2(from);
        sum.x += two.x, sum.y += two.y;
      } else {
        sum.x += to_float(*from);
      }
    }
  }
  T* out = c < split ? skip.at(at.n, c, at.y, at.x) : previous.at(at.n, c - split, at.y, at.x);
  if constexpr (CHANNELS == 2)
    store2(out, sum);
  else
    *out = from_float<T>(sum.x);
}

// PIXELS adjacent pixels of a patch's row and one channel per thread, for contiguous maps and windows
// [patch][channel][pixel].
template <typename T, int PIXELS>
HYPERSEG_KERNEL(kValueThreads, 2)
collect_level_rows_kernel(EachValue each, WindowAxis rows, WindowAxis columns, WindowStrides strides, const T* windows,
                          int split, Map<T> skip, Map<T> previous) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const MapIndex at = each.place();  // of a row's groups of pixels
  if (!at.exists) return;
  const WindowsOf row(at.y, rows);
  const int x = at.x * PIXELS, width = columns.patch.value();
  const int left = columns.patch.quotient(x), in = x - left * width, last = columns.patches - 1;
  const T* of_channel = windows + at.c * strides.channel;
  float sums[PIXELS] = {};
#pragma unroll 1
  for (int i = 0; i < row.count; ++i) {
    int top, y;
    if (!row.find(rows, i, top, y)) continue;
    const int64_t patch = static_cast<int64_t>(at.n * rows.patches + top) * columns.patches + left;
    const T* from = of_channel + patch * strides.patch + y * (width + 2);
#pragma unroll
    for (int j = 0; j < PIXELS; ++j) sums[j] += to_float(from[in + 1 + j]);
    if (in == 0) {
      if (left > 0) sums[0] += to_float(from[width + 1 - strides.patch]);
      if (left == 0) sums[1] += to_float(from[0]);
    }
    if (in + PIXELS == width) {
      if (left < last) sums[PIXELS - 1] += to_float(from[strides.patch]);
      if (left == last) sums[PIXELS - 2] += to_float(from[width + 1]);
    }
  }
  T* out = at.c < split ? skip.at(at.n, at.c, at.y, x) : previous.at(at.n, at.c - split, at.y, x);
  const uint32_t v[4] = {pack<T>(sums[0], sums[1]), pack<T>(sums[2], sums[3]),
                         PIXELS > 4 ? pack<T>(sums[PIXELS - 4], sums[PIXELS - 3]) : 0,
                         PIXELS > 4 ? pack<T>(sums[PIXELS - 2], sums[PIXELS - 1]) : 0};
  if constexpr (PIXELS == 8)
    store16(out, uint4{v[0], v[1], v[2], v[3]});
  else
    reinterpret_cast<uint32_t*>(out)[0] = v[0], reinterpret_cast<uint32_t*>(out)[1] = v[1];
}

struct Readers {
  float scale_y, scale_x;
  int rows, columns;  // maximum number of pixels that read a value
};

// COLUMNS: the readers of a row whose shares are computed once, or 0: any number.
template <typename T, int COLUMNS>
HYPERSEG_KERNEL(kValueThreads, 2)
resize_gradient_kernel(EachValue each, Map<const T> d, Readers readers, Map<T> out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const MapIndex at = each.place();
  if (!at.exists) return;
  const int height = static_cast<int>(d.height), width = static_cast<int>(d.width);
  const int h = static_cast<int>(out.height), w = static_cast<int>(out.width);
  const int first_y = first_reader(at.y, readers.scale_y, h), first_x = first_reader(at.x, readers.scale_x, w);
  const T* plane = d.at(at.n, at.c, first_y, first_x);
  float shares[COLUMNS > 0 ? COLUMNS : 1];
#pragma unroll
  for (int i = 0; i < COLUMNS; ++i)
    shares[i] = i < readers.columns && first_x + i < width ? share_of(at.x, first_x + i, readers.scale_x, w) : 0.0f;
  float sum = 0.0f;
  const auto add = [&](const T* from, float share) {
    if (share != 0.0f) sum += to_float(*from) * share;
  };
  for (int y = first_y; y < min(first_y + readers.rows, height); ++y, plane += d.stride_h) {
    const float share_y = share_of(at.y, y, readers.scale_y, h);
    if (share_y == 0.0f) continue;
    if constexpr (COLUMNS > 0) {
#pragma unroll
      for (int i = 0; i < COLUMNS; ++i) add(plane + i * d.stride_w, share_y * shares[i]);
    } else {
      for (int x = first_x; x < min(first_x + readers.columns, width); ++x)
        add(plane + (x - first_x) * d.stride_w, share_y * share_of(at.x, x, readers.scale_x, w));
    }
  }
  *out.at(at.n, at.c, at.y, at.x) = from_float<T>(sum);
}

template <auto KERNEL>
struct Constant {
  static constexpr auto value = KERNEL;
};

}  // namespace

void level_input(const DecoderLevelArgs& level, const Map<void>& out, Type type, const char* op, Stream stream) {
  const EachValue each(op, level.images, out);
  with_type(type, [&](auto value) {
    using T = decltype(value);
    launch<level_input_kernel<T>>(op, each.grid(), kValueThreads, 0, stream, each, LevelInputView<T>(level),
                                  out.of<T>());
  });
}

bool windows_by_pixel(const InputGradient& gradient) {
  return gradient.skip.stride_c == 1 && gradient.skip.channels > 1;
}

void collect_windows(const void* windows, const PatchGrid& grid, int64_t channels, const InputGradient& gradient,
                     Type type, const char* op, Stream stream) {
  const bool by_pixel = windows_by_pixel(gradient);
  const WindowAxis rows(gradient.skip.height, grid.rows), columns(gradient.skip.width, grid.columns);
  const int pixels = rows.window() * columns.window();
  const WindowStrides strides{pixels * channels, by_pixel ? static_cast<int>(channels) : 1, by_pixel ? 1 : pixels};
  Map<void> all = gradient.skip;
  all.channels = channels;
  const auto every = [&](const auto& may) {
    return may(gradient.skip) && (!gradient.previous || may(gradient.previous));
  };
  const auto is_even = [&](const Map<void>& map) {
    const int64_t strides = map.stride_n | map.stride_h | map.stride_w;
    return map.stride_c == 1 && strides % 2 == 0 && reinterpret_cast<uintptr_t>(map.data) % 4 == 0;
  };
  const auto is_aligned = [&](const Map<void>& map, int pixels) {
    const int64_t strides = map.stride_n | map.stride_h | map.stride_c;
    return map.stride_w == 1 && strides % pixels == 0 && reinterpret_cast<uintptr_t>(map.data) % (2 * pixels) == 0;
  };
  with_type(type, [&](auto value) {
    using T = decltype(value);
    const auto run = [&](auto kernel, const EachValue& each) {
      launch<kernel.value>(op, each.grid(), kValueThreads, 0, stream, each, rows, columns, strides,
                           static_cast<const T*>(windows), gradient.split, gradient.skip.of<T>(),
                           gradient.previous.of<T>());
    };
    if constexpr (!std::is_same_v<T, float>) {
      if (by_pixel && channels % 2 == 0 && gradient.split % 2 == 0 && every(is_even)) {
        all.channels /= 2;
        return run(Constant<collect_level_windows_kernel<T, 2>>{}, EachValue(op, grid.images, all, true));
      }
      const auto by_rows = [&](auto pixels) {
        all.width /= pixels.value;
        run(Constant<collect_level_rows_kernel<T, pixels.value>>{}, EachValue(op, grid.images, all, false));
      };
      for (const int p : {8, 4}) {
        if (by_pixel || grid.patch_w % p || !every([&](const Map<void>& map) { return is_aligned(map, p); })) continue;
        return p == 8 ? by_rows(std::integral_constant<int, 8>{}) : by_rows(std::integral_constant<int, 4>{});
      }
    }
    run(Constant<collect_level_windows_kernel<T, 1>>{}, EachValue(op, grid.images, all));
  });
}

void resize_gradient(const Map<const void>& d, int64_t images, const Map<void>& out, Type type, const char* op,
                     Stream stream) {
  const EachValue each(op, images, out);
  const Readers counts{static_cast<float>(out.height) / d.height, static_cast<float>(out.width) / d.width,
                       static_cast<int>(readers(out.height, d.height)), static_cast<int>(readers(out.width, d.width))};
  with_type(type, [&](auto value) {
    using T = decltype(value);
    const auto run = [&](auto columns) {
      launch<resize_gradient_kernel<T, columns.value>>(op, each.grid(), kValueThreads, 0, stream, each, d.of<const T>(),
                                                       counts, out.of<T>());
    };
    counts.columns <= 4 ? run(std::integral_constant<int, 4>{}) : run(std::integral_constant<int, 0>{});
  });
}

}  // namespace hyperseg::cuda
