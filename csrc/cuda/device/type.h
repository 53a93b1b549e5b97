#pragma once

// The CUDA names that hosts use, so that they compile without CUDA's headers.
struct CUstream_st;

namespace hyperseg::cuda {

#ifdef HYPERSEG_SHIM
using Stream = void*;
#else
using Stream = ::CUstream_st*;
#endif

enum class Type { kFloat, kHalf, kBFloat16 };

}  // namespace hyperseg::cuda
