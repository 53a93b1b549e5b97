#pragma once

namespace hyperseg::cpu {

// Instructions that multiply bfloat16 with sums in float32.
enum class Bfloat16 { kNone, kVectors, kTiles };  // AVX512-BF16: vdpbf16ps; AMX

// The best that the CPU, the operating system and the build have, and HYPERSEG_CPU_CAPABILITY allows.
Bfloat16 bfloat16_level();

}  // namespace hyperseg::cpu
