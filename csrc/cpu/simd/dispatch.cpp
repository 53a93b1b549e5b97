#include <algorithm>
#include <cstdlib>
#include <string>

#include "common/check.h"
#include "cpu/simd/bfloat16.h"
#include "cpu/simd/norm_act.h"
#include "cpu/simd/primitives.h"
#include "cpu/simd/primitives_backward.h"
#include "cpu/simd/simd.h"

namespace hyperseg::cpu {

#define HYPERSEG_DECLARE(isa)                                    \
  extern const Primitives<float> float_##isa;                    \
  extern const Primitives<double> double_##isa;                  \
  extern const PrimitivesBackward<float> float_backward_##isa;   \
  extern const PrimitivesBackward<double> double_backward_##isa; \
  extern const NormActPrimitives<float> float_norm_act_##isa;    \
  extern const NormActPrimitives<double> double_norm_act_##isa;
HYPERSEG_DECLARE(baseline)
#ifdef HYPERSEG_X86
HYPERSEG_DECLARE(avx2)
HYPERSEG_DECLARE(avx512)

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

namespace {
// 0 to 2: baseline, AVX2, AVX-512, by CPU support and limited by HYPERSEG_CPU_CAPABILITY, whose other values
// are limits of bfloat16.
int find_level() {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const int found = has_avx512() ? 2 : avx2 ? 1 : 0;
  const char* const requested = std::getenv("HYPERSEG_CPU_CAPABILITY");
  if (!requested || !*requested) return found;
  const std::string name = requested;
  check(name == "default" || name == "avx2" || name == "avx512" || name == "avx512_bf16" || name == "amx",
        "HYPERSEG_CPU_CAPABILITY must be default, avx2, avx512, avx512_bf16 or amx, got ", name);
  return std::min(found, name == "default" ? 0 : name == "avx2" ? 1 : 2);
}

int level() {
  static const int found = find_level();
  return found;
}
}  // namespace

const char* capability() {
  if (level() < 2) return level() == 1 ? "avx2" : "default";
  const Bfloat16 found = bfloat16_level();
  return found == Bfloat16::kTiles ? "amx" : found == Bfloat16::kVectors ? "avx512_bf16" : "avx512";
}

#define HYPERSEG_CHOOSE(name) (level() == 2 ? name##_avx512 : level() == 1 ? name##_avx2 : name##_baseline)
#else
const char* capability() { return "default"; }

#define HYPERSEG_CHOOSE(name) name##_baseline
#endif

template <>
const Primitives<float>& primitives<float>() {
  return HYPERSEG_CHOOSE(float);
}
template <>
const Primitives<double>& primitives<double>() {
  return HYPERSEG_CHOOSE(double);
}
template <>
const PrimitivesBackward<float>& primitives_backward<float>() {
  return HYPERSEG_CHOOSE(float_backward);
}
template <>
const PrimitivesBackward<double>& primitives_backward<double>() {
  return HYPERSEG_CHOOSE(double_backward);
}
template <>
const NormActPrimitives<float>& norm_act_primitives<float>() {
  return HYPERSEG_CHOOSE(float_norm_act);
}
template <>
const NormActPrimitives<double>& norm_act_primitives<double>() {
  return HYPERSEG_CHOOSE(double_norm_act);
}

}  // namespace hyperseg::cpu
