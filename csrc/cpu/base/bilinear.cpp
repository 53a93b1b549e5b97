#include "cpu/base/bilinear.h"

#include <algorithm>

// Not in the header: it must be compiled without contraction wherever it is used, for the labels of upsample_argmax.
namespace hyperseg::cpu {

template <typename T>
Axis<T>::Axis(int64_t in, int64_t out, bool copy) : in(in), out(out), low(out), high(out), weight(out) {
  const T scale = static_cast<T>(in) / static_cast<T>(out);
  for (int64_t i = 0; i < out; ++i) {
    const T source = std::max((static_cast<T>(i) + T(0.5)) * scale - T(0.5), T(0));
    low[i] = static_cast<int32_t>(std::min(static_cast<int64_t>(source), in - 1));
    high[i] = static_cast<int32_t>(std::min<int64_t>(low[i] + 1, in - 1));
    weight[i] = std::min(source - static_cast<T>(low[i]), T(1));
    if (copy) high[i] = low[i], weight[i] = T(0.5);
  }
}

template struct Axis<float>;
template struct Axis<double>;

}  // namespace hyperseg::cpu
