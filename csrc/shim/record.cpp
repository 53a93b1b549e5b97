#include "shim/record.h"

namespace hyperseg::shim {

Recording recording = Recording::kOff;
std::vector<Launch> launches;

}  // namespace hyperseg::shim
