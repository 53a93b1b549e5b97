#include "cpu/loss/upsample_cross_entropy.h"

#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "common/contracts/upsample_cross_entropy.h"
#include "cpu/base/bilinear.h"
#include "cpu/base/gradients.h"
#include "cpu/simd/primitives_backward.h"

// Scores at label size exist for one row of labels at a time. While the rows go down the image, the two logit rows
// around them are kept widened, and the backward pass keeps the gradients of these two.
namespace hyperseg::cpu {
namespace {

constexpr int64_t kTile = 256;      // label columns per step
constexpr int64_t kLabelRows = 32;  // per forward task
constexpr int64_t kLogitRows = 16;  // owned by a backward task

// The weights of pixels, [N, H, W], any strides.
template <typename T>
struct PixelWeights {
  const T* data;
  int64_t n, h, w;

  explicit PixelWeights(const Tensor& t)
      : data(static_cast<const T*>(t.const_data_ptr())), n(t.stride(0)), h(t.stride(1)), w(t.stride(2)) {}
  T at(int64_t image, int64_t y, int64_t x) const { return data[image * n + y * h + x * w]; }
};

// int64 or uint8 [N, H, W], any strides.
struct Labels {
  const void* data;
  bool bytes;
  int64_t n, h, w;

  explicit Labels(const Tensor& t)
      : data(t.const_data_ptr()),
        bytes(t.scalar_type() == ScalarType::Byte),
        n(t.stride(0)),
        h(t.stride(1)),
        w(t.stride(2)) {}
  int64_t at(int64_t image, int64_t y, int64_t x) const {
    const int64_t i = image * n + y * h + x * w;
    return bytes ? static_cast<const uint8_t*>(data)[i] : static_cast<const int64_t*>(data)[i];
  }
};

// [classes]; NaN for a weight that is no finite number of at least 0.
template <typename T>
std::vector<T> class_weights(const std::optional<Tensor>& weight, int64_t classes) {
  std::vector<T> found(classes, T(1));
  if (!weight) return found;
  const T* const data = static_cast<const T*>(weight->const_data_ptr());
  for (int64_t c = 0; c < classes; ++c) {
    const T value = data[c * weight->stride(0)];
    found[c] = value >= T(0) && std::isfinite(value) ? value : std::numeric_limits<T>::quiet_NaN();
  }
  return found;
}

// From logits to labels and back, along both axes.
template <typename S>
struct Geometry {
  using T = acc_t<S>;

  Map<const S> logits;
  int64_t images, classes, height, width, padded;
  Axis<T> rows, columns;

  Geometry(const Tensor& logits, const Tensor& labels)
      : logits(read<S>(logits)),
        images(logits.size(0)),
        classes(logits.size(1)),
        height(labels.size(1)),
        width(labels.size(2)),
        padded(round_up(width, kPadding)),
        rows(logits.size(2), height, same_size(logits, labels)),
        columns(logits.size(3), width, same_size(logits, labels)) {}

  static bool same_size(const Tensor& logits, const Tensor& labels) {
    return logits.size(2) == labels.size(1) && logits.size(3) == labels.size(2);
  }
};

template <typename S>
class ScoreRows {
 public:
  using T = acc_t<S>;

  explicit ScoreRows(const Geometry<S>& geometry)
      : g_(geometry),
        line_(geometry.logits.width),
        upper_(geometry.classes * geometry.padded),
        lower_(geometry.classes * geometry.padded),
        exps_(geometry.classes * kTile),
        maximum_(kTile),
        sum_(kTile) {}

  void go_to(int64_t n, int64_t y) {
    if (n != image_) in_upper_ = in_lower_ = -1;
    image_ = n, weight_ = g_.rows.weight[y];
    if (in_upper_ != g_.rows.low[y]) {
      std::swap(upper_, lower_);
      std::swap(in_upper_, in_lower_);
      if (in_upper_ != g_.rows.low[y]) widen(in_upper_ = g_.rows.low[y], upper_);
    }
    if (in_lower_ != g_.rows.high[y]) widen(in_lower_ = g_.rows.high[y], lower_);
  }

  void softmax(int64_t x0, int64_t count) {
    primitives_backward<T>().softmax(g_.classes, count, &upper_[x0], &lower_[x0], g_.padded, weight_, exps_.data(),
                                     kTile, maximum_.data(), sum_.data());
  }

