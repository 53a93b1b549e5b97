#pragma once

#include <cstddef>
#include <cstdint>

namespace hyperseg {

// An error message composed of strings and numbers. Not a stream: including <sstream> costs every file half a second of
// compilation, kernels twice.
class Message {
 public:
  Message& operator<<(const char* text);
  Message& operator<<(int64_t number);
  template <typename String>
  auto operator<<(const String& text) -> decltype(*this << text.c_str()) {
    return *this << text.c_str();
  }
  [[noreturn]] void fail() const;  // throws std::runtime_error

 private:
  char text_[2048] = "";  // longer messages are cut off
  size_t length_ = 0;
};

// Out of line and cold: messages are most of an operator's host code and need no optimisation for speed.
template <typename... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void fail(const Parts&... parts) {
  Message message;
  (message << ... << parts);
  message.fail();
}

// Instead of STD_TORCH_CHECK, which puts function, file and line in front of a message meant for the caller.
template <typename... Parts>
inline void check(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

}  // namespace hyperseg
