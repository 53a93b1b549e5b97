#include "cpu/training/depthwise.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "cpu/base/buffer.h"
#include "cpu/base/tasks.h"

namespace hyperseg::cpu {
namespace {

constexpr int64_t kTaskRows = 16;  // a strip of a map
constexpr int64_t kColumns = 32;   // input pixels of a tile: with those of `size` rows they fit the first-level cache
constexpr int64_t kLargestSize = 5;

// A group of channels in a strip of rows of an image.
struct Task {
  int64_t image, strip, first_row, last_row, channel, channels;
};

// How tasks divide a map of `rows` rows.
struct Division {
  Division(int64_t images, int64_t rows, int64_t channels)
      : images(images),
        rows(rows),
        all_channels(channels),
        strips((rows + kTaskRows - 1) / kTaskRows),
        groups((channels + kGroup - 1) / kGroup) {}
  int64_t count() const { return images * strips * groups; }
  Task operator()(int64_t i) const {
    const int64_t group = i % groups, strip = i / groups % strips;
    return {.image = i / groups / strips,
            .strip = i / groups,
            .first_row = strip * kTaskRows,
            .last_row = std::min(rows, (strip + 1) * kTaskRows),
            .channel = group * kGroup,
            .channels = std::min(kGroup, all_channels - group * kGroup)};
  }
  int64_t images, rows, all_channels, strips, groups;
};

// Rows of a tile, of `stored` pixels each, which begin at column `begin` of a map. Columns outside of the map are zero.
template <typename T>
class Rows {
 public:
  Rows(int64_t count, int64_t stored) : stored_(stored), values_(count * stored * kGroup, T(0)) {}
  // Returns the columns of the map from `begin` on.
  std::pair<int64_t, int64_t> cover(int64_t begin, int64_t width) {
    begin_ = begin;
    const int64_t from = std::max<int64_t>(begin, 0), to = std::max(from, std::min(begin + stored_, width));
    for (T* row = values_.data(); row < values_.data() + values_.size(); row += stored_ * kGroup) {
      std::fill(row, row + std::min(from - begin, stored_) * kGroup, T(0));
      std::fill(row + std::min(to - begin, stored_) * kGroup, row + stored_ * kGroup, T(0));
    }
    return {from, to};
  }
  T* row(int64_t i) { return values_.data() + i * stored_ * kGroup; }
  T* at(int64_t i, int64_t column) { return row(i) + (column - begin_) * kGroup; }

