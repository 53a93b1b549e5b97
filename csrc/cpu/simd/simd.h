#pragma once

// HYPERSEG_CLONES compiles a function once per instruction set and lets the loader choose, so that one wheel is fast on
// every CPU. The compiler must vectorise the function's loops by itself, because vector types are split up before the
// function is cloned. Templates cannot be cloned: mark them HYPERSEG_INLINE and call them from cloned functions. Builds
// with a sanitizer have one version, as the loader chooses before a sanitizer's run time is initialised.
#if defined(__x86_64__) && defined(__linux__) && __GNUC__ >= 12 && !defined(__clang__) && !defined(HYPERSEG_SANITIZE)
#define HYPERSEG_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define HYPERSEG_CPU_VERSIONS "x86-64, x86-64-v3, x86-64-v4"
#else
#define HYPERSEG_CLONES
#define HYPERSEG_CPU_VERSIONS "the compiler's default"
#endif

#define HYPERSEG_INLINE [[gnu::always_inline]] inline

namespace hyperseg::cpu {

// The instruction set that the operators use on this machine: "default", "avx2", "avx512", or AVX-512 with instructions
// for bfloat16: "avx512_bf16" (vectors) or "amx" (tiles).
const char* capability();

// Whether the CPU and the operating system have what the code for AVX-512 needs. Defined on x86 only.
bool has_avx512();

}  // namespace hyperseg::cpu
