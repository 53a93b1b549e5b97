// Compiled once per instruction set: see CMakeLists.txt.
#include "cpu/simd/norm_act.h"

#include <algorithm>

#include "cpu/simd/vectors.h"

namespace hyperseg::cpu {
namespace {

#ifdef __AVX512F__
constexpr int64_t kVectors = 2;  // of channels that a loop over pixels takes at once
#else
constexpr int64_t kVectors = 1;
#endif

inline vec<float> sigmoid(vec<float> z) {
  const vec<float> d = one_plus_exp_minus(clamp_low(z, -87.0f));
#ifdef __AVX512F__
  const vec<float> r = _mm512_maskz_rcp14_ps(-1, d);  // a division takes four times as long
  return r * (2.0f - d * r);
#else
  return 1.0f / d;
#endif
}

inline vec<double> sigmoid(vec<double> z) { return 1.0 / one_plus_exp_minus(z); }

// The value of an activation, and its derivative.
template <Activation A, typename T>
inline vec<T> value(vec<T> z) {
  if constexpr (A == Activation::kSilu) return z * sigmoid(z);
  if constexpr (A == Activation::kNone) return z;
  z = clamp_low(z, T(0));
  return A == Activation::kRelu6 ? clamp_high(z, T(6)) : z;
}

template <Activation A, typename T>
inline vec<T> derivative(vec<T> z, vec<T>& value) {
  value = z;
  if constexpr (A == Activation::kNone) return splat(T(1));
  if constexpr (A == Activation::kSilu) {
    const vec<T> s = sigmoid(z);
    value = z * s;
    return s + value * (T(1) - s);
  }
  value = clamp_low(z, T(0));
  vec<T> d = z > T(0) ? splat(T(1)) : splat(T(0));
  if constexpr (A == Activation::kRelu6) {
    value = clamp_high(value, T(6));
    d = z < T(6) ? d : splat(T(0));
  }
  return d;
}

template <typename Body>
inline void with_activation(Activation act, const Body& body) {
  switch (act) {
    case Activation::kNone:
      return body.template operator()<Activation::kNone>();
    case Activation::kRelu:
      return body.template operator()<Activation::kRelu>();
    case Activation::kRelu6:
      return body.template operator()<Activation::kRelu6>();
    case Activation::kSilu:
      return body.template operator()<Activation::kSilu>();
    case Activation::kSigmoid:
      break;  // of gates only
  }
}

// Whole vectors, or one that is cut off at the last channel.
template <bool whole, typename T>
inline vec<T> get(const T* p, int64_t count) {
  return whole ? load(p) : load(p, count);
}
template <bool whole, typename T>
inline void put(T* p, vec<T> v, int64_t count) {
  if constexpr (whole)
    store(p, v);
  else
    store(p, v, count);
}

// Call body<vectors, whole>(channel, channels in it) for all channels.
template <typename T, typename Body>
inline void for_channels(int64_t channels, const Body& body) {
  constexpr int64_t lanes = Vector<T>::lanes;
  int64_t c = 0;
  for (; c + kVectors * lanes <= channels; c += kVectors * lanes)
    body.template operator()<kVectors, true>(c, kVectors * lanes);
  if constexpr (kVectors > 1)
    for (; c + lanes <= channels; c += lanes) body.template operator()<1, true>(c, lanes);
  if (c < channels) body.template operator()<1, false>(c, channels - c);
}

template <typename T>
inline void add(double* sums, vec<T> v, int64_t count) {
  T parts[Vector<T>::lanes];
  store(parts, v);
  if (count >= Vector<T>::lanes) {
    for (int64_t i = 0; i < Vector<T>::lanes; ++i) sums[i] += double(parts[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) sums[i] += double(parts[i]);
  }
}

template <typename T>
void moments(int64_t channels, int64_t pixels, const T* x, const T* around, double* sums, double* squares) {
  constexpr int64_t lanes = Vector<T>::lanes;
  for_channels<T>(channels, [&]<int64_t V, bool whole>(int64_t c, int64_t count) {
    vec<T> m[V], s[V]{}, q[V]{};
    for (int64_t v = 0; v < V; ++v) m[v] = get<whole>(around + c + v * lanes, count);
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t v = 0; v < V; ++v) {
        const vec<T> d = get<whole>(x + p * channels + c + v * lanes, count) - m[v];
        s[v] += d;
        q[v] += d * d;
      }
    for (int64_t v = 0; v < V; ++v) {
      add<T>(sums + c + v * lanes, s[v], count);
      add<T>(squares + c + v * lanes, q[v], count);
    }
  });
}

template <typename T>
void sum(const NormAct<T>& map, double* sums) {
  constexpr int64_t lanes = Vector<T>::lanes;
  with_activation(map.act, [&]<Activation A>() {
    for_channels<T>(map.channels, [&]<int64_t V, bool whole>(int64_t c, int64_t count) {
      vec<T> scale[V], shift[V], s[V]{};
      for (int64_t v = 0; v < V; ++v) scale[v] = load(map.scale + c + v * lanes);
      for (int64_t v = 0; v < V; ++v) shift[v] = load(map.shift + c + v * lanes);
      for (int64_t p = 0; p < map.pixels; ++p)
        for (int64_t v = 0; v < V; ++v)
          s[v] += value<A, T>(get<whole>(map.x + p * map.stride + c + v * lanes, count) * scale[v] + shift[v]);
      for (int64_t v = 0; v < V; ++v) add<T>(sums + c + v * lanes, s[v], count);
    });
  });
}

template <typename T>
void apply(const NormAct<T>& map, T* out, T* slope, int64_t out_stride) {
  constexpr int64_t lanes = Vector<T>::lanes;
  with_activation(map.act, [&]<Activation A>() {
    for_channels<T>(map.channels, [&]<int64_t V, bool whole>(int64_t c, int64_t count) {
      vec<T> scale[V], shift[V], gate[V];
      for (int64_t v = 0; v < V; ++v) {
        scale[v] = load(map.scale + c + v * lanes);
        shift[v] = load(map.shift + c + v * lanes);
        gate[v] = map.gate ? load(map.gate + c + v * lanes) : splat(T(1));
      }
      for (int64_t p = 0; p < map.pixels; ++p)
        for (int64_t v = 0; v < V; ++v) {
          const T* const x = map.x + p * map.stride + c + v * lanes;
          __builtin_prefetch(x + map.ahead);
          const vec<T> z = get<whole>(x, count) * scale[v] + shift[v];
          T* const at = out + p * out_stride + c + v * lanes;
          if (slope) {
            vec<T> a;
            put<whole>(slope + (at - out), derivative<A, T>(z, a), count);
            put<whole>(at, a, count);
          } else {
            put<whole>(at, value<A, T>(z) * gate[v], count);
          }
        }
    });
  });
}

template <typename T>
void gradient_sums(const NormAct<T>& map, const T* grad, T* out, double* sums, int64_t apart) {
  constexpr int64_t lanes = Vector<T>::lanes;
  with_activation(map.act, [&]<Activation A>() {
    const auto pass = [&]<bool gated>() {
      for_channels<T>(map.channels, [&]<int64_t V, bool whole>(int64_t c, int64_t count) {
        constexpr int64_t kSums = gated ? 5 : 2;
        vec<T> scale[V], shift[V], mean[V], gate[V], s[kSums][V]{};
        for (int64_t v = 0; v < V; ++v) {
          scale[v] = load(map.scale + c + v * lanes);
          shift[v] = load(map.shift + c + v * lanes);
          mean[v] = load(map.mean + c + v * lanes);
          gate[v] = gated ? load(map.gate + c + v * lanes) : splat(T(1));
        }
        for (int64_t p = 0; p < map.pixels; ++p)
          for (int64_t v = 0; v < V; ++v) {
            const int64_t at = p * map.stride + c + v * lanes;
            const vec<T> x = get<whole>(map.x + at, count), g = get<whole>(grad + at, count);
            vec<T> a;
            const vec<T> d = derivative<A, T>(x * scale[v] + shift[v], a), centred = x - mean[v], gd = g * d;
            if (out) put<whole>(out + at, gated ? a * gate[v] : a, count);
            s[0][v] += gd;
            s[1][v] += gd * centred;
            if constexpr (gated) {
              s[2][v] += g * a;
              s[3][v] += d;
              s[4][v] += d * centred;
            }
          }
        for (int64_t i = 0; i < kSums; ++i)
          for (int64_t v = 0; v < V; ++v) add<T>(sums + i * apart + c + v * lanes, s[i][v], count);
      });
    };
    if (map.gate)
      pass.template operator()<true>();
    else
      pass.template operator()<false>();
  });
}

template <typename T>
void gradient(const NormAct<T>& map, const T* grad, const T* spread, const T* slope, const T* tilt, const T* level,
              T* out) {
  constexpr int64_t lanes = Vector<T>::lanes;
  with_activation(map.act, [&]<Activation A>() {
    const auto pass = [&]<bool gated>() {
      for_channels<T>(map.channels, [&]<int64_t V, bool whole>(int64_t c, int64_t count) {
        vec<T> scale[V], shift[V], mean[V], gate[V], add[V], a[V], b[V], l[V];
        for (int64_t v = 0; v < V; ++v) {
          const int64_t at = c + v * lanes;
          scale[v] = load(map.scale + at);
          shift[v] = load(map.shift + at);
          mean[v] = load(map.mean + at);
          gate[v] = gated ? load(map.gate + at) : splat(T(1));
          add[v] = gated ? load(spread + at) : splat(T(0));
          a[v] = load(slope + at);
          b[v] = load(tilt + at);
          l[v] = load(level + at);
        }
        for (int64_t p = 0; p < map.pixels; ++p)
          for (int64_t v = 0; v < V; ++v) {
            const int64_t at = p * map.stride + c + v * lanes;
            const vec<T> x = get<whole>(map.x + at, count);
            vec<T> g = get<whole>(grad + at, count), unused;
            if constexpr (gated) g = g * gate[v] + add[v];
            if constexpr (A != Activation::kNone) g *= derivative<A, T>(x * scale[v] + shift[v], unused);
            put<whole>(out + at, g * a[v] + ((x - mean[v]) * b[v] + l[v]), count);
          }
      });
    };
    if (map.gate)
      pass.template operator()<true>();
    else
      pass.template operator()<false>();
  });
}

template <typename T>
void copy(int64_t channels, int64_t pixels, const T* in, int64_t stride, int64_t ahead, T* out) {
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t c = 0; c < channels; c += lanes) {
      __builtin_prefetch(in + p * stride + c + ahead);
      store(out + p * kGroup + c, load(in + p * stride + c, channels - c));
    }
}

template <typename Body>
inline void with_filter(int64_t size, int64_t stride, const Body& body) {
  if (size == 3)
    stride == 1 ? body.template operator()<3, 1>() : body.template operator()<3, 2>();
  else
    stride == 1 ? body.template operator()<5, 1>() : body.template operator()<5, 2>();
}

template <typename T, int64_t K, int64_t S>
void filter_row(const FilterRow<T>& row) {
  constexpr int64_t lanes = Vector<T>::lanes, P = kFilterBlock;
  for (int64_t c = 0; c < row.channels; c += lanes)
    for (int64_t p = 0; p < row.pixels; p += P) {
      vec<T> acc[P]{};
      for (int64_t ky = 0; ky < K; ++ky) {
        const T* const in = row.rows[ky] + p * S * kGroup + c;
        vec<T> w[K];
        for (int64_t kx = 0; kx < K; ++kx) w[kx] = load(row.weights + (ky * K + kx) * row.weights_stride + c);
#pragma GCC unroll 32
        for (int64_t i = 0; i < (P - 1) * S + K; ++i) {
          const vec<T> v = load(in + i * kGroup);
#pragma GCC unroll 8
          for (int64_t kx = 0; kx < K; ++kx)
            if (i >= kx && (i - kx) % S == 0 && (i - kx) / S < P) acc[(i - kx) / S] += v * w[kx];
        }
      }
      const int64_t count = row.channels - c, end = std::min(P, row.pixels - p);
      T* const out = row.out + p * row.out_stride + c;
      if (count >= lanes && end == P) {
#pragma GCC unroll 8
        for (int64_t i = 0; i < P; ++i) {
          __builtin_prefetch(out + i * row.out_stride + row.ahead, 1);
          store(out + i * row.out_stride, acc[i]);
        }
      } else {
#pragma GCC unroll 8
        for (int64_t i = 0; i < P; ++i)
          if (i < end) store(out + i * row.out_stride, acc[i], count);
      }
    }
}

template <typename T>
void filter(const FilterRow<T>& row) {
  with_filter(row.size, row.stride, [&]<int64_t K, int64_t S>() { filter_row<T, K, S>(row); });
}

// The gradient of the input, for the channels from c on.
template <typename T, int64_t K, int64_t S>
inline void spread_back(const FilterRowGradient<T>& row, int64_t c) {
  constexpr int64_t P = kFilterBlock;
  const int64_t count = row.channels - c;
  const vec<T> mean = load(row.mean + c);
  vec<T> sum{}, by_value{};
  for (int64_t p = 0; p < row.pixels; p += P) {
    vec<T> acc[P]{};
    for (int64_t ky = 0; ky < K; ++ky) {
      if (!row.rows[ky]) continue;
      const T* const in = row.rows[ky] + p / S * kGroup + c;
      vec<T> w[K];
      for (int64_t kx = 0; kx < K; ++kx) w[kx] = load(row.weights + (ky * K + kx) * row.weights_stride + c);
#pragma GCC unroll 16
      for (int64_t i = 0; i < (K - 1 + P - 1) / S + 1; ++i) {
        const vec<T> v = load(in + i * kGroup);
#pragma GCC unroll 8
        for (int64_t kx = 0; kx < K; ++kx) {
          const int64_t q = i * S - (K - 1) + kx;
          if (q >= 0 && q < P) acc[q] += v * w[kx];
        }
      }
    }
    const auto finish = [&]<bool whole>(int64_t i) {
      const int64_t at = p + i;
      const vec<T> g = acc[i] * load(row.slope + at * kGroup + c);
      T* const out = row.out + at * row.stride_x + c;
      __builtin_prefetch(out + row.ahead, 1);
      put<whole>(out, g, count);
      sum += g;
      by_value += g * (get<whole>(row.x + at * row.stride_x + c, count) - mean);
    };
    if (count >= Vector<T>::lanes && p >= row.first && p + P <= row.last) {
#pragma GCC unroll 8
      for (int64_t i = 0; i < P; ++i) finish.template operator()<true>(i);
    } else {
#pragma GCC unroll 8
      for (int64_t i = 0; i < P; ++i)
        if (p + i >= row.first && p + i < row.last) finish.template operator()<false>(i);
    }
  }
  store(row.sums + c, load(row.sums + c) + sum);
  store(row.sums + kGroup + c, load(row.sums + kGroup + c) + by_value);
}

// The gradient of a row of taps.
template <typename T, int64_t K, int64_t S>
inline void correlate(const FilterRowGradient<T>& row, int64_t ky, int64_t c) {
  constexpr int64_t P = kFilterBlock;
  vec<T> acc[2][K]{};  // two of each, as an addition waits for the one before
  for (int64_t p = 0; p < row.pixels; p += P) {
    const T* const in = row.rows[ky] + p / S * kGroup + c;
    const T* const activated = row.activated + p * kGroup + c;
#pragma GCC unroll 16
    for (int64_t i = 0; i < (K - 1 + P - 1) / S + 1; ++i) {
      const vec<T> v = load(in + i * kGroup);
#pragma GCC unroll 8
      for (int64_t kx = 0; kx < K; ++kx) {
        const int64_t q = i * S - (K - 1) + kx;
        if (q >= 0 && q < P) acc[i % 2][kx] += v * load(activated + q * kGroup);
      }
    }
  }
  for (int64_t kx = 0; kx < K; ++kx) {
    T* const sum = row.d_weights + (ky * K + kx) * kGroup + c;
    store(sum, load(sum) + (acc[0][kx] + acc[1][kx]));
  }
}

template <typename T>
void filter_gradient(const FilterRowGradient<T>& row) {
  with_filter(row.size, row.stride, [&]<int64_t K, int64_t S>() {
    for (int64_t c = 0; c < row.channels; c += Vector<T>::lanes) {
      spread_back<T, K, S>(row, c);
      for (int64_t ky = 0; ky < K; ++ky)
        if (row.rows[ky]) correlate<T, K, S>(row, ky, c);
    }
  });
}

template <typename T>
constexpr NormActPrimitives<T> table() {
  return {moments<T>, sum<T>, apply<T>, gradient_sums<T>, gradient<T>, copy<T>, filter<T>, filter_gradient<T>};
}

}  // namespace

#define HYPERSEG_NAME_(type, isa) type##_norm_act_##isa
#define HYPERSEG_NAME(type, isa) HYPERSEG_NAME_(type, isa)
extern const NormActPrimitives<float> HYPERSEG_NAME(float, HYPERSEG_ISA);
extern const NormActPrimitives<double> HYPERSEG_NAME(double, HYPERSEG_ISA);
const NormActPrimitives<float> HYPERSEG_NAME(float, HYPERSEG_ISA) = table<float>();
const NormActPrimitives<double> HYPERSEG_NAME(double, HYPERSEG_ISA) = table<double>();

}  // namespace hyperseg::cpu
