#include "cpu/simd/bfloat16.h"

#ifdef HYPERSEG_BFLOAT16
#include <cpuid.h>

#include <cstdlib>
#include <string>

#include "cpu/simd/simd.h"
#ifdef HYPERSEG_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace hyperseg::cpu {

#ifdef HYPERSEG_BFLOAT16
namespace {

bool has_vectors() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx512() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);  // AVX512-BF16
}

bool has_tiles() {
#ifdef HYPERSEG_AMX
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1)) return false;  // AMX-BF16, AMX-TILE
  // Linux saves the tiles of a process that has asked for them.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Bfloat16 find_level() {
  const char* const variable = std::getenv("HYPERSEG_CPU_CAPABILITY");
  const std::string limit = variable && *variable ? variable : "amx";
  if ((limit != "avx512_bf16" && limit != "amx") || !has_vectors()) return Bfloat16::kNone;
  return limit == "amx" && has_tiles() ? Bfloat16::kTiles : Bfloat16::kVectors;
}

}  // namespace

Bfloat16 bfloat16_level() {
  static const Bfloat16 found = find_level();
  return found;
}
#else
Bfloat16 bfloat16_level() { return Bfloat16::kNone; }
#endif

}  // namespace hyperseg::cpu
