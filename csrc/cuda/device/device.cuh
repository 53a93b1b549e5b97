#pragma once

// All device-specific names that kernels use besides C++ and CUDA's own. csrc/shim/device.h defines the same names for
// a CPU.
#ifdef HYPERSEG_SHIM
#include "shim/device.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace hyperseg::cuda {

using half = __half;
using bfloat16 = __nv_bfloat16;

#define HYPERSEG_DEVICE __device__ __forceinline__
#define HYPERSEG_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define HYPERSEG_TABLE const __grid_constant__  // a kernel's argument that is indexed at run time, without a copy of it

// The dynamic shared memory of the block, 16-byte aligned.
HYPERSEG_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char hyperseg_shared_memory[];
  return hyperseg_shared_memory;
}

HYPERSEG_DEVICE void sync_block() { __syncthreads(); }
HYPERSEG_DEVICE void sync_warp() { __syncwarp(); }
HYPERSEG_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffff, value, mask); }
HYPERSEG_DEVICE uint32_t shuffle_xor(uint32_t value, int mask) { return __shfl_xor_sync(0xffffffff, value, mask); }

// The warp of a thread of this block, the same for all lanes; the compiler then knows that it is uniform.
HYPERSEG_DEVICE int warp_of(int thread) { return __shfl_sync(0xffffffff, thread / 32, 0); }
HYPERSEG_DEVICE int warp_index() { return warp_of(static_cast<int>(threadIdx.x)); }

// Return v, but compute what depends on it where it is needed: values that a loop over long bodies does not change
// would otherwise be kept in registers across all of them.
HYPERSEG_DEVICE int opaque(int v) {
  asm volatile("" : "+r"(v));
  return v;
}

// Programmatic dependent launch: a kernel may start before the previous kernel of the stream has finished. It must wait
// before it reads that kernel's outputs or writes its inputs; constants may be read before.
HYPERSEG_DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Never before the wait: see stage_constants_and_wait.
HYPERSEG_DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Begin a kernel with stage(), which reads nothing but constants and writes nothing but shared memory and registers,
// while the previous kernel may still be running if the constants are `ready` (common/constants.h). Then wait.
//
// Every kernel lets the next one start only after its own wait. So when this grid starts, all kernels before the
// previous one have finished and their writes are visible; only the previous one may still write, and it does not write
// constants.
template <typename Stage>
HYPERSEG_DEVICE void stage_constants_and_wait(bool ready, const Stage& stage) {
  if (!ready) wait_for_previous_kernel();
  stage();
  wait_for_previous_kernel();  // returns at once the second time
  let_next_kernel_start();
}

// Add to a counter in global memory after all writes of the block that a barrier orders before, and read it before all
// later reads: see GridBarrier.
HYPERSEG_DEVICE void add_release(unsigned* counter, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(counter)), "r"(value)
               : "memory");
}
HYPERSEG_DEVICE unsigned load_acquire(const unsigned* counter) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(counter)) : "memory");
  return value;
}

HYPERSEG_DEVICE float to_float(float v) { return v; }
HYPERSEG_DEVICE float to_float(half v) { return __half2float(v); }
HYPERSEG_DEVICE float to_float(bfloat16 v) { return __bfloat162float(v); }

template <typename T>
HYPERSEG_DEVICE T from_float(float v);
template <>
HYPERSEG_DEVICE float from_float<float>(float v) {
  return v;
}
template <>
HYPERSEG_DEVICE half from_float<half>(float v) {
  return __float2half_rn(v);
}
template <>
HYPERSEG_DEVICE bfloat16 from_float<bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// The larger and the smaller of two values, NaN if either is NaN; fmaxf and fminf would hide it.
HYPERSEG_DEVICE float max_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
HYPERSEG_DEVICE float min_or_nan(float a, float b) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

HYPERSEG_DEVICE float fast_reciprocal(float v) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

// tanh with a relative error of at most 2^-11.
HYPERSEG_DEVICE float fast_tanh(float v) {
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

HYPERSEG_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
HYPERSEG_DEVICE uint32_t as_bits(float v) { return __float_as_uint(v); }

// A byte of a word, as an operation that the compiler does not join with a conversion to float: that would take one of
// the few units for exponentials.
HYPERSEG_DEVICE uint32_t byte_of(uint32_t word, int byte) {
  uint32_t result;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(result) : "r"(word), "r"(0x4440 | byte));
  return result;
}

