#pragma once

// What the hosts of the kernels know of CUDA, so that they compile without its headers.
struct CUstream_st;

namespace hyperseg::cuda {

#ifdef HYPERSEG_SHIM
using Stream = void*;
#else
using Stream = ::CUstream_st*;
#endif

enum class Type { kFloat, kHalf, kBFloat16 };

}  // namespace hyperseg::cuda