  T score(int64_t c, int64_t x) const {
    const int64_t i = c * g_.padded + x;
    return upper_[i] * (T(1) - weight_) + lower_[i] * weight_;
  }
  T maximum(int64_t i) const { return maximum_[i]; }
  T sum(int64_t i) const { return sum_[i]; }
  const T* exps() const { return exps_.data(); }

 private:
  void widen(int64_t row, std::vector<T>& to) {
    for (int64_t c = 0; c < g_.classes; ++c) {
      for (int64_t x = 0; x < g_.logits.width; ++x) line_[x] = static_cast<T>(*g_.logits.at(image_, c, row, x));
      primitives<T>().widen(line_.data(), 1, g_.columns.low.data(), g_.columns.high.data(), g_.columns.weight.data(),
                            g_.width, &to[c * g_.padded], 1);
    }
  }

  const Geometry<S>& g_;
  int64_t image_ = -1, in_upper_ = -1, in_lower_ = -1;
  T weight_ = 0;
  std::vector<T> line_, upper_, lower_, exps_, maximum_, sum_;
};

// weights: of the pixels' classes, [N, H * W]; 0 where ignored, NaN where the label is no class. losses: [N, H * W],
// multiplied by these weights.
template <typename S, typename T = acc_t<S>>
void pixel_losses(const Geometry<S>& g, const Labels& labels, const std::vector<T>& of_class, int64_t ignore_index,
                  T* losses, T* weights) {
  const int64_t blocks = (g.height + kLabelRows - 1) / kLabelRows;
  torch::stable::parallel_for(0, g.images * blocks, 1, [&](int64_t begin, int64_t end) {
    ScoreRows<S> rows(g);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / blocks, y0 = task % blocks * kLabelRows;
      for (int64_t y = y0; y < std::min(y0 + kLabelRows, g.height); ++y) {
        rows.go_to(n, y);
        for (int64_t x0 = 0; x0 < g.width; x0 += kTile) {
          rows.softmax(x0, std::min(kTile, g.padded - x0));
          for (int64_t x = x0; x < std::min(x0 + kTile, g.width); ++x) {
            const int64_t label = labels.at(n, y, x);
            const int64_t pixel = (n * g.height + y) * g.width + x;
            if (label == ignore_index) {
              losses[pixel] = weights[pixel] = 0;
            } else if (label < 0 || label >= g.classes) {
              losses[pixel] = weights[pixel] = std::numeric_limits<T>::quiet_NaN();
            } else {
              weights[pixel] = of_class[label];
              losses[pixel] =
                  of_class[label] * (std::log(rows.sum(x - x0)) + (rows.maximum(x - x0) - rows.score(label, x)));
            }
          }
        }
      }
    }
  });
}

template <typename T>
struct LossCutOff {
  T value, above, at;  // the share of losses above the value, and at it

  T share(T loss) const { return loss > value ? above : loss == value ? at : std::isnan(loss) ? loss : T(0); }
};

// The cut-off of the plain loss: all pixels have the same share. `sums` are the rows' sums of class weights.
template <typename T>
LossCutOff<T> plain(const std::vector<double>& sums) {
  double total = 0;
  for (double sum : sums) total += sum;
  const T each = T(1) / static_cast<T>(total == 0 ? 1 : total);
  return {-std::numeric_limits<T>::infinity(), each, each};
}

// The cut-off of reference.selection for one image.
template <typename T>
LossCutOff<T> bootstrapped(const T* losses, int64_t pixels, int64_t images, int64_t bootstrap, double threshold) {
  const int64_t k = std::min(bootstrap, pixels);
  const T limit = static_cast<T>(threshold), share = T(1) / static_cast<T>(images);
  const auto larger_than = [&](T value) {
    return std::count_if(losses, losses + pixels, [=](T l) { return l > value; });
  };
  const int64_t large = larger_than(limit);
  if (large > k) return {limit, T(1) / static_cast<T>(large) * share, T(0)};
  std::vector<T> ranked(losses, losses + pixels);
  // NaN first, as in topk: a sort needs a total order.
  std::nth_element(ranked.begin(), ranked.begin() + (k - 1), ranked.end(),
                   [](T a, T b) { return a > b || (std::isnan(a) && !std::isnan(b)); });
  const T value = ranked[k - 1];
  const T above = static_cast<T>(larger_than(value)), all = static_cast<T>(k);
  const T ties = static_cast<T>(std::max<int64_t>(std::count(losses, losses + pixels, value), 1));
  return {value, T(1) / all * share, (all - above) / (all * ties) * share};
}

// The gradients of two adjacent rows of logits, still as wide as the labels.
template <typename S>
class RowGradients {
 public:
  using T = acc_t<S>;

