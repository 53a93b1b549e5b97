#pragma once

#include "cuda/device/device.cuh"

// A barrier of all blocks of a cooperative launch, in memory that the launch before sets to 0.
namespace hyperseg::cuda {

// Called by a kernel after its wait for the previous one.
HYPERSEG_DEVICE void clear(unsigned* counter) {
  if (counter && blockIdx.x == 0 && threadIdx.x == 0) *counter = 0;
}

// Between arrive() and wait() a block may do what neither reads results of other blocks nor writes what they read. What
// any block wrote before arrive() can be read by all after wait(), but not by loads that bypass coherence
// (ld.global.nc).
class GridBarrier {
 public:
  HYPERSEG_DEVICE explicit GridBarrier(unsigned* counter) : counter_(counter) {}

  HYPERSEG_DEVICE void arrive() {
    sync_block();
    if (threadIdx.x == 0) add_release(counter_, 1);
    expected_ += gridDim.x;
  }
  HYPERSEG_DEVICE void wait() const {
    if (threadIdx.x == 0)
      while (load_acquire(counter_) < expected_) {
      }
    sync_block();
  }

 private:
  unsigned* counter_;  // counts arrivals at all barriers
  unsigned expected_ = 0;
};

}  // namespace hyperseg::cuda
