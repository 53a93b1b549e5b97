#pragma once

#include "cuda/training/patches.h"

// A patch's matrices on tensor cores: forward, and both gradients in one kernel, of the input and of the matrix. The
// functions return false, without a launch, where they do not support type or size.
namespace hyperseg::cuda {

// hidden = matrix * input, for the pixels of a patch or of its window; stored [patch][pixel][stored].
struct ExpandForward {
  PatchGrid grid;
  PatchPixels pixels;
  PatchMatrix matrix;
  PatchedMap<const void> input;
  void* hidden = nullptr;
  int stored = 0;
  float* partial = nullptr;  // optional: receives moments, a row per patch
};
bool expands_by_mma(const ExpandForward& expand, Type type);
bool expand_mma(const ExpandForward& expand, Type type, const char* op, Stream stream);

// out = matrix * relu6(norm(hidden)), for the pixels of a patch.
struct ProjectForward {
  PatchGrid grid;
  PatchPixels pixels;
  PatchMatrix matrix;
  const void* hidden = nullptr;  // [patch][pixel][stored]
  ScaleShift norm;
  int stored = 0;
  PatchedMap<float> out;
  PatchedMap<const void> paired;  // optional
  float* partial = nullptr;       // receives moments or, with `paired`, its sums and those of it times out
};
bool projects_by_mma(const ProjectForward& project, Type type);
bool project_mma(const ProjectForward& project, Type type, const char* op, Stream stream);

// The expand layer, z1[p, o] = sum over k of input[p, k] * matrix[o, k] for the pixels p of a window.
struct ExpandBackward {
  PatchGrid grid;
  PatchPixels pixels;
  PatchMatrix matrix;
  PatchedMap<const void> input;  // read as windows

  // The gradient of z1, [patch][pixel][stored], or with factors [3, stored] the gradient after its norm: it is then
  // factors[0] * d + factors[1] * hidden + factors[2].
  const void *d = nullptr, *hidden = nullptr;
  const float* factors = nullptr;
  int stored = 0;

  void* d_matrix = nullptr;  // [patch, parameters], from its first parameter on
  int64_t parameters = 0;

  // Gradient of the input, without its channels before `first`: [patch][pixel][channel], or by channel.
  void* windows = nullptr;
  int first = 0;
  bool by_pixel = false;
};
bool expand_backward_mma(const ExpandBackward& expand, Type type, const char* op, Stream stream);

// The project layer, z3[p, o] = sum over k of relu6(norm(hidden))[p, k] * matrix[o, k] for the pixels p of a patch.
struct ProjectBackward {
  PatchGrid grid;
  PatchPixels pixels;
  PatchMatrix matrix;

  // The gradient of z3, or with factors [3, outputs] the gradient after its norm: it is then factors[0] * d +
  // factors[1] * z3 + factors[2].
  PatchedMap<const void> d;
  PatchedMap<const float> z3;
  const float* factors = nullptr;

  const void* hidden = nullptr;  // [patch][pixel][stored]
  ScaleShift norm;
  int stored = 0;

  void* d_matrix = nullptr;  // [patch, parameters], from parameter `first` on
  int64_t first = 0, parameters = 0;

  void* d_hidden = nullptr;  // receives the gradient of `hidden` before norm and ReLU6
  float* partial = nullptr;  // receives the sums of it and of it times `hidden`
};
bool projects_by_mma(const ProjectBackward& project, Type type);
bool project_backward_mma(const ProjectBackward& project, Type type, const char* op, Stream stream);

}  // namespace hyperseg::cuda
