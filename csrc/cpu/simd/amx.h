#pragma once

namespace hyperseg::cpu {

// Whether the CPU, the operating system and the build have AMX for bfloat16, and HYPERSEG_CPU_CAPABILITY allows it.
bool has_amx();

}  // namespace hyperseg::cpu
