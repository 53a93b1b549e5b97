#include "cpu/simd/amx.h"

#ifdef HYPERSEG_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#endif

namespace hyperseg::cpu {

#ifdef HYPERSEG_AMX
namespace {

bool supported() {
  const char* const requested = std::getenv("HYPERSEG_CPU_CAPABILITY");
  if (requested && *requested && std::string(requested) != "amx") return false;
  for (const bool part : {__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512vl"),
                          __builtin_cpu_supports("avx512bw"), __builtin_cpu_supports("avx512dq")})
    if (!part) return false;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;  // AMX-BF16, AMX-TILE
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;                     // AVX512-BF16
  // Linux saves the tiles of a process that has asked for them.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool has_amx() {
  static const bool found = supported();
  return found;
}
#else
bool has_amx() { return false; }
#endif

}  // namespace hyperseg::cpu
