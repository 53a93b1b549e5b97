#include "cuda/encoder/normalise_frames.h"

#include "cuda/device/fast_divmod.h"
#include "cuda/device/launch.cuh"
#include "cuda/device/vectors.cuh"

// A thread has eight consecutive values of a row, which are colours of three or four pixels.
namespace hyperseg::cuda {
namespace {

constexpr const char* kName = "normalise_frames";
constexpr int kThreads = 256;

template <typename T>
struct Normalisation {
  Map<const uint8_t> frames;
  const float *scale, *shift;
  T* out;
  FastDivmod parts, height;  // threads per row; rows per image
  int values, count;         // per row; threads
  bool dense;                // the colours of a row's pixels are contiguous
  bool words;                // and eight of them 8-byte aligned
  bool vectors;              // rows of `out` are whole vectors
};

// The lowest byte as a float, without the slow conversion: as the last bits of 2^23 + byte.
HYPERSEG_DEVICE float byte_to_float(uint64_t word) {
  return as_float(0x4b000000u | (static_cast<uint32_t>(word) & 255u)) - 8388608.0f;
}

template <typename T>
HYPERSEG_KERNEL(kThreads, 4)
normalise_frames_kernel(Normalisation<T> problem) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= problem.count) return;
  const Map<const uint8_t>& frames = problem.frames;
  const int row = problem.parts.quotient(i), first = (i - row * problem.parts.value()) * 8;
  const int image = problem.height.quotient(row), y = row - image * problem.height.value();
  const int last = static_cast<int>(frames.width) - 1, left = problem.values - first;
  const uint8_t* from = frames.at(image, 0, min(y, static_cast<int>(frames.height) - 1), 0);
  float scale[3], shift[3], v[8];
#pragma unroll
  for (int c = 0; c < 3; ++c) {  // of the colours in the order in which this thread has them
    scale[c] = problem.scale[(first + c) % 3];
    shift[c] = problem.shift[(first + c) % 3];
  }
  if (problem.words && first + 8 <= 3 * (last + 1)) {
    const uint64_t word = *reinterpret_cast<const uint64_t*>(from + first);
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = byte_to_float(word >> 8 * e) * scale[e % 3] + shift[e % 3];
  } else {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int pixel = (first + e) / 3, colour = (first + e) % 3, x = min(pixel, last);
      const int64_t at = problem.dense ? 3 * x + colour : x * frames.stride_w + colour * frames.stride_c;
      v[e] = static_cast<float>(from[at]) * scale[e % 3] + shift[e % 3];
    }
  }
  T* to = problem.out + static_cast<int64_t>(row) * problem.values + first;
  if (problem.vectors) return store8(to, v);
#pragma unroll
  for (int e = 0; e < 8; ++e)
    if (e < left) to[e] = from_float<T>(v[e]);
}

}  // namespace

void normalise_frames(const NormaliseFrames& problem, Stream stream) {
  const int64_t values = 3 * problem.width, parts = blocks_of(values, 8);
  const int64_t count = parts * problem.height * problem.images;
  check(count < int64_t{1} << 31, kName, ": ", problem.images, " images of ", problem.height, "x", problem.width,
        " are too large for a GPU");
  with_type(problem.type, [&](auto value) {
    using T = decltype(value);
    Normalisation<T> args{};
    args.frames = problem.frames;
    args.scale = problem.scale;
    args.shift = problem.shift;
    args.out = static_cast<T*>(problem.out);
    args.parts = FastDivmod(parts);
    args.height = FastDivmod(problem.height);
    args.values = static_cast<int>(values);
    args.count = static_cast<int>(count);
    args.dense = problem.frames.stride_c == 1 && problem.frames.stride_w == 3;
    args.words = args.dense && problem.frames.stride_n % 8 == 0 && problem.frames.stride_h % 8 == 0 &&
                 reinterpret_cast<uintptr_t>(problem.frames.data) % 8 == 0;
    args.vectors = values % 8 == 0 && reinterpret_cast<uintptr_t>(problem.out) % 16 == 0;
    launch<normalise_frames_kernel<T>>(kName, grid_of(kName, blocks_of(count, kThreads)), kThreads, 0, stream, args);
  });
}

}  // namespace hyperseg::cuda
