#include "cpu/decoder/block_training.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>

#include "cpu/simd/primitives_backward.h"

namespace hyperseg::cpu {

// The steps of one patch, in one thread's memory. Gradients are called d<step>: d3 after project, d2 after the
// depthwise filter, d1 after expand.
template <typename S>
class InvertedResidualTraining<S>::Worker {
 public:
  explicit Worker(const InvertedResidualTraining& block)
      : b_(block),
        map_(block.windows_.map),
        stride_(block.windows_.stride),
        front_(2 * stride_ + 2),
        d2_map_(map_ + 2 * kPadding),
        x_(block.input_.channels() * block.input_windows_.map + kPadding),
        z1_(hidden() * map_ + kSlack),
        a1_(hidden() * map_ + kSlack),
        z2_(hidden() * block.inner_ + kSlack),
        a2_(hidden() * block.inner_ + kSlack),
        z3_(outputs() * block.inner_ + kSlack),
        d3_(outputs() * block.inner_ + kSlack),
        d2_(front_ + hidden() * d2_map_ + kSlack),
        d1_(hidden() * map_ + kSlack),
        weights_(block.weights_.parameters),
        w1t_(block.input_.channels() * hidden()),
        w3t_(outputs() * hidden()),
        reversed_(9 * hidden()) {}

  void start(int64_t patch) {
    at_ = b_.windows_.index_of(patch);
    b_.weights_.read(at_.n, at_.gy, at_.gx, 0, b_.weights_.parameters, weights_.data());
  }

  void start_backward(int64_t patch) {
    start(patch);
    run_.transpose(hidden(), channels(), w1(), channels(), w1t_.data(), hidden());
    run_.transpose(outputs(), hidden(), w3(), hidden(), w3t_.data(), outputs());
    for (int64_t i = 0; i < 9 * hidden(); ++i) reversed_[i] = w2()[i / 9 * 9 + 8 - i % 9];
  }

  // z1 of the input's window.
  void expand() {
    b_.input_.read(b_.input_windows_, at_, x_.data());
    const int64_t map = b_.input_windows_.map;
    run_.gemm({.m = hidden(),
               .n = map,
               .k = channels(),
               .a = w1(),
               .lda = channels(),
               .b = x_.data(),
               .ldb = map,
               .c = z1_.data(),
               .ldc = map});
  }

  void forward_to_filter() {
    if (b_.own_halo_) {
      expand();
    } else {
      b_.windows_.read(b_.expanded_map_, at_, z1_.data());
    }
    activate(0, map_, z1_.data(), a1_.data());
    std::fill(a1_.begin() + hidden() * map_, a1_.end(), T(0));
    back_.filter(hidden(), b_.inner_, stride_, a1_.data(), map_, w2(), z2_.data(), b_.inner_);
    clear_spare_results(z2_.data());
  }

  void forward_to_project() {
    forward_to_filter();
    activate(1, b_.inner_, z2_.data(), a2_.data());
    run_.gemm({.m = outputs(),
               .n = b_.inner_,
               .k = hidden(),
               .a = w3(),
               .lda = hidden(),
               .b = a2_.data(),
               .ldb = b_.inner_,
               .c = z3_.data(),
               .ldc = b_.inner_});
  }

  void statistics_of_input(T* mean, T* squares) const {
    const Windows& w = b_.input_windows_;
    back_.statistics(hidden(), w.map, b_.valid_input_.data(), w.rows * w.stride, z1_.data(), w.map, mean, squares);
  }
  void statistics_of_filter(T* mean, T* squares) const { statistics(hidden(), z2_.data(), mean, squares); }
  void statistics_of_project(T* mean, T* squares) const { statistics(outputs(), z3_.data(), mean, squares); }

  // d3, through the last norm. kept_z3: the output of `forward_to_project` from an earlier pass.
  void read_gradient(const Map<const S>& gradient) {
    b_.windows_.read_results(gradient, at_, b_.inner_, d3_.data(), b_.inner_);
  }
  void norm3(const T* kept_z3) {
    norm_gradient(2, b_.inner_, b_.valid_results_, kept_z3, b_.inner_, d3_.data(), b_.inner_);
  }
  void sums3(T* sum, T* by_value) const {
    sums(2, b_.inner_, d3_.data(), b_.inner_, z3_.data(), b_.inner_, sum, by_value);
  }

