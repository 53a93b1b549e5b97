#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace hyperseg::cpu {

// body(task) for each of them, on torch's threads. A thread takes the next one when it is done: cores are not equally
// fast when other processes run, and neither are tasks.
template <typename Body>
void for_each_task(int64_t tasks, const Body& body) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), tasks);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t task = next++; task < tasks; task = next++) body(task);
  });
}

}  // namespace hyperseg::cpu
