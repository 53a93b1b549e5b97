#include "hyperseg/segmenter.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/version.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <optional>
#include <set>
#include <sstream>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "archive.h"
#if defined(__linux__)
#include <dlfcn.h>
#include <unistd.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace hyperseg {
namespace {

using Loader = torch::inductor::AOTIModelPackageLoader;
using Metadata = std::unordered_map<std::string, std::string>;

constexpr const char* kModel = "model";  // the name that hyperseg/export/aoti.py gives it in the package
constexpr const char* kFormat = "1";     // of the metadata, likewise

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// Call a function of PyTorch's; throw its exceptions as Error, without their C++ stack.
template <typename Function>
auto guarded(const std::string& what, Function function) {
  try {
    return function();
  } catch (const Error&) {
    throw;
  } catch (const c10::Error& error) {
    fail(what, ": ", first_line(error.what_without_backtrace()));
  } catch (const std::exception& error) {
    fail(what, ": ", first_line(error.what()));
  }
}

std::string major_and_minor(const std::string& version) {
  return version.substr(0, version.find('.', version.find('.') + 1));
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

class Reader {
 public:
  Reader(const std::string& package, const Metadata& found) : package_(package), found_(found) {}

  std::string text(const std::string& name) const {
    const auto entry = found_.find("hyperseg." + name);
    if (entry == found_.end()) {
      fail(package_, " is not a package of `hyperseg export aoti`, or it is damaged: it does not say its ", name, ".");
    }
    return entry->second;
  }

  std::int64_t number(const std::string& name) const { return parse(name, text(name)); }

  std::int64_t parse(const std::string& name, const std::string& value) const {
    std::int64_t number = 0;
    const char* const end = value.data() + value.size();
    const auto [stop, problem] = std::from_chars(value.data(), end, number);
    if (problem != std::errc() || stop != end || number < 0) {
      fail(package_, " is damaged: its ", name, " is ", value, ", not a number.");
    }
    return number;
  }

 private:
  const std::string& package_;
  const Metadata& found_;
};

void check_processor(const std::string& package, const std::string& capability) {
#if defined(__x86_64__)
  if (capability == "x86-64-v3" && !(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) {
    fail(package, " needs a processor with AVX2 and FMA, which this one lacks; export it on this machine.");
  }
#else
  if (capability.rfind("x86-64", 0) == 0) {
    fail(package, " is for x86-64 processors, and this is another one; export it on this machine.");
  }
#endif
}

void check_view(const char* what, const void* data, std::int64_t height, std::int64_t width, std::ptrdiff_t stride,
                int bytes, const Info& info) {
  if (data == nullptr) fail("The ", what, " has no data: its pointer is null.");
  if (height != info.height || width != info.width) {
    fail("This package is for images of ", info.height, "x", info.width, " (height x width), the ", what, " is ",
         height, "x", width, ". Resize it, or export a package for this size.");
  }
  const std::ptrdiff_t least = static_cast<std::ptrdiff_t>(width) * bytes;
  if (stride != 0 && (stride < 0 ? -stride : stride) < least) {
    fail("The rows of the ", what, " overlap: a row has ", least, " bytes, and the next one begins ", stride,
         " bytes after it.");
  }
}

// Let packages for the CPU find PyTorch's symbols: they name no library, and it may have been loaded for one user
// alone.
void share_torch() {
#if defined(__linux__)
  static void* const torch = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_GLOBAL | RTLD_LAZY);
  static_cast<void>(torch);
#endif
}

// PyTorch unpacks packages to the folder for temporary files.
void check_temporary_folder(const std::string& package) {
#if defined(__linux__)
  const char* const given = std::getenv("TMPDIR");
  const std::string folder = given ? given : "/tmp";
  if (access(folder.c_str(), W_OK | X_OK) != 0) {
    fail(package, " is unpacked to the folder for temporary files, and ", folder,
         " cannot be written: ", std::strerror(errno), ". Set TMPDIR to another one.");
  }
#endif
}

// The folders of unpacked packages whose machine code this process has loaded.
std::set<std::string> unpacked() {
  std::set<std::string> folders;
  std::ifstream maps("/proc/self/maps");  // empty on other systems
  for (std::string line; std::getline(maps, line);) {
    const std::size_t name = line.find("/aotinductor_"), path = line.find('/');
    if (name == std::string::npos) continue;
    const std::size_t end = line.find('/', name + 1);
    if (end != std::string::npos) folders.insert(line.substr(path, end - path));
  }
  return folders;
}

// Load a package for the CPU, and remove what was unpacked: its machine code stays loaded without the files, which a
// program that is killed would leave.
std::unique_ptr<Loader> load(const std::string& package, std::size_t concurrency) {
  static std::mutex one;
  const std::lock_guard lock(one);
  const std::set<std::string> before = unpacked();
  auto loader = std::make_unique<Loader>(package, kModel, false, concurrency, -1);
  for (const std::string& folder : unpacked()) {
    std::error_code ignored;
    if (!before.count(folder)) std::filesystem::remove_all(folder, ignored);
  }
  return loader;
}

void keep_freed_memory() {
#if defined(__GLIBC__)
  static const bool done = [] {  // as in hyperseg/runtime/device.py
    if (!mallopt(M_MMAP_THRESHOLD, 1 << 30) && !mallopt(M_MMAP_THRESHOLD, 1 << 25)) return false;
    return mallopt(M_TRIM_THRESHOLD, 1 << 30) && mallopt(M_TOP_PAD, 1 << 26);
  }();
  static_cast<void>(done);
#endif
}

// Buffers for frames whose memory the network cannot read as it is, kept from call to call.
class Buffers {
 public:
  explicit Buffers(std::function<at::Tensor()> allocate) : allocate_(std::move(allocate)) {}

  at::Tensor take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return allocate_();
    at::Tensor buffer = std::move(free_.back());
    free_.pop_back();
    return buffer;
  }

  void give_back(at::Tensor buffer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(buffer));
  }

