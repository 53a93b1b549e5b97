#pragma once

#include <unistd.h>

#include <cstdint>

namespace hyperseg::cpu {

// Bytes of the caches of one core.
struct Caches {
  int64_t l1, l2;
};

// The caches of this machine, or usual ones where it does not tell.
inline const Caches& caches() {
  static const Caches found = [] {
    Caches sizes{32 << 10, 512 << 10};
#ifdef _SC_LEVEL1_DCACHE_SIZE
    if (const long bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE); bytes > 0) sizes.l1 = bytes;
    if (const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE); bytes > 0) sizes.l2 = bytes;
#endif
    return sizes;
  }();
  return found;
}

}  // namespace hyperseg::cpu
