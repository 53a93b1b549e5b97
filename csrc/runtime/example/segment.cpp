// Segment a PNG image, or raw frames from a pipe:
//
//   segment street.pt2 street.png labels.png      # labels.png: a palette PNG whose values are the classes
//   ffmpeg -i street.mp4 -vf scale=1024:512 -f rawvideo -pix_fmt rgb24 - | segment street.pt2 - > labels.raw
//
// Exit code: 0 done, 1 an error, whose message is on stderr, 2 a wrong command line.
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "hyperseg/segmenter.h"
#ifdef SEGMENT_PNG
#include <png.h>
#endif
#if defined(__linux__)
#include <unistd.h>
#endif

namespace {

using hyperseg::Info, hyperseg::Segmenter;

#ifdef SEGMENT_PNG
struct Pixels {
  std::vector<std::uint8_t> rgb;
  std::int64_t height, width;
};

// As `hyperseg predict` reads it: 16 bits to their upper 8, without alpha, no gamma.
Pixels read_png(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!file) throw std::runtime_error(path + " cannot be read: " + std::strerror(errno));
  unsigned char signature[8] = {};
  if (std::fread(signature, 1, 8, file.get()) < 8 || png_sig_cmp(signature, 0, 8)) {
    throw std::runtime_error(path + " is not a PNG image; convert it to one");
  }
  const auto stop = [](png_structp png, png_const_charp message) {
    throw std::runtime_error(*static_cast<const std::string*>(png_get_error_ptr(png)) + " is damaged: " + message);
  };
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, const_cast<std::string*>(&path), stop,
                                           [](png_structp, png_const_charp) {});
  png_infop info = png_create_info_struct(png);
  const auto destroy = [&info](png_structp reader) { png_destroy_read_struct(&reader, &info, nullptr); };
  const std::unique_ptr<png_struct, decltype(destroy)> owner(png, destroy);
  png_init_io(png, file.get());
  png_set_sig_bytes(png, 8);
  png_read_info(png, info);
  png_set_expand(png);
  png_set_strip_16(png);
  png_set_strip_alpha(png);
  png_set_gray_to_rgb(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  const std::int64_t height = png_get_image_height(png, info), width = png_get_image_width(png, info);
  Pixels pixels{std::vector<std::uint8_t>(3 * height * width), height, width};
  std::vector<png_bytep> rows(height);
  for (std::int64_t y = 0; y < height; ++y) rows[y] = pixels.rgb.data() + 3 * y * width;
  png_read_image(png, rows.data());
  png_read_end(png, nullptr);
  return pixels;
}

// A failure leaves no file.
void write_png(const std::string& path, const std::vector<std::uint8_t>& labels, const Info& info) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.height = static_cast<png_uint_32>(info.height);
  image.width = static_cast<png_uint_32>(info.width);
  image.format = PNG_FORMAT_RGB_COLORMAP;
  image.colormap_entries = static_cast<png_uint_32>(info.palette.size());
  const std::string unfinished = path + ".part";
  if (!png_image_write_to_file(&image, unfinished.c_str(), 0, labels.data(), 0, info.palette.data())) {
    std::remove(unfinished.c_str());
    throw std::runtime_error(path + ": " + image.message);
  }
  if (std::rename(unfinished.c_str(), path.c_str()) != 0) {
    std::remove(unfinished.c_str());
    throw std::runtime_error(path + " cannot be written: " + std::strerror(errno));
  }
}

void segment_png(const Segmenter& segmenter, const std::string& input, const std::string& output) {
  const Info& info = segmenter.info();
  const Pixels pixels = read_png(input);
  std::vector<std::uint8_t> labels(info.height * info.width);
  segmenter.segment({pixels.rgb.data(), pixels.height, pixels.width}, {labels.data(), info.height, info.width});
  write_png(output, labels, info);
}
#else
void segment_png(const Segmenter&, const std::string&, const std::string&) {
  throw std::runtime_error("This program was built without libpng: it takes raw frames only (-).");
}
#endif

// RGB frames from stdin, one after the other, to labels on stdout.
void segment_stream(const Segmenter& segmenter) {
  const Info& info = segmenter.info();
  std::vector<std::uint8_t> rgb(3 * info.height * info.width), labels(info.height * info.width);
  long frames = 0;
  std::chrono::duration<double> busy{0};
  for (;;) {
    const std::size_t got = std::fread(rgb.data(), 1, rgb.size(), stdin);
    if (std::ferror(stdin)) throw std::runtime_error("The input cannot be read: " + std::string(std::strerror(errno)));
    if (got == 0) break;
    if (got < rgb.size()) {
      throw std::runtime_error("The input ended within frame " + std::to_string(frames + 1) +
                               ": frames of this package have " + std::to_string(rgb.size()) + " bytes, " +
                               std::to_string(info.height) + " rows of " + std::to_string(info.width) +
                               " RGB pixels. The frames before it were written.");
    }
    const auto start = std::chrono::steady_clock::now();
    segmenter.segment({rgb.data(), info.height, info.width}, {labels.data(), info.height, info.width});
    busy += std::chrono::steady_clock::now() - start;
    if (std::fwrite(labels.data(), 1, labels.size(), stdout) < labels.size() || std::fflush(stdout) != 0) {
      throw std::runtime_error("The labels cannot be written: " + std::string(std::strerror(errno)));
    }
    ++frames;
  }
  std::fprintf(stderr, "%ld frames, %.1f per second in the network\n", frames, frames ? frames / busy.count() : 0.0);
}

// Beside other programs, OpenMP's threads should not spin while they wait for one that has lost its CPU: a frame takes
// several times as long then. OpenMP reads the variable when it is loaded, before main, so start again.
void sleep_while_waiting(char** argv) {
#if defined(__linux__)
  if (std::getenv("GOMP_SPINCOUNT") || std::getenv("OMP_WAIT_POLICY")) return;
  setenv("GOMP_SPINCOUNT", "1000", 1);
  execv("/proc/self/exe", argv);  // returns only where that is not possible
#endif
}

}  // namespace

int main(int argc, char** argv) {
  const bool stream = argc == 3 && std::strcmp(argv[2], "-") == 0;
  const bool help = argc == 2 && (std::strcmp(argv[1], "--help") == 0 || std::strcmp(argv[1], "-h") == 0);
  if (!stream && argc != 4) {
    std::fprintf(help ? stdout : stderr,
                 "usage: %s PACKAGE IMAGE.png LABELS.png\n       %s PACKAGE - < FRAMES > LABELS\n", argv[0], argv[0]);
    return help ? 0 : 2;
  }
  sleep_while_waiting(argv);
  try {
    const Segmenter segmenter(argv[1]);
    if (stream) {
      segment_stream(segmenter);
    } else {
      segment_png(segmenter, argv[2], argv[3]);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
  return 0;
}
