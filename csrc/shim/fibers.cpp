#include "shim/fibers.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace hyperseg::shim {

thread_local Position position;

namespace {

constexpr size_t kStack = 128 << 10, kGuard = 256;
constexpr unsigned char kNaN = 0xff, kUntouched = 0xa5;

#ifdef __x86_64__
// Does the work of swapcontext without its system calls: a block changes fibers millions of times.
struct Context {
  void* stack_pointer = nullptr;
};

extern "C" void hyperseg_shim_switch(void** from, void* to);
asm(R"(
.text
.globl hyperseg_shim_switch
.hidden hyperseg_shim_switch
.type hyperseg_shim_switch, @function
hyperseg_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size hyperseg_shim_switch, .-hyperseg_shim_switch
)");

void prepare(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStack);
  *--top = nullptr;  // return address of a caller that does not exist; it aligns the stack as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}

void change(Context& from, Context& to) { hyperseg_shim_switch(&from.stack_pointer, to.stack_pointer); }
#else
struct Context {
  ucontext_t context;
};

void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = kStack;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}

void change(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
#endif

struct Warp {
  int arrived = 0, kind = 0;
  uint64_t round = 0;
  // Two sets: when a lane exchanges again, all lanes have arrived, so none still reads the set before last.
  unsigned char said[2][kWarp][kMessage];
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

// Of a thread: groups of copies, the last one still open.
using Copies = std::vector<std::vector<Copy>>;

struct Block {
  std::vector<Context> fibers;
  std::vector<char> done;
  std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<Warp> warps;
  std::vector<Copies> copies;
  std::vector<unsigned char> memory;
  Context main;
  Index index;
  unsigned threads = 0, current = 0, running = 0, at_barrier = 0, idle = 0, spinning = 0;
  uint64_t barrier_round = 0;
  std::string error;

  char* shared() { return reinterpret_cast<char*>(memory.data()) + kGuard; }

  void resume(unsigned thread) {
    Context& from = fibers[current];
    current = thread;
    position.thread.x = thread;
    change(from, fibers[thread]);
  }

  // Switch to the next fiber that is not done. After a full round without progress, let other blocks run if a thread
  // waits for them; otherwise return with an error.
  void wait() {
    if (++idle > 2 * threads) {
      if (!spinning) fail("deadlock: some threads do not reach a barrier or a warp-wide operation");
      leave();
    }
    unsigned next = current;
    do next = next + 1 == threads ? 0 : next + 1;
    while (done[next]);
    if (next != current) resume(next);
  }

  // Return to the main context until the block is entered again.
  void leave() {
    change(fibers[current], main);
    idle = 0;
  }

  [[noreturn]] void fail(const char* what) {
    error = what;
    change(fibers[current], main);
    __builtin_unreachable();
  }
};

struct Launch {
  const char* op;
  Index blocks;
  unsigned threads;
  size_t shared_bytes;
  const std::function<void()>* body;
  uint64_t progress = 0;
};

thread_local Launch* launched;
thread_local Block* block;
thread_local std::vector<std::unique_ptr<Block>> blocks;  // kept for the next launch

void enter() {
  (*launched->body)();
  block->done[block->current] = 1;
  block->idle = 0;
  if (--block->running == 0) change(block->fibers[block->current], block->main);
  if (block->at_barrier) block->fail("a thread ended while others wait at a barrier");
  block->wait();
  __builtin_unreachable();
}

[[noreturn]] void complain(const std::string& what) {
  const Index& index = block->index;
  throw std::runtime_error(std::string(launched->op) + ": in block (" + std::to_string(index.x) + ", " +
                           std::to_string(index.y) + ", " + std::to_string(index.z) + ") " + what);
}

// Begin with the block of this index, in place of the number-th of the blocks kept.
void start_block(size_t number, Index index) {
  while (blocks.size() <= number) blocks.push_back(std::make_unique<Block>());
  block = blocks[number].get();
  const unsigned threads = launched->threads;
  block->threads = threads;
  block->index = index;
  if (threads % kWarp) complain("there is a warp of fewer than 32 threads");
  block->fibers.resize(threads);
  block->copies.resize(threads);
  block->warps.resize(threads / kWarp);
  while (block->stacks.size() < threads) block->stacks.emplace_back(new char[kStack]);
  block->memory.assign(launched->shared_bytes + 2 * kGuard, kUntouched);
  std::memset(block->shared(), kNaN, launched->shared_bytes);
  for (unsigned i = 0; i < threads; ++i) prepare(block->fibers[i], block->stacks[i].get(), enter);
  block->done.assign(threads, 0);
  for (Warp& warp : block->warps) warp.arrived = 0;
  for (Copies& copies : block->copies) copies.assign(1, {});
  block->running = threads;
  block->at_barrier = block->idle = block->spinning = block->current = 0;
  block->error.clear();
}

// Run the block until all its threads have ended, or one waits for another block.
void continue_block() {
  position = {{block->current, 0, 0}, block->index, {launched->threads, 1, 1}, launched->blocks};
  change(block->main, block->fibers[block->current]);
  if (!block->error.empty()) complain(block->error);
  if (block->running) return;
  const auto touched = [](unsigned char byte) { return byte != kUntouched; };
  const auto& memory = block->memory;
  if (std::any_of(memory.begin(), memory.begin() + kGuard, touched) ||
      std::any_of(memory.end() - kGuard, memory.end(), touched))
    complain("a thread wrote outside the block's shared memory");
}

template <typename Body>
void for_each_block(Index blocks, const Body& body) {
  for (unsigned z = 0; z < blocks.z; ++z)
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; ++x) body(Index{x, y, z});
}

}  // namespace

