#pragma once

#include <string>

#include "common/tensors.h"

namespace hyperseg {

// The sum of `values` over the processes of a group, which is given by its name in torch.distributed. On a GPU the
// current stream waits for it, the host does not.
Tensor all_reduce(const Tensor& values, const std::string& group);

}  // namespace hyperseg
