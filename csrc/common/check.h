#pragma once

#include <cstddef>
#include <cstdint>

namespace hyperseg {

// A sentence for the caller, put together from words and numbers. Not a stream: those cost every file that includes
// them, kernels' twice, half a second to compile.
class Sentence {
 public:
  Sentence& operator<<(const char* words);
  Sentence& operator<<(int64_t number);
  template <typename String>
  auto operator<<(const String& words) -> decltype(*this << words.c_str()) {
    return *this << words.c_str();
  }
  [[noreturn]] void fail() const;  // throws std::runtime_error

 private:
  char words_[2048] = "";  // what is too long for it is left out
  size_t length_ = 0;
};

// Apart and cold: sentences are most of what an operator's host code is, and are not to be optimised for speed.
template <typename... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void fail(const Parts&... parts) {
  Sentence sentence;
  (sentence << ... << parts);
  sentence.fail();
}

// Not STD_TORCH_CHECK: it puts the function, the file and the line in front of a sentence meant for the caller.
template <typename... Parts>
inline void check(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

}  // namespace hyperseg
