#pragma once

#include "common/contracts/mbconv.h"
#include "cpu/base/tensors.h"

namespace hyperseg::cpu {

// Check the contract of mbconv, and run it.
Tensor run_mbconv(const Tensor& x, const MbconvTensors& block);

}  // namespace hyperseg::cpu
