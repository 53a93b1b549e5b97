#pragma once

#include "cuda/training/patches.h"

namespace hyperseg::cuda {

// Epilogue of out[p, o] = sum over k of input[p, k] * matrix[o, k], for all pixels p of a patch.
enum class Epilogue {
  kPlain,             // store
  kHidden,            // store as a hidden map, [pixel][channel] in groups of eight channels
  kHiddenMoments,     // the same, and moments
  kNormalised,        // input is relu6(norm); store float, and moments
  kNormalisedPaired,  // the same, with the sums of `other` and of `other` * out
  kHiddenGated,       // 0 where relu6(norm(`other`)) is flat; sums of out and of out * `other`
  kThroughRelu,       // `other`, or 0 where out + shift is not above 0; and the sums of that
};

struct PatchGemm {
  PatchGrid grid;
  PatchPixels pixels;
  PatchMatrix matrix;
  PatchedMap<const void> input, other;
  ScaleShift norm;  // of the input, or of `other`
  PatchedMap<void> out, rest;
  int split = 0;   // outputs from this one on go to `rest`
  int stored = 0;  // channels of out; those after the matrix become 0
};

PartialRows rows_of(const PatchGemm& gemm);
// `partial`: float [rows, 2, stored], for epilogues with sums or moments.
void patch_gemm(const PatchGemm& gemm, Epilogue kind, float* partial, Type type, const char* op, Stream stream);

// Per-patch weight gradient: gradient[o, k] = sum over the pixels p of a patch of d[p, o] * input[p, k], or of
// relu6(norm(input)) if there is a norm; written to [patch, parameters], from parameter `first` of `gradient` on.
struct PatchWgrad {
  PatchGrid grid;
  PatchPixels pixels;
  PatchedMap<const void> d, input;
  ScaleShift norm;
  int outputs = 0, inputs = 0;
  void* gradient = nullptr;
  int64_t first = 0, parameters = 0;
};
void patch_wgrad(const PatchWgrad& wgrad, Type type, const char* op, Stream stream);

}  // namespace hyperseg::cuda
