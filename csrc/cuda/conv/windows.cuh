#pragma once

#include "cuda/conv/patch_conv2d.h"
#include "cuda/device/device.cuh"

// From a pixel of a map to the windows that contain it, directly or through padding.
namespace hyperseg::cuda {

// Return the position where padding shows a pixel of an axis for the k-th time, k = 0 being the pixel itself; `shown`:
// whether there is one.
struct PaddedPosition {
  int position;
  bool shown;

  HYPERSEG_DEVICE PaddedPosition(int pixel, int k, const PatchAxis& axis, Padding padding)
      : position(pixel), shown(k == 0) {
    if (k == 0) return;
    const int last = axis.size - 1;
    if (padding == Padding::kReflect) {
      position = k == 1 ? -pixel : 2 * last - pixel;
      shown = k == 1 ? pixel > 0 : pixel < last;
    } else if (padding == Padding::kCircular) {
      position = k == 1 ? pixel - axis.size : pixel + axis.size;
      shown = true;
    } else {  // replicate: `halo` copies of the first pixel, then of the last
      position = k <= axis.halo ? pixel - k : pixel + k - axis.halo;
      shown = k <= axis.halo ? pixel == 0 : pixel == last;
    }
    shown = shown && position >= -axis.halo && position < axis.size + axis.halo;
  }

  // Return the maximum number of positions at which an axis shows a pixel.
  HYPERSEG_DEVICE static int most(const PatchAxis& axis, Padding padding) {
    if (axis.halo == 0 || padding == Padding::kZeros) return 1;
    return padding == Padding::kReplicate ? 1 + 2 * axis.halo : 3;
  }
};

// Call body(patch, position in its window) for every window that contains this position of the padded axis. The last
// one is the window of its own patch or, in the padding, of the patch next to it; a window begins `halo` before its
// patch.
template <typename Body>
HYPERSEG_DEVICE void each_window(int position, const PatchAxis& axis, const Body& body) {
  for (int patch = min(axis.by_patch.quotient(position + axis.halo), axis.patches - 1); patch >= 0; --patch) {
    const int place = position + axis.halo - patch * axis.patch;
    if (place >= axis.window()) break;
    body(patch, place);
  }
}

}  // namespace hyperseg::cuda