  // d2 before the gradient of its norm; needs z2 and d3.
  void through_project() {
    activate(1, b_.inner_, z2_.data(), a2_.data());
    run_.gemm({.m = hidden(),
               .n = b_.inner_,
               .k = outputs(),
               .a = w3t_.data(),
               .lda = outputs(),
               .b = d3_.data(),
               .ldb = b_.inner_,
               .c = d2(),
               .ldc = d2_map_});
    back_.relu6_gradient(hidden(), b_.inner_, a2_.data(), b_.inner_, d2(), d2_map_);
  }
  void sums2(T* sum, T* by_value) const { sums(1, b_.inner_, d2(), d2_map_, z2_.data(), b_.inner_, sum, by_value); }
  void norm2() { norm_gradient(1, b_.inner_, b_.valid_results_, z2_.data(), b_.inner_, d2(), d2_map_); }

  // d1 of the hidden window, before the gradient of its norm.
  void through_filter() {
    back_.filter(hidden(), map_, stride_, d2_.data(), d2_map_, reversed_.data(), d1_.data(), map_);
    back_.relu6_gradient(hidden(), map_, a1_.data(), map_, d1_.data(), map_);
  }

  // halo="neighbour": instead of `through_filter`, the sum of all patches' contributions to this patch's part of d1.
  void read_hidden_gradient() {
    b_.input_windows_.read(b_.expanded_map_, at_, z1_.data());
    b_.input_windows_.read(b_.d_expanded_map_, at_, d1_.data());
  }
  void sums1(T* sum, T* by_value) const {
    const int64_t map = b_.input_windows_.map;
    sums(0, map, d1_.data(), map, z1_.data(), map, sum, by_value);
  }
  void norm1() {
    const int64_t map = b_.input_windows_.map;
    norm_gradient(0, map, b_.valid_input_, z1_.data(), map, d1_.data(), map);
  }

  void later_weights(T* to) const {
    const int64_t at2 = channels() * hidden(), at3 = at2 + 9 * hidden();
    back_.filter_weights(hidden(), b_.inner_, stride_, a1_.data(), map_, d2(), d2_map_, to + at2);
    back_.gemm_nt(outputs(), hidden(), b_.inner_, d3_.data(), b_.inner_, a2_.data(), b_.inner_, to + at3, hidden());
  }

  void first_weights_and_input(T* d_weights, T* d_input) const {
    const int64_t map = b_.input_windows_.map, first = b_.input_.first();
    back_.gemm_nt(hidden(), channels(), map, d1_.data(), map, x_.data(), map, d_weights, channels());
    run_.gemm({.m = channels() - first,
               .n = map,
               .k = hidden(),
               .a = w1t_.data() + first * hidden(),
               .lda = hidden(),
               .b = d1_.data(),
               .ldb = map,
               .c = d_input,
               .ldc = map});
  }

  void read_input() { b_.input_.read(b_.input_windows_, at_, x_.data()); }
  const Windows::PatchIndex& place() const { return at_; }
  const T* z1() const { return z1_.data(); }
  const T* z3() const { return z3_.data(); }
  const T* d1() const { return d1_.data(); }

 private:
  static constexpr int64_t kSlack = 4 * kPadding;  // vector loads reach beyond the last map

  int64_t hidden() const { return b_.hidden_; }
  int64_t outputs() const { return b_.outputs_; }
  int64_t channels() const { return b_.input_.channels(); }
  const T* w1() const { return weights_.data(); }
  const T* w2() const { return w1() + channels() * hidden(); }
  const T* w3() const { return w2() + 9 * hidden(); }
  T* d2() { return d2_.data() + front_; }
  const T* d2() const { return d2_.data() + front_; }

  // Between and beyond the rows of its results the filter mixes rows and channels. A NaN of one channel must not get
  // from there into the statistics of another, where it is multiplied by 0.
  void clear_spare_results(T* z) const {
    for (int64_t c = 0; c < hidden(); ++c, z += b_.inner_) {
      for (int64_t y = 1; y < b_.windows_.ph; ++y) std::fill_n(z + y * stride_ - 2, 2, T(0));
      std::fill(z + b_.windows_.ph * stride_ - 2, z + b_.inner_, T(0));
    }
  }