  RowGradients(const Geometry<S>& geometry, S* d_logits)
      : g_(geometry),
        d_logits_(d_logits),
        first_(geometry.classes * geometry.padded),
        second_(geometry.classes * geometry.padded),
        line_(geometry.logits.width) {}

  void start(int64_t n, int64_t row, int64_t owned, int64_t end) {
    image_ = n, row_ = row, owned_ = owned, end_ = end;
    std::fill(first_.begin(), first_.end(), T(0));
    std::fill(second_.begin(), second_.end(), T(0));
  }

  // The first row, and the next one unless `same`.
  T* first(int64_t x) { return &first_[x]; }
  T* second(int64_t x, bool same) { return same ? &first_[x] : &second_[x]; }

  // Write the finished rows that are owned.
  void go_to(int64_t row) {
    for (; row_ < row; ++row_) {
      if (row_ >= owned_ && row_ < end_) write();
      std::swap(first_, second_);
      std::fill(second_.begin(), second_.end(), T(0));
    }
  }

 private:
  void write() {
    const int64_t width = g_.logits.width;
    for (int64_t c = 0; c < g_.classes; ++c) {
      narrow(&first_[c * g_.padded]);
      S* to = d_logits_ + ((image_ * g_.classes + c) * g_.logits.height + row_) * width;
      for (int64_t x = 0; x < width; ++x) to[x] = static_cast<S>(line_[x]);
    }
  }

  // line = the adjoint of widening one row.
  void narrow(const T* wide) {
    const int64_t width = g_.logits.width;
    if (g_.width == 2 * width) {  // the usual case, without look-ups
      for (int64_t x = 0; x < width; ++x) {
        const T before = wide[x ? 2 * x - 1 : 0], after = wide[x + 1 < width ? 2 * x + 2 : 2 * x + 1];
        line_[x] = T(0.75) * (wide[2 * x] + wide[2 * x + 1]) + T(0.25) * (before + after);
      }
      return;
    }
    std::fill(line_.begin(), line_.end(), T(0));
    for (int64_t x = 0; x < g_.width; ++x) {
      line_[g_.columns.low[x]] += wide[x] * (T(1) - g_.columns.weight[x]);
      line_[g_.columns.high[x]] += wide[x] * g_.columns.weight[x];
    }
  }

  const Geometry<S>& g_;
  S* d_logits_;
  int64_t image_ = 0, row_ = 0, owned_ = 0, end_ = 0;
  std::vector<T> first_, second_, line_;
};

// A task owns some rows of logits and traverses all label rows that sample them. The rows at its ends are computed by
// both neighbours, and nothing is shared.
template <typename S, typename T = acc_t<S>>
void differentiate(const Geometry<S>& g, T grad, const Labels& labels, const PixelWeights<T>& weights, S* d_logits) {
  const int64_t height = g.logits.height, blocks = (height + kLogitRows - 1) / kLogitRows;
  torch::stable::parallel_for(0, g.images * blocks, 1, [&](int64_t begin, int64_t end) {
    ScoreRows<S> rows(g);
    RowGradients<S> gradients(g, d_logits);
    std::vector<T> pull(kTile), factor(kTile);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / blocks, owned = task % blocks * kLogitRows, stop = std::min(owned + kLogitRows, height);
      const auto first = std::lower_bound(g.rows.high.begin(), g.rows.high.end(), owned) - g.rows.high.begin();
      const auto last = std::lower_bound(g.rows.low.begin(), g.rows.low.end(), stop) - g.rows.low.begin();
      gradients.start(n, std::max<int64_t>(owned - 1, 0), owned, stop);
      for (int64_t y = first; y < last; ++y) {
        gradients.go_to(g.rows.low[y]);
        const T weight = g.rows.weight[y];
        const bool same = g.rows.high[y] == g.rows.low[y];
        for (int64_t x0 = 0; x0 < g.width; x0 += kTile) {
          const int64_t columns = std::min(kTile, g.width - x0), count = std::min(kTile, g.padded - x0);
          bool any = false;
          std::fill(pull.begin(), pull.end(), T(0));
          for (int64_t i = 0; i < columns; ++i) {
            const T counted = weights.at(n, y, x0 + i);
            if (counted == T(0)) continue;
            const int64_t label = labels.at(n, y, x0 + i);
            const bool known = label >= 0 && label < g.classes;
            pull[i] = known ? grad * counted : std::numeric_limits<T>::quiet_NaN(), any = true;
          }
          if (!any) continue;
          rows.go_to(n, y);
          rows.softmax(x0, count);
          for (int64_t i = 0; i < count; ++i) factor[i] = pull[i] / rows.sum(i);
          T *upper = gradients.first(x0), *lower = gradients.second(x0, same);
          primitives_backward<T>().spread(g.classes, count, rows.exps(), kTile, factor.data(), weight, upper, lower,
                                          g.padded);
          for (int64_t i = 0; i < columns; ++i) {
            if (pull[i] == T(0)) continue;
            const int64_t label = labels.at(n, y, x0 + i);
            if (label < 0 || label >= g.classes) continue;  // its gradients are NaN already
            upper[label * g.padded + i] -= pull[i] * (T(1) - weight);
            lower[label * g.padded + i] -= pull[i] * weight;
          }
        }
      }
      gradients.go_to(stop);
    }
  });
}

}  // namespace

