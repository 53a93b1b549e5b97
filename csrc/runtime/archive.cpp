#include "archive.h"

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <vector>

// The format of zip archives: APPNOTE.TXT of PKWARE, sections 4.3 and 4.5.3 (zip64).
namespace hyperseg {
namespace {

using Bytes = std::vector<unsigned char>;

constexpr std::uint32_t kEnd = 0x06054b50, kEnd64 = 0x06064b50, kEnd64Locator = 0x07064b50, kEntry = 0x02014b50,
                        kLocal = 0x04034b50;
constexpr std::uint64_t kElsewhere = 0xffffffff;  // the value is in the zip64 field

struct OutOfRange {};

std::uint64_t number(const Bytes& bytes, std::uint64_t at, int size) {
  if (at > bytes.size() || bytes.size() - at < static_cast<std::uint64_t>(size)) throw OutOfRange();
  std::uint64_t value = 0;
  for (int i = size - 1; i >= 0; --i) value = value << 8 | bytes[at + i];
  return value;
}

// Eight bytes per step, by eight tables.
std::uint32_t crc32(const unsigned char* data, std::uint64_t size) {
  static const auto tables = [] {
    std::array<std::array<std::uint32_t, 256>, 8> found{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xedb88320u : 0);
      found[0][i] = value;
    }
    for (int t = 1; t < 8; ++t)
      for (int i = 0; i < 256; ++i) found[t][i] = found[t - 1][i] >> 8 ^ found[0][found[t - 1][i] & 255];
    return found;
  }();
  std::uint32_t crc = 0xffffffff;
  for (; size >= 8; size -= 8, data += 8) {
    const std::uint32_t low = crc ^ (data[0] | data[1] << 8 | data[2] << 16 | std::uint32_t{data[3]} << 24);
    crc = tables[7][low & 255] ^ tables[6][low >> 8 & 255] ^ tables[5][low >> 16 & 255] ^ tables[4][low >> 24] ^
          tables[3][data[4]] ^ tables[2][data[5]] ^ tables[1][data[6]] ^ tables[0][data[7]];
  }
  for (; size; --size, ++data) crc = crc >> 8 ^ tables[0][(crc ^ *data) & 255];
  return ~crc;
}

struct Directory {
  std::uint64_t entries, at;
};

// The directory of an archive, from the record at its end.
Directory directory_of(const Bytes& bytes) {
  constexpr std::uint64_t kSize = 22, kLongestComment = 65535;
  const std::uint64_t last = bytes.size() - kSize, first = last > kLongestComment ? last - kLongestComment : 0;
  std::uint64_t end = last;
  while (number(bytes, end, 4) != kEnd) {
    if (end-- == first) throw OutOfRange();
  }
  if (end >= 20 && number(bytes, end - 20, 4) == kEnd64Locator) {
    const std::uint64_t end64 = number(bytes, end - 12, 8);
    if (number(bytes, end64, 4) != kEnd64) throw OutOfRange();
    return {number(bytes, end64 + 32, 8), number(bytes, end64 + 48, 8)};
  }
  return {number(bytes, end + 10, 2), number(bytes, end + 16, 4)};
}

// Whether the entry at `at` of the directory has the contents that it should have; move `at` to the next one.
bool is_whole(const Bytes& bytes, std::uint64_t& at) {
  if (number(bytes, at, 4) != kEntry) return false;
  const std::uint64_t method = number(bytes, at + 10, 2), crc = number(bytes, at + 16, 4);
  std::uint64_t size = number(bytes, at + 20, 4), local = number(bytes, at + 42, 4);
  const std::uint64_t unpacked = number(bytes, at + 24, 4), name = number(bytes, at + 28, 2),
                      extra = number(bytes, at + 30, 2), comment = number(bytes, at + 32, 2);
  const std::uint64_t fields = at + 46 + name;
  for (std::uint64_t field = fields; field + 4 <= fields + extra; field += 4 + number(bytes, field + 2, 2)) {
    if (number(bytes, field, 2) != 1) continue;
    std::uint64_t value = field + 4 + (unpacked == kElsewhere ? 8 : 0);
    if (size == kElsewhere) size = number(bytes, value, 8), value += 8;
    if (local == kElsewhere) local = number(bytes, value, 8);
  }
  at = fields + extra + comment;
  if (number(bytes, local, 4) != kLocal) return false;
  const std::uint64_t data = local + 30 + number(bytes, local + 26, 2) + number(bytes, local + 28, 2);
  if (data > bytes.size() || bytes.size() - data < size) return false;
  return method != 0 || crc32(bytes.data() + data, size) == crc;  // PyTorch compresses nothing
}

}  // namespace

std::string damage_of(const std::string& package) {
  std::error_code failed;
  const std::uintmax_t size = std::filesystem::file_size(package, failed);
  if (failed) return "cannot be read: " + failed.message();
  Bytes bytes(size);
  std::ifstream file(package, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(size))) return "cannot be read";
  if (bytes.size() < 22 || number(bytes, 0, 4) != kLocal) return "is no package of `hyperseg export aoti`";
  try {
    Directory directory = directory_of(bytes);
    for (std::uint64_t i = 0; i < directory.entries; ++i)
      if (!is_whole(bytes, directory.at)) return "is damaged: its contents do not have their checksums; copy it again";
  } catch (const OutOfRange&) {
    return "is cut off or damaged; copy it again";
  }
  return "";
}

}  // namespace hyperseg