// Two 16-bit values in a register, the first one in the low half.
template <typename T>
HYPERSEG_DEVICE uint32_t pack(float low, float high);
template <>
HYPERSEG_DEVICE uint32_t pack<half>(float low, float high) {
  const __half2 v = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}
template <>
HYPERSEG_DEVICE uint32_t pack<bfloat16>(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

// min(max(v, 0), 6) of both values, NaN if v is NaN.
template <typename T>
HYPERSEG_DEVICE uint32_t relu6_of_two(uint32_t v);
template <>
HYPERSEG_DEVICE uint32_t relu6_of_two<half>(uint32_t v) {
  const __half2 six = __floats2half2_rn(6.0f, 6.0f), zero = __floats2half2_rn(0.0f, 0.0f);
  const __half2 clamped = __hmin2_nan(__hmax2_nan(*reinterpret_cast<const __half2*>(&v), zero), six);
  return *reinterpret_cast<const uint32_t*>(&clamped);
}
template <>
HYPERSEG_DEVICE uint32_t relu6_of_two<bfloat16>(uint32_t v) {
  const __nv_bfloat162 six = __floats2bfloat162_rn(6.0f, 6.0f), zero = __floats2bfloat162_rn(0.0f, 0.0f);
  const __nv_bfloat162 clamped = __hmin2_nan(__hmax2_nan(*reinterpret_cast<const __nv_bfloat162*>(&v), zero), six);
  return *reinterpret_cast<const uint32_t*>(&clamped);
}

// The same of two floats: pack<T>(low, high) and relu6_of_two in one instruction less.
template <typename T>
HYPERSEG_DEVICE uint32_t pack_relu6(float low, float high);
template <>
HYPERSEG_DEVICE uint32_t pack_relu6<half>(float low, float high) {
  uint32_t v;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  const __half2 clamped = __hmin2_nan(*reinterpret_cast<const __half2*>(&v), __floats2half2_rn(6.0f, 6.0f));
  return *reinterpret_cast<const uint32_t*>(&clamped);
}
template <>
HYPERSEG_DEVICE uint32_t pack_relu6<bfloat16>(float low, float high) {
  uint32_t v;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  const __nv_bfloat162 six = __floats2bfloat162_rn(6.0f, 6.0f);
  const __nv_bfloat162 clamped = __hmin2_nan(*reinterpret_cast<const __nv_bfloat162*>(&v), six);
  return *reinterpret_cast<const uint32_t*>(&clamped);
}

template <typename T>
HYPERSEG_DEVICE float2 unpack(uint32_t v);
template <>
HYPERSEG_DEVICE float2 unpack<half>(uint32_t v) {
  return __half22float2(*reinterpret_cast<const __half2*>(&v));
}
template <>
HYPERSEG_DEVICE float2 unpack<bfloat16>(uint32_t v) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&v));
}

// Multiply the two low and the two high values.
template <typename T>
HYPERSEG_DEVICE uint32_t multiply2(uint32_t a, uint32_t b);
template <>
HYPERSEG_DEVICE uint32_t multiply2<half>(uint32_t a, uint32_t b) {
  const __half2 v = __hmul2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&v);
}
template <>
HYPERSEG_DEVICE uint32_t multiply2<bfloat16>(uint32_t a, uint32_t b) {
  const __nv_bfloat162 v =
      __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&a), *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&v);
}

// Two values with 0 instead of -0.
template <typename T>
HYPERSEG_DEVICE uint32_t without_negative_zeros(uint32_t two);
template <>
HYPERSEG_DEVICE uint32_t without_negative_zeros<half>(uint32_t two) {
  const __half2 v = __hadd2(*reinterpret_cast<const __half2*>(&two), __floats2half2_rn(0.0f, 0.0f));
  return *reinterpret_cast<const uint32_t*>(&v);
}
template <>
HYPERSEG_DEVICE uint32_t without_negative_zeros<bfloat16>(uint32_t two) {
  const __nv_bfloat162 v = __hadd2(*reinterpret_cast<const __nv_bfloat162*>(&two), __floats2bfloat162_rn(0.0f, 0.0f));
  return *reinterpret_cast<const uint32_t*>(&v);
}

