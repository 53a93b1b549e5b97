#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

// A CUDA block on a CPU: a fiber for each thread, which runs until it has to wait for the others.
namespace hyperseg::shim {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// Where the fiber that runs now stands.
struct Position {
  Index thread, block, threads, blocks;
};
extern thread_local Position position;

// Runs `body` once for each thread of each block, one block after the other. Before each block its shared memory is
// filled with NaN. Throws std::runtime_error where threads would wait for one another forever, where the lanes of a
// warp meet in different operations, and where a block wrote beside its shared memory.
void run(const char* op, Index blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& body);

char* shared_memory();
void sync_block();

constexpr int kWarp = 32;
constexpr size_t kMessage = 64;  // bytes that a lane can tell the others

// What all lanes of the warp say, in the order of lanes; valid until the lane speaks for the second time after this.
// `kind`: what they take part in, the same for all.
const unsigned char (*exchange(const void* said, size_t bytes, int kind))[kMessage];

// Copies that a thread asks for are made when it waits for them, as late as a GPU may make them: from null, zeros.
void copy_later(void* to, const void* from, size_t bytes);
void close_copies();                // those asked for since the last time are a group
void wait_for_copies(size_t open);  // for all groups but the last `open`

}  // namespace hyperseg::shim
