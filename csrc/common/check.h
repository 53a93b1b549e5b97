#pragma once

#include <sstream>
#include <stdexcept>

namespace hyperseg {

// Apart and cold: sentences are most of what an operator's host code is, and are not to be optimised for speed.
template <typename... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// Not STD_TORCH_CHECK: it puts the function, the file and the line in front of a sentence meant for the caller.
template <typename... Parts>
inline void check(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

}  // namespace hyperseg
