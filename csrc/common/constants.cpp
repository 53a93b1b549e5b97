#include "common/constants.h"

#include <utility>

namespace hyperseg {

static thread_local bool ready_here = false;

bool constants_ready() { return ready_here; }

bool set_constants_ready(bool ready) { return std::exchange(ready_here, ready); }

}  // namespace hyperseg
