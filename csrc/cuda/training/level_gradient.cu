#include "cuda/training/level_gradient.h"

#include "cuda/conv/windows.cuh"
#include "cuda/decoder/level.cuh"
#include "cuda/device/bilinear_adjoint.cuh"
#include "cuda/device/elementwise.cuh"

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

// Axes of a map of the input's size, read through windows with a halo of one pixel.
struct WindowAxes {
  PatchAxis rows, columns;
};

template <typename T>
HYPERSEG_KERNEL(kValueThreads, 2)
collect_level_windows_kernel(EachValue each, WindowAxes axes, const T* windows, int channels, int split, Map<T> skip,
                             Map<T> previous) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const MapIndex at = each.place();
  if (!at.exists) return;
  const PatchAxis &rows = axes.rows, &columns = axes.columns;
  const int64_t pixels = static_cast<int64_t>(rows.window()) * columns.window();
  const int64_t image = static_cast<int64_t>(at.n) * rows.patches * columns.patches;
  float sum = 0.0f;
  for (int i = 0; i < 3; ++i) {
    const PaddedPosition image_row(at.y, i, rows, Padding::kReflect);
    if (!image_row.shown) continue;
    for (int j = 0; j < 3; ++j) {
      const PaddedPosition image_column(at.x, j, columns, Padding::kReflect);
      if (!image_column.shown) continue;
      each_window(image_row.position, rows, [&](int top, int place_y) {
        each_window(image_column.position, columns, [&](int left, int place_x) {
          const int64_t patch = image + static_cast<int64_t>(top) * columns.patches + left;
          sum += to_float(windows[(patch * channels + at.c) * pixels + place_y * columns.window() + place_x]);
        });
      });
    }
  }
  if (at.c < split)
    *skip.at(at.n, at.c, at.y, at.x) = from_float<T>(sum);
  else
    *previous.at(at.n, at.c - split, at.y, at.x) = from_float<T>(sum);
}

struct Readers {
  float scale_y, scale_x;
  int rows, columns;  // maximum number of pixels that read a value
};

template <typename T>
HYPERSEG_KERNEL(kValueThreads, 2)
resize_gradient_kernel(EachValue each, Map<const T> d, Readers readers, Map<T> out) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const MapIndex at = each.place();
  if (!at.exists) return;
  const int height = static_cast<int>(d.height), width = static_cast<int>(d.width);
  const int h = static_cast<int>(out.height), w = static_cast<int>(out.width);
  const T* plane = d.at(at.n, at.c, 0, 0);
  const int first_y = first_reader(at.y, readers.scale_y, h), first_x = first_reader(at.x, readers.scale_x, w);
  float sum = 0.0f;
  for (int y = first_y; y < min(first_y + readers.rows, height); ++y) {
    const float share_y = share_of(at.y, y, readers.scale_y, h);
    if (share_y == 0.0f) continue;
    for (int x = first_x; x < min(first_x + readers.columns, width); ++x) {
      const float share = share_y * share_of(at.x, x, readers.scale_x, w);
      if (share != 0.0f) sum += to_float(plane[y * d.stride_h + x * d.stride_w]) * share;
    }
  }
  *out.at(at.n, at.c, at.y, at.x) = from_float<T>(sum);
}

}  // namespace

void level_input(const DecoderLevelArgs& level, const Map<void>& out, Type type, const char* op, Stream stream) {
  const EachValue each(op, level.images, out);
  with_type(type, [&](auto value) {
    using T = decltype(value);
    launch<level_input_kernel<T>>(op, each.grid(), kValueThreads, 0, stream, each, LevelInputView<T>(level),
                                  out.of<T>());
  });
}

void collect_windows(const void* windows, const PatchGrid& grid, int64_t channels, const InputGradient& gradient,
                     Type type, const char* op, Stream stream) {
  Map<void> all = gradient.skip;
  all.channels = channels;
  const EachValue each(op, grid.images, all);
  const WindowAxes axes{PatchAxis(all.height, grid.rows, 3, 1), PatchAxis(all.width, grid.columns, 3, 1)};
  with_type(type, [&](auto value) {
    using T = decltype(value);
    launch<collect_level_windows_kernel<T>>(op, each.grid(), kValueThreads, 0, stream, each, axes,
                                            static_cast<const T*>(windows), static_cast<int>(channels), gradient.split,
                                            gradient.skip.of<T>(), gradient.previous.of<T>());
  });
}

void resize_gradient(const Map<const void>& d, int64_t images, const Map<void>& out, Type type, const char* op,
                     Stream stream) {
  const EachValue each(op, images, out);
  const Readers counts{static_cast<float>(out.height) / d.height, static_cast<float>(out.width) / d.width,
                       static_cast<int>(readers(out.height, d.height)), static_cast<int>(readers(out.width, d.width))};
  with_type(type, [&](auto value) {
    using T = decltype(value);
    launch<resize_gradient_kernel<T>>(op, each.grid(), kValueThreads, 0, stream, each, d.of<const T>(), counts,
                                      out.of<T>());
  });
}

}  // namespace hyperseg::cuda
