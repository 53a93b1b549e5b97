#pragma once

namespace hyperseg {

// The type in which values stored as T are accumulated.
template <typename T>
struct acc {
  using type = float;
};

template <>
struct acc<double> {
  using type = double;
};

template <typename T>
using acc_t = typename acc<T>::type;

}  // namespace hyperseg
