#include "common/check.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace hyperseg {

Message& Message::operator<<(const char* text) {
  const size_t more = std::min(std::strlen(text), sizeof text_ - 1 - length_);
  std::memcpy(text_ + length_, text, more);
  length_ += more;
  text_[length_] = '\0';
  return *this;
}

Message& Message::operator<<(int64_t number) { return *this << std::to_string(number); }

void Message::fail() const { throw std::runtime_error(text_); }

}  // namespace hyperseg