  void activate(int which, int64_t count, const T* z, T* a) const {
    const NormState<T>& norm = b_.norms_[which];
    back_.norm_relu6(hidden(), count, z, count, norm.mean.data(), norm.factor.data(), norm.shift.data(), a);
  }
  void statistics(int64_t channels, const T* z, T* mean, T* squares) const {
    const int64_t pixels = b_.windows_.ph * b_.windows_.pw;
    back_.statistics(channels, b_.inner_, b_.valid_results_.data(), pixels, z, b_.inner_, mean, squares);
  }
  void norm_gradient(int which, int64_t count, const std::vector<T>& valid, const T* z, int64_t map, T* d,
                     int64_t d_map) const {
    const NormState<T>& norm = b_.norms_[which];
    if (norm.slope.empty()) return;
    back_.norm_gradient(b_.widths(which), count, valid.data(), z, map, norm.mean.data(), norm.slope.data(),
                        norm.tilt.data(), norm.level.data(), d, d_map);
  }
  void sums(int which, int64_t count, const T* d, int64_t d_map, const T* z, int64_t map, T* sum, T* by_value) const {
    back_.gradient_sums(b_.widths(which), count, d, d_map, by_value ? z : nullptr, map, b_.norms_[which].mean.data(),
                        sum, by_value);
  }

