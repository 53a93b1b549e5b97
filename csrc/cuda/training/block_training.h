#pragma once

#include <functional>
#include <string>
#include <utility>

#include "cuda/device/tensors.h"
#include "cuda/training/batch_norm.h"
#include "cuda/training/depthwise.h"
#include "cuda/training/level_gradient.h"
#include "cuda/training/patch_gemm.h"

// An inverted residual in training: the kernels in their order, and the memory between them. The hidden values are made
// again from the input in the backward pass.
namespace hyperseg::cuda {

inline int64_t bytes_of(Type type) { return type == Type::kFloat ? 4 : 2; }
inline Tensor floats(const Tensor& like, int64_t count) {
  return torch::stable::new_empty(like, {count}, ScalarType::Float);
}
inline Tensor values(const Tensor& like, int64_t count) { return torch::stable::new_empty(like, {count}); }
inline float* data(Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }
inline Vector vector_of(const char* op, const Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), type_of(op, t), t.stride(0), 0};
}
inline PatchGrid grid_of(const Tensor& weights, const Map<const void>& x) {
  const int64_t rows = weights.size(1), columns = weights.size(2);
  return {weights.size(0), static_cast<int>(rows), static_cast<int>(columns), static_cast<int>(x.height / rows),
          static_cast<int>(x.width / columns)};
}

// Of parameters side by side, from parameter `first` on; a row of inputs for each output.
inline PatchMatrix matrix_at(const Tensor& weights, Type type, int64_t first, int64_t outputs, int64_t inputs) {
  return {static_cast<const char*>(weights.const_data_ptr()) + first * bytes_of(type),
          weights.stride(0),
          weights.stride(1),
          weights.stride(2),
          inputs,
          1,
          static_cast<int>(outputs),
          static_cast<int>(inputs)};
}
// From outputs back to inputs, of which those from `first` on are wanted.
PatchMatrix transposed(const PatchMatrix& matrix, int first, Type type);

class TrainedBlock {
 public:
  // What a norm turns a map's values, or their gradients, into; with partial sums there is something to do about it.
  struct Partial {
    Tensor values;
    PartialRows rows;
  };
  // From the gradient behind the first (0) or second (1) norm to that before it, in place; `z`: what the norm saw.
  using Through = std::function<void(int norm, Tensor& d, const Tensor& z, Partial& partial)>;

  // `like`: of the type and the device; `weights`: with parameters side by side.
  TrainedBlock(const char* op, const Tensor& like, const Map<const void>& x, const Tensor& weights, int64_t hidden,
               int64_t outputs, const std::string& halo, Stream stream);

  Type type() const { return type_; }
  int hidden() const { return filter_.hidden; }
  int outputs() const { return outputs_; }
  int stored() const { return filter_.stored; }
  const PatchGrid& grid() const { return filter_.grid; }
  int64_t pixels_before() const { return grid().patches() * window_.count(); }  // that the first norm sees
  int64_t pixels() const { return grid().patches() * patch_.count(); }

  // What the three norms see. `partial`: moments are wanted; none for the last one.
  Tensor expand(Partial* partial) const;
  Tensor filter(const Tensor& z1, const Norm& norm, Partial* partial) const;
  // Into a float map; with the sums of `paired` and its product with the map, if there is one, or else moments.
  void project(const Tensor& z2, const Norm& norm, const Map<const void>* paired, const Map<float>& z3,
               Partial& partial) const;

  // Partial sums added up; they live as long as the tensor.
  std::pair<Tensor, ChannelSums> add(Partial& partial, bool moments) const;

  // Gradients of input and weights, contiguous, given that before the last norm.
  void backward(const Map<const void>& d3, Tensor z1, Tensor z2, const Norm& norm1, const Norm& norm2,
                const Through& through, const InputGradient& d_x, void* d_weights) const;

 private:
  Partial partial_of(const PartialRows& rows, int channels) const;
  PatchProduct product(const PatchPixels& pixels, const PatchMatrix& matrix) const;
  Depthwise filter_with(const Norm& norm) const;

  const char* op_;
  Tensor like_;
  Map<const void> x_;
  Tensor weights_;
  Type type_;
  int outputs_;
  Stream stream_;
  Depthwise filter_;
  PatchPixels patch_, window_;  // of the outputs, of the hidden map before the filter
  PatchMatrix expand_, project_;
};

}  // namespace hyperseg::cuda
