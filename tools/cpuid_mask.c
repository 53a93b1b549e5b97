// Preloaded into a process (LD_PRELOAD) by tools/cpuid.py, this library hides AVX-512, AMX and what came with them from
// everything in that process: each library then chooses the code that it has for a CPU with AVX2 only.
//
// After arch_prctl(ARCH_SET_CPUID, 0), the instruction `cpuid` faults in the calling thread and in the threads and
// forks that it starts. The handler below executes the instruction, clears bits of its result and goes on behind it.
// Programs that handle SIGSEGV themselves, as Python's faulthandler does, get all other faults: `sigaction` and
// `signal` below keep their handlers.
//
// HYPERSEG_CPUID=avx2-amd also changes vendor, model and the sizes of the caches to those of an AMD EPYC 7003.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012

typedef struct {
  uint32_t a, b, c, d;
} Registers;

typedef struct {
  uint32_t level, bytes, ways, shared, type;
} Cache;

typedef int (*Sigaction)(int, const struct sigaction*, struct sigaction*);

static int as_amd;
static struct sigaction others;  // what the program does with a SIGSEGV
static pid_t owner;              // of `others`: a child of vfork has the same memory until it calls exec
static Sigaction real_sigaction;

// Of an EPYC 7003: type 1 is data, 2 instructions, 3 both.
static const Cache amd_caches[] = {
    {1, 32 << 10, 8, 2, 1}, {1, 32 << 10, 8, 2, 2}, {2, 512 << 10, 8, 2, 3}, {3, 32 << 20, 16, 16, 3}};

static void allow_cpuid(int allow) { syscall(SYS_arch_prctl, ARCH_SET_CPUID, allow); }

static Registers cpuid(uint32_t leaf, uint32_t part) {
  Registers r;
  __asm__ volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(part));
  return r;
}

static uint32_t without(uint32_t value, const int* bits) {
  for (; *bits >= 0; ++bits) value &= ~(1u << *bits);
  return value;
}

static void hide(uint32_t leaf, uint32_t part, Registers* r) {
  if (leaf == 7 && part == 0) {
    // AVX512: F, DQ, IFMA, PF, ER, CD, BW, VL; VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ; 4VNNIW, 4FMAPS, VP2INTERSECT.
    // AMX-BF16, AVX512-FP16, AMX-TILE, AMX-INT8.
    r->b = without(r->b, (const int[]){16, 17, 21, 26, 27, 28, 30, 31, -1});
    r->c = without(r->c, (const int[]){1, 6, 11, 12, 14, -1});
    r->d = without(r->d, (const int[]){2, 3, 8, 22, 23, 24, 25, -1});
  } else if (leaf == 7 && part == 1) {
    // AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA; AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, AVX10.
    r->a = without(r->a, (const int[]){4, 5, 21, 23, -1});
    r->d = without(r->d, (const int[]){4, 5, 8, 10, 19, -1});
  } else if (leaf == 0x1d || leaf == 0x1e) {  // tiles
    memset(r, 0, sizeof *r);
  }
}

static void pretend_amd(uint32_t leaf, uint32_t part, Registers* r) {
  if (leaf == 0 || leaf == 0x80000000) {
    r->a = leaf ? 0x80000023 : 0x10;
    memcpy(&r->b, "Auth", 4), memcpy(&r->d, "enti", 4), memcpy(&r->c, "cAMD", 4);
  } else if (leaf == 1) {
    r->a = 0x00a00f11;
  } else if (leaf == 2 || leaf == 4) {  // Intel's way to tell caches
    memset(r, 0, sizeof *r);
  } else if (leaf == 0x80000001) {
    r->c |= 1u << 22;  // the leaf below with caches is there
  } else if (leaf == 0x80000005) {
    r->c = r->d = 32u << 24 | 8 << 16 | 1 << 8 | 64;
  } else if (leaf == 0x80000006) {
    r->c = 512u << 16 | 6 << 12 | 1 << 8 | 64;
    r->d = 64u << 18 | 9 << 12 | 1 << 8 | 64;
  } else if (leaf == 0x8000001d) {
    memset(r, 0, sizeof *r);
    if (part < sizeof amd_caches / sizeof *amd_caches) {
      const Cache* c = &amd_caches[part];
      r->a = c->type | c->level << 5 | 1 << 8 | (c->shared - 1) << 14;
      r->b = (c->ways - 1) << 22 | 63;
      r->c = c->bytes / c->ways / 64 - 1;
    }
  }
}

static void on_fault(int number, siginfo_t* info, void* context) {
  greg_t* g = ((ucontext_t*)context)->uc_mcontext.gregs;
  const unsigned char* code = (const unsigned char*)g[REG_RIP];
  // Faults by address have one, or jumped to nowhere; `cpuid` is a general protection fault, without an address.
  if (info->si_code == SI_KERNEL && code[0] == 0x0f && code[1] == 0xa2) {
    const uint32_t leaf = (uint32_t)g[REG_RAX], part = (uint32_t)g[REG_RCX];
    allow_cpuid(1);
    Registers r = cpuid(leaf, part);
    allow_cpuid(0);
    hide(leaf, part, &r);
    if (as_amd) pretend_amd(leaf, part, &r);
    g[REG_RAX] = r.a, g[REG_RBX] = r.b, g[REG_RCX] = r.c, g[REG_RDX] = r.d;
    g[REG_RIP] += 2;
    return;
  }
  if (others.sa_flags & SA_SIGINFO) {
    others.sa_sigaction(number, info, context);
  } else if (others.sa_handler != SIG_DFL && others.sa_handler != SIG_IGN) {
    others.sa_handler(number);
  } else {
    real_sigaction(SIGSEGV, &others, NULL);
    if (info->si_code <= 0) raise(SIGSEGV);  // sent by a process; otherwise the instruction faults again
  }
}

static void find_sigaction(void) {
  if (!real_sigaction) real_sigaction = (Sigaction)dlsym(RTLD_NEXT, "sigaction");
}

int sigaction(int number, const struct sigaction* action, struct sigaction* before) {
  find_sigaction();
  if (number != SIGSEGV) return real_sigaction(number, action, before);
  if (before) *before = others;
  if (action && getpid() == owner) others = *action;
  return 0;
}

sighandler_t signal(int number, sighandler_t handler) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART}, before;
  return sigaction(number, &action, &before) ? SIG_ERR : before.sa_handler;
}

static void own(void) { owner = getpid(); }

__attribute__((constructor)) static void begin(void) {
  find_sigaction();
  own();
  pthread_atfork(NULL, NULL, own);
  const char* kind = getenv("HYPERSEG_CPUID");
  as_amd = kind && strcmp(kind, "avx2-amd") == 0;
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
  if (real_sigaction(SIGSEGV, &action, &others) || syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
    fputs("tools/cpuid: this CPU or this kernel cannot make the instruction cpuid fault\n", stderr);
    _exit(125);
  }
}