std::tuple<Tensor, Tensor> upsample_cross_entropy(const Tensor& logits, const Tensor& labels,
                                                  const std::optional<Tensor>& weight, int64_t ignore_index,
                                                  int64_t bootstrap, double threshold) {
  Tensor loss, weights;
  with_type(logits, "upsample_cross_entropy", [&](auto type) {
    using S = decltype(type);
    using T = acc_t<S>;
    const Geometry<S> g(logits, labels);
    const ScalarType kind = loss_type(logits);
    loss = torch::stable::new_empty(logits, {}, kind);
    weights = torch::stable::new_empty(logits, {g.images, g.height, g.width}, kind);
    const int64_t pixels = g.height * g.width, rows = g.images * g.height;
    const auto losses = uninitialised<T>(g.images * pixels);
    T* const counted = static_cast<T*>(weights.mutable_data_ptr());
    pixel_losses(g, Labels(labels), class_weights<T>(weight, g.classes), ignore_index, losses.get(), counted);

    // Sums of a row each, added in order: bitwise equal for any number of threads.
    std::vector<double> sums(rows);
    std::vector<LossCutOff<T>> cuts(g.images);
    if (bootstrap) {
      torch::stable::parallel_for(0, g.images, 1, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n)
          cuts[n] = bootstrapped(losses.get() + n * pixels, pixels, g.images, bootstrap, threshold);
      });
    } else {
      torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          double sum = 0;
          for (int64_t x = 0; x < g.width; ++x) sum += static_cast<double>(counted[row * g.width + x]);
          sums[row] = sum;
        }
      });
      std::fill(cuts.begin(), cuts.end(), plain<T>(sums));
    }
    torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const LossCutOff<T>& cut = cuts[row / g.height];
        double sum = 0;
        for (int64_t i = row * g.width; i < (row + 1) * g.width; ++i) {
          const T share = cut.share(losses[i]);
          counted[i] *= share;
          sum += static_cast<double>(losses[i]) * static_cast<double>(share);
        }
        sums[row] = sum;
      }
    });
    double total = 0;
    for (double sum : sums) total += sum;
    *static_cast<T*>(loss.mutable_data_ptr()) = static_cast<T>(total);
  });
  return {loss, weights};
}

Tensor upsample_cross_entropy_backward(const Tensor& grad, const Tensor& logits, const Tensor& labels,
                                       const Tensor& weights) {
  Tensor d_logits = dense_like(logits);
  with_type(logits, "upsample_cross_entropy_backward", [&](auto type) {
    using S = decltype(type);
    using T = acc_t<S>;
    differentiate(Geometry<S>(logits, labels), *static_cast<const T*>(grad.const_data_ptr()), Labels(labels),
                  PixelWeights<T>(weights), static_cast<S*>(d_logits.mutable_data_ptr()));
  });
  return d_logits;
}

}  // namespace hyperseg::cpu
