#pragma once

#include <string>

namespace hyperseg {

// Compare every file in a package, which is a zip archive, with its checksum: PyTorch does not. Return what is wrong
// with it, such as "is cut off"; "" if nothing is.
std::string damage_of(const std::string& package);

}  // namespace hyperseg
