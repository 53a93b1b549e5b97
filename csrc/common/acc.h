#pragma once

namespace hyperseg {

// Accumulator type for values stored as T.
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
