#include "cpu/decoder/generate_weights.h"

#include <algorithm>
#include <type_traits>

#include "cpu/base/buffer.h"
#include "cpu/base/generator.h"
#include "cpu/base/tasks.h"
#include "cpu/base/tensors.h"

namespace hyperseg::cpu {

Tensor generate_weights(const Tensor& signal, const std::vector<Tensor>& generators,
                        const std::vector<int64_t>& offsets, const std::vector<int64_t>& groups,
                        const std::vector<int64_t>& sizes) {
  const int64_t n = signal.size(0), fh = signal.size(2), fw = signal.size(3);
  int64_t total = 0;
  for (int64_t size : sizes) total += size;
  Tensor out = torch::stable::new_empty(signal, {n, fh, fw, total});
  with_type(signal, "generate_weights", [&](auto type) {
    using scalar_t = decltype(type);
    using T = acc_t<scalar_t>;
    const Primitives<T>& run = primitives<T>();
    const Map<const scalar_t> map = read<scalar_t>(signal);
    scalar_t* target = static_cast<scalar_t*>(out.mutable_data_ptr());
    int64_t begin_of = 0;
    for (size_t i = 0; i < generators.size(); ++i) {
      const Tensor& g = generators[i];
      const PackedGenerator<T> generator(static_cast<const scalar_t*>(g.const_data_ptr()), g.stride(0), g.stride(1),
                                         g.size(0), g.size(1), groups[i], sizes[i]);
      const int64_t channels = generator.channels(), first = begin_of, patches = 16;
      const int64_t runs = (fw + patches - 1) / patches;
      for_each_task(n * fh * runs, [&](int64_t task) {
        thread_local Buffer<T> signals, made;
        T* const values = signals.reserve(patches * channels);
        const int64_t x0 = task % runs * patches, x1 = std::min(x0 + patches, fw);
        const int64_t y = task / runs % fh, image = task / runs / fh;
        read_signal(map, offsets[i], channels, image, y, x0, x1, values);
        scalar_t* row = target + ((image * fh + y) * fw + x0) * total + first;
        if constexpr (std::is_same_v<scalar_t, T>) {
          generator.generate(run, x1 - x0, values, row, total);
        } else {
          T* const result = made.reserve(patches * sizes[i]);
          generator.generate(run, x1 - x0, values, result, sizes[i]);
          for (int64_t x = 0; x < x1 - x0; ++x)
            for (int64_t p = 0; p < sizes[i]; ++p) row[x * total + p] = static_cast<scalar_t>(result[x * sizes[i] + p]);
        }
      });
      begin_of += sizes[i];
    }
  });
  return out;
}

}  // namespace hyperseg::cpu
