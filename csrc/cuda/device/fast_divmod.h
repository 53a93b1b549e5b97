#pragma once

#include <cstdint>

#include "common/map.h"

namespace hyperseg::cuda {

// Division of numbers below 2^31 by a divisor known on the host, by multiplication (Granlund and Montgomery, 1994).
class FastDivmod {
 public:
  FastDivmod() = default;
  explicit FastDivmod(int64_t value) : value_(static_cast<uint32_t>(value)) {
    while ((uint64_t{1} << shift_) < value_) ++shift_;
    multiplier_ = static_cast<uint32_t>((uint64_t{1} << 32) * ((uint64_t{1} << shift_) - value_) / value_ + 1);
  }

  HYPERSEG_HOST_DEVICE int value() const { return static_cast<int>(value_); }
  HYPERSEG_HOST_DEVICE int quotient(int n) const {
    const uint32_t number = static_cast<uint32_t>(n);
    const uint32_t high = static_cast<uint32_t>(uint64_t{number} * multiplier_ >> 32);
    return static_cast<int>((high + number) >> shift_);
  }

 private:
  uint32_t value_ = 1, multiplier_ = 1, shift_ = 0;
};

}  // namespace hyperseg::cuda
