#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace hyperseg::cpu {

inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

inline int64_t round_up(int64_t value, int64_t multiple) { return divide_up(value, multiple) * multiple; }

// Uninitialised memory, aligned to cache lines.
template <typename T>
class Buffer {
 public:
  T* reserve(int64_t count) {
    if (count > capacity_) {
      data_.reset(static_cast<T*>(::operator new(count * sizeof(T), kLine)));
      capacity_ = count;
    }
    return data_.get();
  }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kLine); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t capacity_ = 0;
};

}  // namespace hyperseg::cpu
