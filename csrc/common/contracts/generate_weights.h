#pragma once

#include "common/tensor_checks.h"

namespace hyperseg {

inline void check_generator(const char* op, const torch::stable::Tensor& signal, const torch::stable::Tensor& generator,
                            int64_t offset, int64_t groups, int64_t size) {
  check(generator.dim() == 2, op, ": a generator must be [rows, signal channels / groups], got ", shape_of(generator));
  check_same_kind(op, "a generator", generator, "the signal", signal);
  check_count(op, "groups", groups);
  check_count(op, "size", size);
  const int64_t rows = generator.size(0), width = generator.size(1);
  check_count(op, "the number of a generator's columns", width);
  check(rows % groups == 0, op, ": ", rows, " generator rows do not divide into ", groups, " groups");
  check(size <= rows, op, ": ", size, " parameters are asked of a generator with only ", rows, " rows");
  check(offset >= 0 && offset <= kLargest && offset + width * groups <= signal.size(1), op,
        ": a generator reads signal channels ", offset, " to ", offset + width * groups, ", but the signal has ",
        signal.size(1));
}

inline void check_generate_weights(const char* op, const torch::stable::Tensor& signal,
                                   const std::vector<torch::stable::Tensor>& generators,
                                   const std::vector<int64_t>& offsets, const std::vector<int64_t>& groups,
                                   const std::vector<int64_t>& sizes) {
  check_map(op, "signal", signal, "[N, C, fh, fw]");
  const size_t count = generators.size();
  check(count > 0 && offsets.size() == count && groups.size() == count && sizes.size() == count, op,
        ": needs one offset, group count and size for each generator, got ", count, " generators, ", offsets.size(),
        " offsets, ", groups.size(), " group counts and ", sizes.size(), " sizes");
  for (size_t i = 0; i < count; ++i) check_generator(op, signal, generators[i], offsets[i], groups[i], sizes[i]);
}

}  // namespace hyperseg