// Copy 16 bytes, 16-byte aligned, from global to shared memory asynchronously; zeros if not `valid`. A thread's copies
// since its last commit_copies() form a group; after wait_for_copies<n>() at most its last n groups are in flight.
HYPERSEG_DEVICE void copy_async(void* shared, const void* global, bool valid) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
// The same with 4 or 8 bytes, aligned to as many.
template <int BYTES>
HYPERSEG_DEVICE void copy_async(void* shared, const void* global, bool valid) {
  if constexpr (BYTES == 16) return copy_async(shared, global, valid);
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(BYTES),
               "r"(valid ? BYTES : 0)
               : "memory");
}
HYPERSEG_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
HYPERSEG_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Store 16 bytes, 16-byte aligned, by one instruction; the compiler may split an ordinary store into four.
HYPERSEG_DEVICE void store16(void* global, uint4 v) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(global)), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}
HYPERSEG_DEVICE void store16(void* global, float4 v) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(global)), "f"(v.x), "f"(v.y),
               "f"(v.z), "f"(v.w)
               : "memory");
}

// The same to shared memory. Loads from global memory may move across it.
HYPERSEG_DEVICE void store16_shared(void* shared, uint4 v) {
  asm volatile(
      "st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w));
}

// Load four 8x8 matrices of 16-bit values from shared memory: lane i gives the address of row i % 8 of matrix i / 8,
// 16-byte aligned.
HYPERSEG_DEVICE void ldmatrix4(uint32_t (&r)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// The same matrices, each transposed.
HYPERSEG_DEVICE void ldmatrix4_transposed(uint32_t (&r)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// Two of them, not transposed, addressed by lanes 0 to 15.
HYPERSEG_DEVICE void ldmatrix2(uint32_t* r, const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(address));
}

// Transpose an 8x8 matrix of 16-bit values: lane i has values 2 (i % 4) and the next one of row i / 4.
HYPERSEG_DEVICE uint32_t transposed(uint32_t two) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(two));
  return result;
}

// Store the four 8x8 parts of a [16, 16] matrix to shared memory: rows 0 to 7 and 8 to 15 of the first eight columns,
// then of the others, each as in an accumulator. Rows are STRIDE values apart and 16-byte aligned.
template <int STRIDE, typename T>
HYPERSEG_DEVICE void store_matrix4(T* matrix, int lane, const uint32_t (&r)[4]) {
#if __CUDA_ARCH__ >= 900
  const T* row = matrix + lane % 16 * STRIDE + lane / 16 * 8;
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(row))),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#else
#pragma unroll
  for (int i = 0; i < 4; ++i)
    *reinterpret_cast<uint32_t*>(matrix + (lane / 4 + i % 2 * 8) * STRIDE + lane % 4 * 2 + i / 2 * 8) = r[i];
#endif
}

// A lane's part of a diagonal right operand of mma8, given the value in the lane's column.
HYPERSEG_DEVICE uint32_t diagonal(const void* value, int lane) {
  const uint32_t bits = *static_cast<const uint16_t*>(value);
  const int column = lane / 4;
  return __byte_perm(bits, 0, lane % 4 != column / 2 ? 0x2222 : column % 2 ? 0x1022 : 0x2210);
}

// c += a b on a tensor core: a [16, 16] row-major, b [16, 8] column-major, c [16, 8]. Lane 4 g + t holds rows g and g +
// 8, in c columns 2 t and 2 t + 1.
template <typename T>
HYPERSEG_DEVICE void mma16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
HYPERSEG_DEVICE void mma16<half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
HYPERSEG_DEVICE void mma16<bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c = a b + d, without a copy of d.
template <typename T>
HYPERSEG_DEVICE void mma16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float4& d);
template <>
HYPERSEG_DEVICE void mma16<half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float4& d) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(d.x), "f"(d.y), "f"(d.z), "f"(d.w));
}
template <>
HYPERSEG_DEVICE void mma16<bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float4& d) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(d.x), "f"(d.y), "f"(d.z), "f"(d.w));
}

// The same with a [16, 8] and b [8, 8].
template <typename T>
HYPERSEG_DEVICE void mma8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b);
template <>
HYPERSEG_DEVICE void mma8<half>(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(b));
}
template <>
HYPERSEG_DEVICE void mma8<bfloat16>(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(b));
}

}  // namespace hyperseg::cuda

#endif
