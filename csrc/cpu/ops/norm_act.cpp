#include "common/contracts/norm_act.h"

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "cpu/base/tensors.h"
#include "cpu/training/channels.h"

namespace hyperseg::cpu {
namespace {

Tensor new_values(const Tensor& like, std::vector<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes, precise_type(like.scalar_type()));
}

// The maps of a call, and what each channel has.
template <typename T>
class Maps {
 public:
  Maps(const Tensor& x, const Tensor& mean, const Tensor& scale, const Tensor& shift, const std::optional<Tensor>& gate,
       const std::string& activation)
      : parts(x.size(0), x.size(2) * x.size(3), x.size(1)),
        channels(x.size(1)),
        x_(precise(x, MemoryFormat::ChannelsLast)),
        mean_(mean),
        scale_(scale),
        shift_(shift),
        gate_(gate ? *gate : scale),
        gated_(gate.has_value()),
        act_(activation_of(activation)) {}

  NormAct<T> block(int64_t image, int64_t pixel, int64_t count) const {
    return {channels,     count,        data<T>(x_) + pixel * channels,      channels, mean_.row(),
            scale_.row(), shift_.row(), gated_ ? gate_.row(image) : nullptr, act_};
  }

  const Parts parts;
  const int64_t channels;

 private:
  Tensor x_;
  PerChannel<T> mean_, scale_, shift_, gate_;
  bool gated_;
  Activation act_;
};

std::tuple<Tensor, Tensor> channel_moments(const Tensor& x) {
  check_map("channel_moments", "x", x);
  const int64_t channels = x.size(1);
  Tensor mean = new_values(x, {channels}), variance = new_values(x, {channels});
  const Tensor dense = precise(x, MemoryFormat::ChannelsLast);
  with_precise(x, [&](auto type) {
    using T = decltype(type);
    const Parts parts(x.size(0), x.size(2) * x.size(3), channels);
    // Of each part: its mean, and the sum of squares around it.
    std::vector<double> found(parts.count() * 2 * channels, 0.0);
    parts.for_each([&](int64_t part, int64_t) {
      const auto moments = norm_act_primitives<T>().moments;
      double* const sums = found.data() + part * 2 * channels;
      double* const squares = sums + channels;
      std::vector<T> around(round_up(channels, kPadding), T(0));
      bool first = true;
      parts.for_blocks(part, [&](int64_t pixel, int64_t count) {
        const T* const block = data<T>(dense) + pixel * channels;
        if (first) {  // around the mean of the first block: then squares do not cancel
          moments(channels, count, block, around.data(), sums, squares);
          for (int64_t c = 0; c < channels; ++c) around[c] = T(sums[c] / double(count));
          std::fill_n(sums, 2 * channels, 0.0);
          first = false;
        }
        moments(channels, count, block, around.data(), sums, squares);
      });
      const double count = double(parts.size(part));
      for (int64_t c = 0; c < channels; ++c) {
        squares[c] -= sums[c] * sums[c] / count;
        sums[c] = double(around[c]) + sums[c] / count;
      }
    });
    double number = 0;
    std::vector<double> middle(channels, 0.0), spread(channels, 0.0);
    for (int64_t part = 0; part < parts.count(); ++part) {
      const double count = double(parts.size(part)), share = count / (number + count);
      const double* const sums = found.data() + part * 2 * channels;
      for (int64_t c = 0; c < channels; ++c) {
        const double apart = sums[c] - middle[c];
        spread[c] += sums[channels + c] + apart * apart * number * share;
        middle[c] += apart * share;
      }
      number += count;
    }
    for (int64_t c = 0; c < channels; ++c) {
      mutable_data<T>(mean)[c] = T(middle[c]);
      mutable_data<T>(variance)[c] = T(std::max(spread[c], 0.0) / number);
    }
  });
  return {mean, variance};
}

Tensor norm_act(const Tensor& x, const Tensor& scale, const Tensor& shift, std::optional<Tensor> gate,
                std::string activation) {
  constexpr char kName[] = "norm_act";
  check_norm_act(kName, x, {{"scale", scale}, {"shift", shift}}, activation);
  check_gate(kName, "gate", gate, x);
  Tensor out = new_pixels(x, x.size(1), x.size(2), x.size(3));
  with_precise(x, [&](auto type) {
    using T = decltype(type);
    const Maps<T> maps(x, scale, scale, shift, gate, activation);
    maps.parts.for_each([&](int64_t part, int64_t image) {
      maps.parts.for_blocks(part, [&](int64_t pixel, int64_t count) {
        norm_act_primitives<T>().apply(maps.block(image, pixel, count), mutable_data<T>(out) + pixel * maps.channels,
                                       nullptr, maps.channels);
      });
    });
  });
  return finish(out, x);
}

Tensor norm_act_pool(const Tensor& x, const Tensor& scale, const Tensor& shift, std::string activation) {
  check_norm_act("norm_act_pool", x, {{"scale", scale}, {"shift", shift}}, activation);
  Tensor out = new_values(x, {x.size(0), x.size(1)});
  with_precise(x, [&](auto type) {
    using T = decltype(type);
    const Maps<T> maps(x, scale, scale, shift, std::nullopt, activation);
    const int64_t channels = maps.channels;
    std::vector<double> found(maps.parts.count() * channels, 0.0);
    maps.parts.for_each([&](int64_t part, int64_t image) {
      maps.parts.for_blocks(part, [&](int64_t pixel, int64_t count) {
        norm_act_primitives<T>().sum(maps.block(image, pixel, count), found.data() + part * channels);
      });
    });
    const std::vector<double> sums = maps.parts.added(found, channels);
    const double pixels = double(x.size(2) * x.size(3));
    for (size_t i = 0; i < sums.size(); ++i) mutable_data<T>(out)[i] = T(sums[i] / pixels);
  });
  return out;
}

std::tuple<Tensor, Tensor> norm_act_sums(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& scale,
                                         const Tensor& shift, std::optional<Tensor> gate, std::string activation,
                                         bool values) {
  constexpr char kName[] = "norm_act_sums";
  check_norm_act(kName, x, {{"mean", mean}, {"scale", scale}, {"shift", shift}}, activation);
  check_gradient(kName, grad, x, x.size(1));
  check_gate(kName, "gate", gate, x);
  const int64_t kinds = gate ? 5 : 2;
  Tensor out = values ? new_pixels(x, x.size(1), x.size(2), x.size(3)) : new_values(x, {0, 0, 0, 0});
  Tensor sums = new_values(x, {x.size(0), kinds, x.size(1)});
  const Tensor gradient = precise(grad, MemoryFormat::ChannelsLast);
  with_precise(x, [&](auto type) {
    using T = decltype(type);
    const Maps<T> maps(x, mean, scale, shift, gate, activation);
    const int64_t channels = maps.channels;
    std::vector<double> found(maps.parts.count() * kinds * channels, 0.0);
    maps.parts.for_each([&](int64_t part, int64_t image) {
      maps.parts.for_blocks(part, [&](int64_t pixel, int64_t count) {
        const int64_t at = pixel * channels;
        norm_act_primitives<T>().gradient_sums(maps.block(image, pixel, count), data<T>(gradient) + at,
                                               values ? mutable_data<T>(out) + at : nullptr,
                                               found.data() + part * kinds * channels, channels);
      });
    });
    const std::vector<double> added = maps.parts.added(found, kinds * channels);
    std::copy(added.begin(), added.end(), mutable_data<T>(sums));
  });
  return {values ? finish(out, x) : out, sums};
}

// `out` may be `grad`: memory that is in a cache already.
void norm_act_gradient(Tensor out, const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& scale,
                       const Tensor& shift, std::optional<Tensor> gate, std::optional<Tensor> spread,
                       const Tensor& slope, const Tensor& tilt, const Tensor& level, std::string activation) {
  constexpr char kName[] = "norm_act_gradient";
  check_norm_act(
      kName, x,
      {{"mean", mean}, {"scale", scale}, {"shift", shift}, {"slope", slope}, {"tilt", tilt}, {"level", level}},
      activation);
  check_gradient(kName, grad, x, x.size(1));
  check_gate(kName, "gate", gate, x);
  check_gate(kName, "spread", spread, x);
  check(gate.has_value() == spread.has_value(), kName, ": give gate and spread, or neither");
  check_shape(kName, "out", out, {x.size(0), x.size(1), x.size(2), x.size(3)});
  check(is_nhwc(out) && out.scalar_type() == precise_type(x.scalar_type()), kName,
        ": out must be float32 or float64, like x, in channels-last memory");
  const Tensor gradient = precise(grad, MemoryFormat::ChannelsLast);
  with_precise(x, [&](auto type) {
    using T = decltype(type);
    const Maps<T> maps(x, mean, scale, shift, gate, activation);
    const PerChannel<T> slopes(slope), tilts(tilt), levels(level), spreads(spread ? *spread : scale);
    maps.parts.for_each([&](int64_t part, int64_t image) {
      maps.parts.for_blocks(part, [&](int64_t pixel, int64_t count) {
        const int64_t at = pixel * maps.channels;
        norm_act_primitives<T>().gradient(maps.block(image, pixel, count), data<T>(gradient) + at,
                                          spread ? spreads.row(image) : nullptr, slopes.row(), tilts.row(),
                                          levels.row(), mutable_data<T>(out) + at);
      });
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hyperseg_native, CPU, m) {
  m.impl("channel_moments", TORCH_BOX(&channel_moments));
  m.impl("norm_act", TORCH_BOX(&norm_act));
  m.impl("norm_act_pool", TORCH_BOX(&norm_act_pool));
  m.impl("norm_act_sums", TORCH_BOX(&norm_act_sums));
  m.impl("norm_act_gradient", TORCH_BOX(&norm_act_gradient));
}

}  // namespace hyperseg::cpu
