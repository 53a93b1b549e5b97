#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

// A CUDA block on a CPU: one fiber per thread, which runs until it has to wait for the others.
namespace hyperseg::shim {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// Position of the running fiber.
struct Position {
  Index thread, block, threads, blocks;
};
extern thread_local Position position;

// Run `body` once for each thread of each block, one block after the other. Before each block its shared memory is
// filled with NaN. Throws std::runtime_error if threads would wait for one another forever, if the lanes of a warp meet
// in different operations, and if a block wrote outside its shared memory.
void run(const char* op, Index blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& body);

// The same with all blocks alive at once, as in a cooperative launch. Also throws if blocks would wait for one another
// forever, for instance because one of them has missed a barrier.
void run_together(const char* op, Index blocks, unsigned threads, size_t shared_bytes,
                  const std::function<void()>& body);

// Called by a thread that waits for another block to write, after each look; progress() by those that write.
void spin();
void progress();

char* shared_memory();
void sync_block();

constexpr int kWarp = 32;
constexpr size_t kMessage = 64;  // bytes that a lane can send to the others

// Return the values of all lanes of the warp, in lane order; valid until the lane's second exchange after this one.
// `kind`: the operation, the same for all lanes. `finish`, if not null, is called once for the warp and may replace the
// values.
const unsigned char (*exchange(const void* said, size_t bytes, int kind,
                               void (*finish)(unsigned char (*said)[kMessage]) = nullptr))[kMessage];

// Copies are made when the thread waits for them, as late as on a GPU: from null, zeros.
void copy_later(void* to, const void* from, size_t bytes);
void commit_copies();               // the copies since the last call form a group
void wait_for_copies(size_t open);  // for all groups but the last `open`

}  // namespace hyperseg::shim
