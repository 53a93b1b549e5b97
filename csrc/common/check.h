#pragma once

#include <sstream>
#include <stdexcept>

namespace hyperseg {

// Not STD_TORCH_CHECK: it puts the function, the file and the line in front of a sentence meant for the caller.
template <typename... Parts>
inline void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace hyperseg