  const InvertedResidualTraining& b_;
  const Primitives<T>& run_ = primitives<T>();
  const PrimitivesBackward<T>& back_ = primitives_backward<T>();
  int64_t map_, stride_, front_, d2_map_;  // d2 has zeros around each map, which the filter's adjoint reads
  Windows::PatchIndex at_{};
  std::vector<T> x_, z1_, a1_, z2_, a2_, z3_, d3_, d2_, d1_;
  std::vector<T> weights_, w1t_, w3t_, reversed_;
};

template <typename S>
InvertedResidualTraining<S>::InvertedResidualTraining(const LevelInput<S>& input, const PatchWeights<S>& weights,
                                                      int64_t images, int64_t height, int64_t width, int64_t grid_h,
                                                      int64_t grid_w, int64_t hidden, int64_t outputs, bool own_halo)
    : input_(input),
      weights_(weights),
      hidden_(hidden),
      outputs_(outputs),
      own_halo_(own_halo),
      windows_(images, height, width, grid_h, grid_w, 1, 1, "reflect"),
      input_windows_(images, height, width, grid_h, grid_w, own_halo, own_halo, "reflect"),
      inner_(round_up(windows_.ph * windows_.stride, kPadding)),
      valid_results_(inner_),
      valid_input_(input_windows_.map) {
  for (int64_t y = 0; y < windows_.ph; ++y)
    std::fill_n(valid_results_.begin() + y * windows_.stride, windows_.pw, T(1));
  std::fill_n(valid_input_.begin(), input_windows_.rows * input_windows_.stride, T(1));
}

template <typename S>
template <typename Body>
void InvertedResidualTraining<S>::each_patch(const Body& body) const {
  torch::stable::parallel_for(0, windows_.patches, 1, [&](int64_t begin, int64_t end) {
    Worker worker(*this);
    for (int64_t patch = begin; patch < end; ++patch) body(worker, patch);
  });
}

template <typename S>
void InvertedResidualTraining<S>::fold_norms(const std::vector<T>& bias) {
  for (int which = 0; which < 3; ++which) {
    NormState<T>& norm = norms_[which];
    norm.mean.assign(widths(which), T(0));
    norm.factor.assign(widths(which), T(1));
    norm.shift.assign(widths(which), T(0));
    if (!bias.empty()) std::copy_n(bias.begin() + which * hidden_, widths(which), norm.shift.begin());
  }
}

template <typename S>
void InvertedResidualTraining<S>::normalise(const std::vector<T>& scale, const std::vector<T>& shift,
                                            const std::vector<T>& mean, const std::vector<T>& variance, double eps) {
  batch_ = true;
  for (int which = 0; which < 3; ++which) {
    NormState<T>& norm = norms_[which];
    const auto at = which * hidden_, end = at + widths(which);
    norm.mean.assign(mean.begin() + at, mean.begin() + end);
    norm.shift.assign(shift.begin() + at, shift.begin() + end);
    norm.factor.resize(widths(which));
    rstd_[which].resize(widths(which));
    for (int64_t i = 0; i < widths(which); ++i) {
      rstd_[which][i] = 1 / std::sqrt(static_cast<double>(variance[at + i]) + eps);
      norm.factor[i] = static_cast<T>(static_cast<double>(scale[at + i]) * rstd_[which][i]);
    }
  }
}

// halo="neighbour": the expanded map of the whole image and, if requested, the statistics for its norm.
template <typename S>
void InvertedResidualTraining<S>::expand_all(Partials<T>* mean, Partials<T>* squares) {
  const int64_t area = windows_.height * windows_.width;
  expanded_ = uninitialised<T>(windows_.images * hidden_ * area);
  const Map<T> map{expanded_.get(), hidden_, windows_.height, windows_.width, hidden_ * area, area, windows_.width, 1};
  expanded_map_ = {map.data, map.channels, map.height, map.width, map.stride_n, map.stride_c, map.stride_h, 1};
  each_patch([&](Worker& worker, int64_t patch) {
    worker.start(patch);
    worker.expand();
    if (mean) worker.statistics_of_input(mean->of(patch), squares->of(patch));
    input_windows_.write_results(worker.z1(), input_windows_.map, worker.place(), map);
  });
}

// Turn mean and variance of `number` values into those of all processes' values, by the sums of values and of squares.
template <typename S>
void InvertedResidualTraining<S>::synchronise_statistics(double number, double* mean, double* variance,
                                                         int64_t width) const {
  std::vector<double> sums(2 * width + 1);
  for (int64_t i = 0; i < width; ++i) {
    sums[i] = number * mean[i];
    sums[width + i] = number * (variance[i] + mean[i] * mean[i]);
  }
  sums.back() = number;
  add_processes_(sums);
  for (int64_t i = 0; i < width; ++i) {
    mean[i] = sums[i] / sums.back();
    const double difference = sums[width + i] / sums.back() - mean[i] * mean[i];
    variance[i] = difference < 0 ? 0 : difference;  // keeps NaN
  }
}

// Set one norm from the statistics of the patches, each over `number` values.
template <typename S>
void InvertedResidualTraining<S>::set_norm(int which, int64_t at, int64_t width, double number, const Partials<T>& mean,
                                           const Partials<T>& squares, const std::vector<T>& scale,
                                           const std::vector<T>& shift, double eps, std::vector<double>& means,
                                           std::vector<double>& variances) {
  const std::vector<double> sum = mean.total(), within = squares.total();
  std::vector<double> between(width);
  const double patches = static_cast<double>(windows_.patches);
  for (int64_t patch = 0; patch < windows_.patches; ++patch)
    for (int64_t i = 0; i < width; ++i) {
      const double distance = static_cast<double>(mean.values[patch * width + i]) - sum[i] / patches;
      between[i] += distance * distance;
    }
  for (int64_t i = 0; i < width; ++i) {
    means[at + i] = sum[i] / patches;
    variances[at + i] = (within[i] / number + between[i]) / patches;
  }
  if (add_processes_) synchronise_statistics(number * patches, &means[at], &variances[at], width);
  NormState<T>& norm = norms_[which];
  norm.mean.resize(width), norm.factor.resize(width), norm.shift.resize(width);
  for (int64_t i = 0; i < width; ++i) {
    norm.mean[i] = static_cast<T>(means[at + i]);
    norm.factor[i] = static_cast<T>(static_cast<double>(scale[at + i]) / std::sqrt(variances[at + i] + eps));
    norm.shift[i] = shift[at + i];
  }
}

template <typename S>
void InvertedResidualTraining<S>::forward(const std::vector<T>& scale, const std::vector<T>& shift, double eps,
                                          const Map<S>& y, std::vector<double>& mean, std::vector<double>& variance) {
  const int64_t results = outputs_ * inner_;
  const double pixels = static_cast<double>(windows_.ph * windows_.pw);
  Partials<T> means(windows_.patches, hidden_), squares(windows_.patches, hidden_);
  if (own_halo_) {
    each_patch([&](Worker& worker, int64_t patch) {
      worker.start(patch);
      worker.expand();
      worker.statistics_of_input(means.of(patch), squares.of(patch));
    });
  } else {
    expand_all(&means, &squares);
  }
  const double window = static_cast<double>(input_windows_.rows * input_windows_.stride);
  set_norm(0, 0, hidden_, window, means, squares, scale, shift, eps, mean, variance);
  each_patch([&](Worker& worker, int64_t patch) {
    worker.start(patch);
    worker.forward_to_filter();
    worker.statistics_of_filter(means.of(patch), squares.of(patch));
  });
  set_norm(1, hidden_, hidden_, pixels, means, squares, scale, shift, eps, mean, variance);
  Partials<T> last_means(windows_.patches, outputs_), last_squares(windows_.patches, outputs_);
  const auto z3 = uninitialised<T>(windows_.patches * results);
  each_patch([&](Worker& worker, int64_t patch) {
    worker.start(patch);
    worker.forward_to_project();
    worker.statistics_of_project(last_means.of(patch), last_squares.of(patch));
    std::copy_n(worker.z3(), results, z3.get() + patch * results);
  });
  set_norm(2, 2 * hidden_, outputs_, pixels, last_means, last_squares, scale, shift, eps, mean, variance);
  const NormState<T>& norm = norms_[2];
  torch::stable::parallel_for(0, windows_.patches, 1, [&](int64_t begin, int64_t end) {
    for (int64_t patch = begin; patch < end; ++patch) {
      T* values = z3.get() + patch * results;
      for (int64_t o = 0; o < outputs_; ++o)
        for (int64_t p = o * inner_; p < (o + 1) * inner_; ++p)
          values[p] = (values[p] - norm.mean[o]) * norm.factor[o] + norm.shift[o];
      windows_.write_results(values, inner_, windows_.index_of(patch), y);
    }
  });
}

// Compute the gradients of one norm's parameters and, for batch norms, the coefficients of its input gradient.
template <typename S>
void InvertedResidualTraining<S>::set_gradient(int which, int64_t at, double number, const Partials<T>& sum,
                                               const Partials<T>& by_value) {
  const std::vector<double> sums = sum.total();
  std::copy(sums.begin(), sums.end(), d_shift.begin() + at);
  if (!batch_) return;
  const std::vector<double> weighted = by_value.total();
  const size_t width = sums.size();
  for (size_t i = 0; i < width; ++i) d_scale[at + i] = weighted[i] * rstd_[which][i];
  std::vector<double> all = sums;
  all.insert(all.end(), weighted.begin(), weighted.end());
  all.push_back(number);
  if (add_processes_) add_processes_(all);
  NormState<T>& norm = norms_[which];
  norm.slope = norm.factor;
  norm.tilt.resize(width), norm.level.resize(width);
  for (size_t i = 0; i < width; ++i) {
    const double factor = norm.factor[i], rstd = rstd_[which][i];
    norm.tilt[i] = static_cast<T>(-factor * rstd * rstd * all[width + i] / all.back());
    norm.level[i] = static_cast<T>(-factor * all[i] / all.back());
  }
}

template <typename S>
void InvertedResidualTraining<S>::fold_hidden_gradients(const T* windows) {
  const int64_t area = windows_.height * windows_.width;
  d_expanded_ = uninitialised<T>(windows_.images * hidden_ * area);
  d_expanded_map_ = expanded_map_;
  d_expanded_map_.data = d_expanded_.get();
  torch::stable::parallel_for(0, windows_.images * hidden_, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      windows_.fold(windows, hidden_, i / hidden_, i % hidden_, d_expanded_.get() + i * area);
  });
}

