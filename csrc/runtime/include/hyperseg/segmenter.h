// HyperSeg without Python: 8-bit RGB images in, 8-bit class labels out.
//
//   hyperseg::Segmenter segmenter("street.pt2");  // made by `hyperseg export aoti`
//   std::vector<std::uint8_t> labels(segmenter.info().height * segmenter.info().width);
//   segmenter.segment({rgb, height, width}, {labels.data(), height, width});
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__GNUC__)
#define HYPERSEG_API __attribute__((visibility("default")))
#else
#define HYPERSEG_API
#endif

namespace hyperseg {

// What every function here throws. The message says what was wrong, what was expected and what to do.
class HYPERSEG_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// RGB pixels of one image: interleaved, 3 bytes per pixel, rows top to bottom.
struct Image {
  const std::uint8_t* data = nullptr;
  std::int64_t height = 0, width = 0;
  std::ptrdiff_t row_stride = 0;  // bytes from a row to the next one, also negative; 0: 3 * width
};

// Memory for the labels of one image: 1 byte per pixel, the index of its class.
struct Labels {
  std::uint8_t* data = nullptr;
  std::int64_t height = 0, width = 0;
  std::ptrdiff_t row_stride = 0;  // bytes from a row to the next one, also negative; 0: width
};

// What a package was made for.
struct Info {
  std::string network;                               // such as "hyperseg-m-cityscapes"
  std::int64_t height = 0, width = 0;                // of the images
  std::int64_t batch = 0;                            // most images per call
  std::vector<std::string> classes;                  // label i is classes[i]
  std::vector<std::array<std::uint8_t, 3>> palette;  // RGB, one per class
  std::string device;                                // "cpu" or "cuda"
  std::string dtype;                                 // of the network's maps: "float32", "float16" or "bfloat16"
  std::string capability;  // what the CPU must have, such as "x86-64-v3", or the GPU, such as "sm_90"; "": nothing
  std::string hyperseg_version, torch_version;  // that made it
};

struct Options {
  int threads = 0;          // OpenMP threads per call, a setting of the process; 0: as many as PyTorch would take
  int concurrency = 1;      // calls from different threads that run at once; further ones wait
  int device = -1;          // index of the CUDA device; -1: the current one
  bool keep_memory = true;  // glibc keeps freed pages for the next frame, up to 1 GiB; a setting of the process
};

// A network for images of one size. Objects can be used by several threads at once, and moved but not copied.
class HYPERSEG_API Segmenter {
 public:
  // Load a package of `hyperseg export aoti`. It is unpacked to TMPDIR, or /tmp, until it is loaded; a package for
  // CUDA until the object is destroyed.
  explicit Segmenter(const std::string& package, const Options& options = {});
  ~Segmenter();
  Segmenter(Segmenter&&) noexcept;
  Segmenter& operator=(Segmenter&&) noexcept;

  // Read what a package was made for, without loading it.
  static Info read_info(const std::string& package);

  const Info& info() const noexcept;

  // Segment one image. It and the labels must have the package's size.
  void segment(const Image& image, const Labels& labels) const;

  // Segment `count` images, at most info().batch, in one call of the network; fewer take as long as a whole batch.
  void segment(const Image* images, const Labels* labels, std::size_t count) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The version of this library and of the PyTorch that it was built with.
HYPERSEG_API const char* version() noexcept;
HYPERSEG_API const char* torch_version() noexcept;

}  // namespace hyperseg
