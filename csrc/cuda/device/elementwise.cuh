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
      : channels_last_(map.stride_c == 1 && map.channels > 1),
        channels_(static_cast<int>(map.channels)),
        height_(static_cast<int>(map.height)) {
    // Runs of values: a row of pixels with their channels, or one channel of an image.
    const int64_t run = channels_last_ ? map.width * map.channels : map.height * map.width;
    check(run < int64_t{1} << 31, op, ": a map of ", map.height, "x", map.width, " pixels is too large for a GPU");
    run_ = static_cast<int>(run);
    chunks_ = static_cast<int>((run + kValueThreads - 1) / kValueThreads);
    inner_ = FastDivmod(channels_last_ ? map.channels : map.width);
    grid_ = grid_of(op, images * (channels_last_ ? map.height : map.channels) * chunks_);
  }

  Grid grid() const { return grid_; }

  HYPERSEG_DEVICE MapIndex place() const {
    const unsigned run = blockIdx.x / chunks_;
    const int i = static_cast<int>(blockIdx.x - run * chunks_) * kValueThreads + static_cast<int>(threadIdx.x);
    const int quotient = inner_.quotient(i), rest = i - quotient * inner_.value();
    if (channels_last_)
      return {static_cast<int>(run / height_), rest, static_cast<int>(run % height_), quotient, i < run_};
    return {static_cast<int>(run / channels_), static_cast<int>(run % channels_), quotient, rest, i < run_};
  }

 private:
  bool channels_last_;
  int channels_, height_, run_, chunks_;
  FastDivmod inner_;
  Grid grid_;
};

}  // namespace hyperseg::cuda