 private:
  std::function<at::Tensor()> allocate_;
  std::mutex mutex_;
  std::vector<at::Tensor> free_;
};

// A buffer of the pool until the end of the scope.
class Borrowed {
 public:
  explicit Borrowed(Buffers& pool) : pool_(pool), tensor(pool.take()) {}
  ~Borrowed() { pool_.give_back(std::move(tensor)); }
  Borrowed(const Borrowed&) = delete;

 private:
  Buffers& pool_;

 public:
  at::Tensor tensor;
};

void copy_rows(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to, std::ptrdiff_t to_stride,
               std::int64_t rows, std::size_t bytes) {
  if (from_stride == to_stride && from_stride == static_cast<std::ptrdiff_t>(bytes)) {
    std::memcpy(to, from, bytes * rows);
    return;
  }
  for (std::int64_t row = 0; row < rows; ++row) std::memcpy(to + row * to_stride, from + row * from_stride, bytes);
}

}  // namespace

struct Segmenter::State {
  Info info;
  at::Device device = at::kCPU;
  std::unique_ptr<Loader> loader;
  std::unique_ptr<Buffers> frames;
};

Info Segmenter::read_info(const std::string& package) {
  std::error_code unknown;
  if (!std::filesystem::is_regular_file(package, unknown)) fail("There is no file ", package, ".");
  if (!std::ifstream(package)) fail(package, " cannot be read: ", std::strerror(errno), ".");
  if (const std::string damage = damage_of(package); !damage.empty()) fail(package, " ", damage, ".");
  check_temporary_folder(package);
  const Metadata found = guarded(package +
                                     " is not a package of `hyperseg export aoti`; programs of `hyperseg export "
                                     "pt2` run in Python alone",
                                 [&] { return Loader::load_metadata_from_package(package, kModel); });
  const Reader reader(package, found);
  if (const std::string format = reader.text("format"); format != kFormat) {
    fail(package, " has format ", format, ", this library reads format ", kFormat,
         "; export it again with the version of HyperSeg of this library, ", version(), ".");
  }
  Info info;
  info.network = reader.text("network");
  info.height = reader.number("height");
  info.width = reader.number("width");
  info.batch = reader.number("batch");
  info.classes = split(reader.text("classes"), '\n');
  for (const std::string& colour : split(reader.text("palette"), ';')) {
    const std::vector<std::string> parts = split(colour, ',');
    if (parts.size() != 3) fail(package, " is damaged: its palette has the colour ", colour, ".");
    auto& rgb = info.palette.emplace_back();
    for (int i = 0; i < 3; ++i) rgb[i] = static_cast<std::uint8_t>(reader.parse("palette", parts[i]));
  }
  info.device = reader.text("device");
  info.dtype = reader.text("dtype");
  info.capability = reader.text("capability");
  info.hyperseg_version = reader.text("version");
  info.torch_version = reader.text("torch");
  return info;
}