void run(const char* op, Index grid, unsigned threads, size_t shared_bytes, const std::function<void()>& body) {
  Launch launch{op, grid, threads, shared_bytes, &body};
  launched = &launch;
  for_each_block(grid, [&](Index index) {
    start_block(0, index);
    continue_block();
    if (block->running) complain("waits for another block, which an ordinary launch does not run at the same time");
  });
}

void run_together(const char* op, Index grid, unsigned threads, size_t shared_bytes,
                  const std::function<void()>& body) {
  Launch launch{op, grid, threads, shared_bytes, &body};
  launched = &launch;
  size_t count = 0;
  for_each_block(grid, [&](Index index) { start_block(count++, index); });
  // Alternately the first and the last block goes first, so that results which depend on it show.
  bool reversed = false;
  for (size_t running = count; running; reversed = !reversed) {
    const uint64_t before = launch.progress;
    const size_t running_before = running;
    for (size_t i = 0; i < count; ++i) {
      block = blocks[reversed ? count - 1 - i : i].get();
      if (!block->running) continue;
      continue_block();
      if (!block->running) --running;
    }
    if (running && launch.progress == before && running == running_before) {
      for (size_t i = 0; i < count; ++i) {
        block = blocks[i].get();
        if (block->running) complain("deadlock: it waits for other blocks, of which some have ended or wait elsewhere");
      }
    }
  }
}

void spin() {
  ++block->spinning;
  if (block->at_barrier + block->spinning >= block->running)
    block->leave();
  else
    block->wait();
  --block->spinning;
}

void progress() { ++launched->progress; }

char* shared_memory() { return block->shared(); }

void sync_block() {
  const uint64_t round = block->barrier_round;
  if (++block->at_barrier == block->threads) {
    block->at_barrier = 0;
    ++block->barrier_round;
    block->idle = 0;
    return;
  }
  if (block->running < block->threads) block->fail("a thread ended before a barrier that others reach");
  while (block->barrier_round == round) block->wait();
}

void copy_later(void* to, const void* from, size_t bytes) {
  block->copies[block->current].back().push_back({to, from, bytes});
}

void commit_copies() { block->copies[block->current].emplace_back(); }

void wait_for_copies(size_t open) {
  Copies& groups = block->copies[block->current];
  while (groups.size() > open + 1) {
    for (const Copy& copy : groups.front()) {
      if (copy.from)
        std::memcpy(copy.to, copy.from, copy.bytes);
      else
        std::memset(copy.to, 0, copy.bytes);
    }
    groups.erase(groups.begin());
  }
}

const unsigned char (*exchange(const void* said, size_t bytes, int kind,
                               void (*finish)(unsigned char (*said)[kMessage]))) [kMessage] {
  const unsigned lane = block->current % kWarp;
  Warp& warp = block->warps[block->current / kWarp];
  const uint64_t round = warp.round;
  if (warp.arrived && warp.kind != kind) block->fail("the lanes of a warp meet in different operations");
  warp.kind = kind;
  std::memcpy(warp.said[round % 2][lane], said, bytes);
  if (++warp.arrived == kWarp) {
    if (finish) finish(warp.said[round % 2]);
    warp.arrived = 0;
    ++warp.round;
    block->idle = 0;
  } else {
    while (warp.round == round) block->wait();
  }
  return warp.said[round % 2];
}

}  // namespace hyperseg::shim
