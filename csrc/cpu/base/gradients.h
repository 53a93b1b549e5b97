#pragma once

#include <memory>
#include <type_traits>

#include "cpu/base/tensors.h"
#include "cpu/base/windows.h"

// From the buffers of backward operators to the tensors they return.
namespace hyperseg::cpu {

// A dense gradient, accumulated as T: in the tensor itself or, for 16-bit floats, in a buffer until `finish`.
template <typename S>
class Accumulated {
 public:
  using T = acc_t<S>;

  explicit Accumulated(Tensor& tensor) : target_(static_cast<S*>(tensor.mutable_data_ptr())), count_(tensor.numel()) {
    if constexpr (!std::is_same_v<S, T>) buffer_ = uninitialised<T>(count_);
  }
  T* data() {
    if constexpr (std::is_same_v<S, T>) {
      return target_;
    } else {
      return buffer_.get();
    }
  }
  void finish() {
    if constexpr (!std::is_same_v<S, T>) {
      torch::stable::parallel_for(0, count_, 1 << 16, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) target_[i] = static_cast<S>(buffer_[i]);
      });
    }
  }

 private:
  S* target_;
  int64_t count_;
  std::unique_ptr<T[]> buffer_;
};

// A vector in the type of `like`.
inline Tensor vector_like(const Tensor& like, const std::vector<double>& values) {
  Tensor out = torch::stable::new_empty(like, {static_cast<int64_t>(values.size())});
  with_type(like, "vector", [&](auto type) {
    using S = decltype(type);
    S* data = static_cast<S*>(out.mutable_data_ptr());
    for (size_t i = 0; i < values.size(); ++i) data[i] = static_cast<S>(static_cast<acc_t<S>>(values[i]));
  });
  return out;
}

// The gradient of an absent optional tensor.
inline Tensor empty_tensor(const Tensor& like) { return torch::stable::new_empty(like, {0}); }

inline Tensor dense_like(const Tensor& like) {
  const auto sizes = like.sizes();
  return torch::stable::new_empty(like, sizes);
}

// A vector of any floating-point type, as T.
template <typename T>
std::vector<T> vector_of(const Tensor& tensor, const char* name) {
  std::vector<T> result(tensor.size(0));
  with_type(tensor, name, [&](auto type) {
    using S = decltype(type);
    const S* data = static_cast<const S*>(tensor.const_data_ptr());
    for (int64_t i = 0; i < tensor.size(0); ++i) result[i] = static_cast<T>(data[i * tensor.stride(0)]);
  });
  return result;
}

}  // namespace hyperseg::cpu