Segmenter::Segmenter(const std::string& package, const Options& options) : state_(std::make_unique<State>()) {
  State& state = *state_;
  state.info = read_info(package);
  const Info& info = state.info;
  if (options.threads < 0) fail("threads must be 0 or more, got ", options.threads, ".");
  if (options.concurrency < 1) fail("concurrency must be 1 or more, got ", options.concurrency, ".");
  if (major_and_minor(info.torch_version) != major_and_minor(TORCH_VERSION)) {
    fail(package, " was made with PyTorch ", info.torch_version, ", and this library was built with ", TORCH_VERSION,
         "; export it again with that version, or build the library with PyTorch ", info.torch_version, ".");
  }
  const bool cuda = info.device == "cuda";
  if (!cuda && options.device >= 0) fail(package, " is for the CPU: leave out device, got ", options.device, ".");
  if (!cuda) check_processor(package, info.capability);
  if (cuda && !at::hasCUDA())
    fail(package, " is for CUDA devices, and PyTorch finds none here; export one for the CPU.");
  if (cuda) state.device = at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(options.device));
  if (options.threads > 0) at::set_num_threads(options.threads);
  if (options.keep_memory && !cuda) keep_freed_memory();
  if (!cuda) share_torch();
  const std::string size = std::to_string((std::filesystem::file_size(package) >> 20) + 1);
  const std::string hint =
      " (it is unpacked to TMPDIR or /tmp, where programs must be allowed and " + size + " MiB be free)";
  state.loader = guarded(package + " cannot be loaded" + hint, [&] {
    if (!cuda) return load(package, options.concurrency);
    return std::make_unique<Loader>(package, kModel, false, options.concurrency, state.device.index());
  });
  state.frames =
      std::make_unique<Buffers>([size = std::array{info.batch, info.height, info.width, std::int64_t{3}}, cuda] {
        return at::empty(size, at::TensorOptions().dtype(at::kByte).pinned_memory(cuda));
      });
}

Segmenter::~Segmenter() = default;
Segmenter::Segmenter(Segmenter&&) noexcept = default;
Segmenter& Segmenter::operator=(Segmenter&&) noexcept = default;

const Info& Segmenter::info() const noexcept { return state_->info; }

void Segmenter::segment(const Image& image, const Labels& labels) const { segment(&image, &labels, 1); }

void Segmenter::segment(const Image* images, const Labels* labels, std::size_t count) const {
  if (state_ == nullptr) fail("This Segmenter was moved from.");
  State& state = *state_;
  const Info& info = state.info;
  if (count == 0) return;
  if (images == nullptr || labels == nullptr) fail("images and labels must not be null.");
  if (count > static_cast<std::size_t>(info.batch)) {
    fail("This package takes at most ", info.batch, " images per call, got ", count,
         "; export one with a larger --batch, or call it several times.");
  }
  for (std::size_t i = 0; i < count; ++i) {
    check_view("image", images[i].data, images[i].height, images[i].width, images[i].row_stride, 3, info);
    check_view("memory for labels", labels[i].data, labels[i].height, labels[i].width, labels[i].row_stride, 1, info);
  }
  guarded("The network failed", [&] {
    const c10::InferenceMode inference;
    const std::size_t row = 3 * static_cast<std::size_t>(info.width);
    const auto stride_of = [&](const Image& image) {
      return image.row_stride == 0 ? static_cast<std::ptrdiff_t>(row) : image.row_stride;
    };
    std::optional<Borrowed> buffer;
    at::Tensor frames;
    const bool cuda = info.device == "cuda";
    if (!cuda && info.batch == 1 && stride_of(images[0]) == static_cast<std::ptrdiff_t>(row)) {
      frames = at::from_blob(const_cast<std::uint8_t*>(images[0].data), {1, info.height, info.width, 3}, at::kByte);
    } else {
      frames = buffer.emplace(*state.frames).tensor;
      const std::size_t bytes = row * info.height;
      std::uint8_t* const to = frames.data_ptr<std::uint8_t>();
      for (std::size_t i = 0; i < static_cast<std::size_t>(info.batch); ++i) {  // a short batch repeats its last image
        const Image& image = images[i < count ? i : count - 1];
        copy_rows(image.data, stride_of(image), to + i * bytes, static_cast<std::ptrdiff_t>(row), info.height, row);
      }
      frames = frames.to(state.device);
    }
    const std::vector<at::Tensor> outputs = state.loader->run({frames});
    const at::Tensor found = outputs.at(0).cpu().contiguous();
    const std::uint8_t* const from = found.data_ptr<std::uint8_t>();
    for (std::size_t i = 0; i < count; ++i) {
      const std::ptrdiff_t stride =
          labels[i].row_stride == 0 ? static_cast<std::ptrdiff_t>(info.width) : labels[i].row_stride;
      copy_rows(from + i * info.height * info.width, info.width, labels[i].data, stride, info.height, info.width);
    }
  });
}

const char* version() noexcept { return HYPERSEG_VERSION; }
const char* torch_version() noexcept { return TORCH_VERSION; }

}  // namespace hyperseg
