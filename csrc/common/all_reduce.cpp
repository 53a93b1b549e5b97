#include "common/all_reduce.h"

#include <array>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.11 has only the macro without the error's message
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace hyperseg {

// By an operator that hyperseg/ops/_registry.py defines: the schemas of torch's collectives differ between its
// versions.
Tensor all_reduce(const Tensor& values, const std::string& group) {
  std::array<StableIValue, 2> stack{torch::stable::detail::from(values), torch::stable::detail::from(group)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("hyperseg::all_reduce", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace hyperseg
