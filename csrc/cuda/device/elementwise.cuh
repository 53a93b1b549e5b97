#pragma once

#include "common/map.h"
#include "cuda/device/fast_divmod.h"
#include "cuda/device/launch.cuh"

// One thread per value of a map, in the map's memory order.
namespace hyperseg::cuda {

constexpr int kValueThreads = 256;

struct MapIndex {
  int n, c, y, x;
  bool exists;
};

class EachValue {
 public:
  template <typename S>
  EachValue(const char* op, int64_t images, const Map<S>& map)
      : EachValue(op, images, map, map.stride_c == 1 && map.channels > 1) {}
  template <typename S>
  EachValue(const char* op, int64_t images, const Map<S>& map, bool channels_last)
      : channels_last_(channels_last), outer_(channels_last_ ? map.height : map.channels) {
    // Runs of values: a row of pixels with their channels, or one channel of an image.
    const int64_t run = channels_last_ ? map.width * map.channels : map.height * map.width;
    check(run < int64_t{1} << 31, op, ": a map of ", map.height, "x", map.width, " pixels is too large for a GPU");
    run_ = static_cast<int>(run);
    chunks_ = FastDivmod((run + kValueThreads - 1) / kValueThreads);
    inner_ = FastDivmod(channels_last_ ? map.channels : map.width);
    grid_ = grid_of(op, images * (channels_last_ ? map.height : map.channels) * chunks_.value());
  }

  Grid grid() const { return grid_; }

  HYPERSEG_DEVICE MapIndex place() const {
    const int block = static_cast<int>(blockIdx.x), run = chunks_.quotient(block);
    const int i = (block - run * chunks_.value()) * kValueThreads + static_cast<int>(threadIdx.x);
    const int quotient = inner_.quotient(i), rest = i - quotient * inner_.value();
    const int n = outer_.quotient(run), of_image = run - n * outer_.value();
    if (channels_last_) return {n, rest, of_image, quotient, i < run_};
    return {n, of_image, quotient, rest, i < run_};
  }

 private:
  bool channels_last_;
  int run_;
  FastDivmod outer_, chunks_, inner_;
  Grid grid_;
};

}  // namespace hyperseg::cuda
