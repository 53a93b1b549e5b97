#include "common/check.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace hyperseg {

Sentence& Sentence::operator<<(const char* words) {
  const size_t more = std::min(std::strlen(words), sizeof words_ - 1 - length_);
  std::memcpy(words_ + length_, words, more);
  length_ += more;
  words_[length_] = '\0';
  return *this;
}

Sentence& Sentence::operator<<(int64_t number) { return *this << std::to_string(number); }

void Sentence::fail() const { throw std::runtime_error(words_); }

}  // namespace hyperseg
