#pragma once

#include <functional>
#include <string>
#include <utility>

#include "cuda/device/tensors.h"
#include "cuda/training/batch_norm.h"
#include "cuda/training/depthwise.h"
#include "cuda/training/level_gradient.h"
#include "cuda/training/patch_gemm.h"

// An inverted residual in training: the sequence of its kernels and their workspaces. The backward pass recomputes the
// hidden maps from the input.
namespace hyperseg::cuda {

inline int64_t bytes_of(Type type) { return type == Type::kFloat ? 4 : 2; }
inline Tensor floats(const Tensor& like, int64_t count) {
  return torch::stable::new_empty(like, {count}, ScalarType::Float);
}
inline Tensor values(const Tensor& like, int64_t count) { return torch::stable::new_empty(like, {count}); }
inline float* data(Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }
inline ChannelVector vector_of(const char* op, const Tensor& t) {
  return {const_cast<void*>(t.const_data_ptr()), type_of(op, t), t.stride(0), 0};
}
inline PatchGrid grid_of(const Tensor& weights, const Map<const void>& x) {
  const int64_t rows = weights.size(1), columns = weights.size(2);
  return {weights.size(0), rows, columns, x.height / rows, x.width / columns};
}

// A matrix of contiguous parameters, from parameter `first` on, with one row of inputs per output.
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
// The transposed matrix, from outputs to inputs, without the inputs before `first`.
PatchMatrix transposed(const PatchMatrix& matrix, int first, Type type);

class TrainingBlock {
 public:
  // Partial sums of a norm's input, or of its gradient.
  struct Partial {
    Tensor values;
    PartialRows rows;
  };
  // Take the sums of the gradient `d` after the first (0) or second (1) norm, and of it times the norm's input z;
  // return factors: the gradient before the norm is factors[0] * d + factors[1] * z + factors[2]. None: it is d.
  using Through = std::function<const float*(int norm, Partial& partial)>;

  // `like`: a tensor of the type and on the device of the block; `weights`: with contiguous parameters.
  TrainingBlock(const char* op, const Tensor& like, const Map<const void>& x, const Tensor& weights, int64_t hidden,
                int64_t outputs, const std::string& halo, Stream stream);

  Type type() const { return type_; }
  int hidden() const { return filter_.hidden; }
  int outputs() const { return outputs_; }
  int stored() const { return filter_.stored; }
  const PatchGrid& grid() const { return filter_.grid; }
  int64_t pixels_before() const { return grid().patches() * window_.count(); }  // pixels of the first norm's input
  int64_t pixels() const { return grid().patches() * patch_.count(); }

  // The inputs of the three norms. `partial`: receives their moments if given; not for the last one.
  Tensor expand(Partial* partial) const;
  Tensor filter(const Tensor& z1, const ScaleShift& norm, Partial* partial) const;
  // Write a float map, with the sums of `paired` and of `paired` times the map if it is given, else with moments.
  void project(const Tensor& z2, const ScaleShift& norm, const Map<const void>* paired, const Map<float>& z3,
               Partial& partial) const;

  // Sum the partial sums; the sums are valid as long as the returned tensor.
  std::pair<Tensor, ChannelSums> add(Partial& partial, bool moments) const;

  // The sums of all processes of a group and their number of pixels, as BatchNorm takes them.
  Tensor synchronise(const ChannelSums& sums, double count, const std::string& group) const;

  // The input of the last norm, and factors as of Through.
  struct LastNorm {
    Map<const float> z3;
    const float* factors = nullptr;
  };
  // Compute the gradients of input and weights, contiguous, from the gradient after the last norm.
  void backward(const Tensor& grad, const LastNorm& last, Tensor z1, Tensor z2, const ScaleShift& norm1,
                const ScaleShift& norm2, const Through& through, const InputGradient& d_x, void* d_weights) const;

 private:
  // The first part of backward, kernel by kernel: the gradients of project and, in d2, of z2; returns the sums of d2.
  Partial project_backward(const Tensor& grad, const LastNorm& last_norm, const Tensor& z2, const ScaleShift& norm,
                           Tensor& d2, void* d_weights) const;
  Partial partial_of(const PartialRows& rows, int channels) const;
  PatchGemm gemm(const PatchPixels& pixels, const PatchMatrix& matrix) const;
  PatchDepthwise filter_with(const ScaleShift& norm) const;

  const char* op_;
  Tensor like_;
  Map<const void> x_;
  Tensor weights_;
  Type type_;
  int outputs_;
  Stream stream_;
  PatchDepthwise filter_;
  PatchPixels patch_, window_;  // of the outputs, and of the hidden map before the filter
  PatchMatrix expand_, project_;
};

}  // namespace hyperseg::cuda
