#pragma once

#include "cuda/training/patches.h"

namespace hyperseg::cuda {

// What becomes of out[p, o] = sum over k of input[p, k] * matrix[o, k], for all pixels p of a patch.
enum class Product {
  kPlain,             // stored
  kHidden,            // stored; it is a hidden map, pixel by pixel, in groups of eight channels
  kHiddenMoments,     // the same, with its moments
  kNormalised,        // of relu6 of the input's norm; float, with its moments
  kNormalisedPaired,  // the same, with the sums of `other` and of `other` * out
  kHiddenGated,       // 0 where relu6 of the norm of the hidden map `other` is flat, with the sums of out and of out *
                      // `other`
  kThroughRelu,       // `other`, or 0 where out + shift is not above 0, with the sums of that
};

struct PatchProduct {
  PatchGrid grid;
  PatchPixels pixels;
  PatchMatrix matrix;
  PatchedMap<const void> input, other;
  Norm norm;  // of the input, or of `other`
  PatchedMap<void> out, behind;
  int split = 0;   // outputs from this one on go into `behind`
  int stored = 0;  // channels of out; those beyond the matrix become 0
};

PartialRows rows_of(const PatchProduct& product);
// `partial`: float [rows, 2, stored], where sums or moments are asked for.
void patch_product(const PatchProduct& product, Product kind, float* partial, Type type, const char* op, Stream stream);

// gradient[o, k] = sum over the pixels p of a patch of d[p, o] * input[p, k], or of relu6 of the input's norm if it has
// one; into [patch, parameters] from `gradient` on.
struct PatchOuter {
  PatchGrid grid;
  PatchPixels pixels;
  PatchedMap<const void> d, input;
  Norm norm;
  int outputs = 0, inputs = 0;
  void* gradient = nullptr;
  int64_t first = 0, parameters = 0;
};
void patch_outer(const PatchOuter& outer, Type type, const char* op, Stream stream);

}  // namespace hyperseg::cuda