template <typename S>
void InvertedResidualTraining<S>::backward(const Map<const S>& gradient, T* d_weights) {
  const int64_t patches = windows_.patches, results = outputs_ * inner_, parameters = weights_.parameters;
  const int64_t passed = (input_.channels() - input_.first()) * input_windows_.map;
  const double pixels = static_cast<double>(patches * windows_.ph * windows_.pw);
  const double inputs = static_cast<double>(patches * input_windows_.rows * input_windows_.stride);
  d_shift.assign(2 * hidden_ + outputs_, 0);
  d_scale.assign(2 * hidden_ + outputs_, 0);
  d_input_ = uninitialised<T>(patches * passed);
  Partials<T> sum1(patches, hidden_), sum2(patches, hidden_), sum3(patches, outputs_);
  Partials<T> by_value1(patches, hidden_), by_value2(patches, hidden_), by_value3(patches, outputs_);
  if (!own_halo_) expand_all(nullptr, nullptr);

  std::unique_ptr<T[]> z3;
  if (batch_) {
    z3 = uninitialised<T>(patches * results);
    each_patch([&](Worker& worker, int64_t patch) {
      worker.start(patch);
      worker.forward_to_project();
      worker.read_gradient(gradient);
      worker.sums3(sum3.of(patch), by_value3.of(patch));
      std::copy_n(worker.z3(), results, z3.get() + patch * results);
    });
    set_gradient(2, 2 * hidden_, pixels, sum3, by_value3);
  }
  // From the output to d2, before the gradient of its norm.
  const auto to_filter = [&](Worker& worker, int64_t patch) {
    worker.start_backward(patch);
    worker.forward_to_filter();
    worker.read_gradient(gradient);
    if (!batch_) worker.sums3(sum3.of(patch), nullptr);
    if (batch_) worker.norm3(z3.get() + patch * results);
    worker.through_project();
    if (!batch_) worker.sums2(sum2.of(patch), nullptr);
  };
  if (batch_) {
    each_patch([&](Worker& worker, int64_t patch) {
      to_filter(worker, patch);
      worker.sums2(sum2.of(patch), by_value2.of(patch));
    });
    set_gradient(1, hidden_, pixels, sum2, by_value2);
  }
  const auto to_expand = [&](Worker& worker, int64_t patch) {
    to_filter(worker, patch);
    worker.norm2();
    worker.through_filter();
  };
  if (own_halo_) {
    if (batch_) {
      each_patch([&](Worker& worker, int64_t patch) {
        to_expand(worker, patch);
        worker.sums1(sum1.of(patch), by_value1.of(patch));
      });
      set_gradient(0, 0, inputs, sum1, by_value1);
    }
    each_patch([&](Worker& worker, int64_t patch) {
      to_expand(worker, patch);
      worker.later_weights(d_weights + patch * parameters);
      if (!batch_) worker.sums1(sum1.of(patch), nullptr);
      worker.norm1();
      worker.first_weights_and_input(d_weights + patch * parameters, d_input_.get() + patch * passed);
    });
  } else {
    auto d1 = uninitialised<T>(patches * hidden_ * windows_.map);
    each_patch([&](Worker& worker, int64_t patch) {
      to_expand(worker, patch);
      worker.later_weights(d_weights + patch * parameters);
      std::copy_n(worker.d1(), hidden_ * windows_.map, d1.get() + patch * hidden_ * windows_.map);
    });
    fold_hidden_gradients(d1.get());
    d1.reset();
    each_patch([&](Worker& worker, int64_t patch) {
      worker.start(patch);
      worker.read_hidden_gradient();
      worker.sums1(sum1.of(patch), batch_ ? by_value1.of(patch) : nullptr);
    });
    if (batch_) set_gradient(0, 0, inputs, sum1, by_value1);
    each_patch([&](Worker& worker, int64_t patch) {
      worker.start_backward(patch);
      worker.read_hidden_gradient();
      worker.norm1();
      worker.read_input();
      worker.first_weights_and_input(d_weights + patch * parameters, d_input_.get() + patch * passed);
    });
  }
  if (!batch_) {
    set_gradient(0, 0, inputs, sum1, by_value1);
    set_gradient(1, hidden_, pixels, sum2, by_value2);
    set_gradient(2, 2 * hidden_, pixels, sum3, by_value3);
  }
}

template class InvertedResidualTraining<float>;
template class InvertedResidualTraining<double>;
template class InvertedResidualTraining<torch::headeronly::Half>;
template class InvertedResidualTraining<torch::headeronly::BFloat16>;

}  // namespace hyperseg::cpu
