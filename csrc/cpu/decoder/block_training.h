#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/base/patch_weights.h"
#include "cpu/decoder/level_input.h"

// The inverted residual in training: its forward pass with batch norms, and its backward pass with folded norms or
// batch norms. Every pass recomputes a patch's hidden maps; only small results are kept between passes.
// halo="neighbour" also keeps the expanded map and its gradient, because patches read those of their neighbours.
namespace hyperseg::cpu {

// (z - mean) * factor + shift; and its gradient, for batch statistics slope * g + tilt * (z - mean) + level.
template <typename T>
struct NormState {
  std::vector<T> mean, factor, shift;
  std::vector<T> slope, tilt, level;
};

// Replace sums by those over all processes of a group.
using AddProcesses = std::function<void(std::vector<double>&)>;

template <typename S>
class InvertedResidualTraining {
 public:
  using T = acc_t<S>;

  InvertedResidualTraining(const LevelInput<S>& input, const PatchWeights<S>& weights, int64_t images, int64_t height,
                           int64_t width, int64_t grid_h, int64_t grid_w, int64_t hidden, int64_t outputs,
                           bool own_halo);

  // Use folded norms: `bias` is empty or [2 * hidden + outputs].
  void fold_norms(const std::vector<T>& bias);

  // Use batch norms of all processes' values, unless `add` is empty. The gradients of the norms stay those of this one.
  void synchronise(AddProcesses add) { add_processes_ = std::move(add); }

  // Compute y with batch norms, and their statistics: mean and biased variance.
  void forward(const std::vector<T>& scale, const std::vector<T>& shift, double eps, const Map<S>& y,
               std::vector<double>& mean, std::vector<double>& variance);

  // Use norms with these statistics, for `backward`.
  void normalise(const std::vector<T>& scale, const std::vector<T>& shift, const std::vector<T>& mean,
                 const std::vector<T>& variance, double eps);

  // d_weights: [patches, P]. Afterwards `input_gradient` is valid, and d_shift and d_scale are the gradients of the
  // norms ([2 * hidden + outputs]; d_scale only for batch norms).
  void backward(const Map<const S>& gradient, T* d_weights);

  // The gradients of the input's channels, for LevelInput::scatter.
  const T* input_gradient(int64_t n, int64_t c, T* plane) const {
    input_windows_.fold(d_input_.get(), input_.channels() - input_.first(), n, c, plane);
    return plane;
  }
  std::vector<double> d_shift, d_scale;

 private:
  class Worker;

  template <typename Body>
  void each_patch(const Body& body) const;
  void expand_all(Partials<T>* mean, Partials<T>* squares);
  void set_norm(int which, int64_t at, int64_t width, double number, const Partials<T>& mean,
                const Partials<T>& squares, const std::vector<T>& scale, const std::vector<T>& shift, double eps,
                std::vector<double>& means, std::vector<double>& variances);
  void synchronise_statistics(double number, double* mean, double* variance, int64_t width) const;
  void set_gradient(int which, int64_t at, double number, const Partials<T>& sum, const Partials<T>& by_value);
  void fold_hidden_gradients(const T* windows);
  int64_t widths(int which) const { return which == 2 ? outputs_ : hidden_; }

  const LevelInput<S>& input_;
  PatchWeights<S> weights_;
  int64_t hidden_, outputs_;
  bool own_halo_, batch_ = false;
  Windows windows_, input_windows_;             // of the hidden maps; of the input
  int64_t inner_;                               // positions of a patch's outputs, in the stride of a window
  std::vector<T> valid_results_, valid_input_;  // 1 where a position belongs to the patch or the input's window
  NormState<T> norms_[3];
  std::vector<double> rstd_[3];
  AddProcesses add_processes_;
  std::unique_ptr<T[]> d_input_;                // of every input window
  std::unique_ptr<T[]> expanded_, d_expanded_;  // halo="neighbour": [N, hidden, H, W]
  Map<const T> expanded_map_, d_expanded_map_;
};

}  // namespace hyperseg::cpu
