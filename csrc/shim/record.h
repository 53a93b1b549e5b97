#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

// A record of launches, with their parameters as CUDA would pass them: tools/machine counts what they execute on a GPU.
namespace hyperseg::shim {

enum class Recording { kOff, kOnly, kAndRun };  // kOnly: kernels are recorded and not run

struct Launch {
  std::string op, kernel;  // the kernel as the mangled name of a type
  unsigned grid[3], threads;
  size_t shared;
  std::vector<unsigned char> parameters;
};

extern Recording recording;
extern std::vector<Launch> launches;

// Names a kernel, by typeid.
template <auto kernel>
struct Kernel {};

// The bytes of the arguments, converted to the kernel's parameters, each at its own alignment.
template <typename... Params>
std::vector<unsigned char> pack(void (*)(Params...), std::type_identity_t<Params>... args) {
  std::vector<unsigned char> bytes;
  const auto add = [&]<typename T>(const T& arg) {
    const size_t begin = (bytes.size() + alignof(T) - 1) / alignof(T) * alignof(T);
    bytes.resize(begin + sizeof arg);
    T plain = arg;
#if __has_builtin(__builtin_clear_padding)
    __builtin_clear_padding(&plain);  // or padding could look like an address
#endif
    std::memcpy(bytes.data() + begin, &plain, sizeof plain);
  };
  (add(args), ...);
  return bytes;
}

}  // namespace hyperseg::shim