 private:
  int64_t stored_, begin_ = 0;
  std::vector<T> values_;
};

template <typename T>
NormAct<T> row_of(const Depthwise<T>& d, const Task& task, int64_t y, int64_t x, int64_t pixels) {
  const int64_t c = task.channel;
  return {task.channels,       pixels,     d.x + ((task.image * d.height + y) * d.width + x) * d.channels + c,
          d.channels,          d.mean + c, d.scale + c,
          d.shift + c,         nullptr,    d.act,
          d.width * d.channels};
}

}  // namespace

template <typename T>
void depthwise(const Depthwise<T>& d, T* out) {
  const NormActPrimitives<T>& run = norm_act_primitives<T>();
  const Division division(d.images, d.out_height, d.channels);
  const int64_t padded = division.groups * kGroup;
  const int64_t columns = kColumns / d.stride, stored = (columns - 1) * d.stride + d.size;
  for_each_task(division.count(), [&](int64_t i) {
    const Task task = division(i);
    const std::vector<T> none(stored * kGroup, T(0));
    Rows<T> ring(d.size, stored);
    for (int64_t first = 0; first < d.out_width; first += columns) {
      const int64_t pixels = std::min(columns, d.out_width - first);
      const auto [from, to] = ring.cover(first * d.stride - d.left, d.width);
      int64_t ready = task.first_row * d.stride - d.top;  // rows before this one are in the ring
      for (int64_t row = task.first_row; row < task.last_row; ++row) {
        const T* rows[kLargestSize];
        const int64_t top = row * d.stride - d.top;
        for (ready = std::max(ready, top); ready < top + d.size; ++ready)
          if (ready >= 0 && ready < d.height)
            run.apply(row_of(d, task, ready, from, to - from), ring.at(ready % d.size, from), nullptr, kGroup);
        for (int64_t k = 0; k < d.size; ++k) {
          const int64_t y = top + k;
          rows[k] = y >= 0 && y < d.height ? ring.row(y % d.size) : none.data();
        }
        T* const at = out + ((task.image * d.out_height + row) * d.out_width + first) * d.channels + task.channel;
        run.filter({task.channels, pixels, d.size, d.stride, rows, d.weights + task.channel, padded, at, d.channels,
                    d.out_width * d.channels});
      }
    }
  });
}

template <typename T>
void depthwise_gradients(const Depthwise<T>& d, const T* grad, T* d_norm, T* d_weights, T* sums) {
  const NormActPrimitives<T>& run = norm_act_primitives<T>();
  const Division division(d.images, d.height, d.channels);
  const int64_t taps = d.size * d.size, kinds = taps + 2, reach = (d.size - 1) / d.stride;
  const int64_t padded = division.groups * kGroup;
  // A tile begins at a column that takes from the first tap, so perhaps one before its own.
  const int64_t early = d.left % d.stride, most = round_up(kColumns + early, kFilterBlock);
  const int64_t stored = reach + most / d.stride + 1;
  std::vector<double> found(d.images * division.strips * kinds * padded, 0.0);  // per strip: weights, sums
  for_each_task(division.count(), [&](int64_t i) {
    const Task task = division(i);
    double* const added = found.data() + task.strip * kinds * padded + task.channel;
    std::vector<T> sums_of_tile(kinds * kGroup);
    Rows<T> ring(d.size, stored), activated(1, most), slope(1, most);
    for (int64_t first = 0; first < d.width; first += kColumns) {
      const int64_t own = std::min(kColumns, d.width - first), pixels = round_up(own + early, kFilterBlock);
      const auto [from, to] = ring.cover((first - early + d.left) / d.stride - reach, d.out_width);
      for (Rows<T>* input : {&activated, &slope}) std::fill_n(input->row(0), most * kGroup, T(0));
      std::fill(sums_of_tile.begin(), sums_of_tile.end(), T(0));
      int64_t ready = 0;
      for (int64_t row = task.first_row; row < task.last_row; ++row) {
        const T* rows[kLargestSize] = {};
        for (int64_t ky = d.size - 1; ky >= 0; --ky) {
          const int64_t y = (row + d.top - ky) / d.stride;
          if (row + d.top < ky || (row + d.top - ky) % d.stride || y >= d.out_height) continue;
          if (y >= ready) {
            ready = y + 1;
            const T* const in = grad + ((task.image * d.out_height + y) * d.out_width + from) * d.channels;
            run.copy(task.channels, to - from, in + task.channel, d.channels, d.out_width * d.channels,
                     ring.at(y % d.size, from));
          }
          rows[ky] = ring.row(y % d.size);
        }
        run.apply(row_of(d, task, row, first, own), activated.row(0) + early * kGroup, slope.row(0) + early * kGroup,
                  kGroup);
        const int64_t start = ((task.image * d.height + row) * d.width + first - early) * d.channels + task.channel;
        run.filter_gradient({.channels = task.channels,
                             .pixels = pixels,
                             .size = d.size,
                             .stride = d.stride,
                             .first = early,
                             .last = early + own,
                             .rows = rows,
                             .weights = d.weights + task.channel,
                             .weights_stride = padded,
                             .activated = activated.row(0),
                             .slope = slope.row(0),
                             .x = d.x + start,
                             .stride_x = d.channels,
                             .mean = d.mean + task.channel,
                             .out = d_norm + start,
                             .ahead = d.width * d.channels,
                             .sums = sums_of_tile.data() + taps * kGroup,
                             .d_weights = sums_of_tile.data()});
      }
      for (int64_t k = 0; k < kinds; ++k)
        for (int64_t c = 0; c < kGroup; ++c) added[k * padded + c] += double(sums_of_tile[k * kGroup + c]);
    }
  });
  std::vector<double> total(kinds * padded, 0.0);
  for (int64_t strip = 0; strip < d.images * division.strips; ++strip)
    for (int64_t k = 0; k < kinds * padded; ++k) total[k] += found[strip * kinds * padded + k];
  for (int64_t c = 0; c < d.channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) d_weights[c * taps + t] = T(total[t * padded + c]);
    for (int64_t k = 0; k < 2; ++k) sums[k * d.channels + c] = T(total[(taps + k) * padded + c]);
  }
}

template void depthwise(const Depthwise<float>&, float*);
template void depthwise(const Depthwise<double>&, double*);
template void depthwise_gradients(const Depthwise<float>&, const float*, float*, float*, float*);
template void depthwise_gradients(const Depthwise<double>&, const double*, double*, double*, double*);

}  // namespace hyperseg::cpu
