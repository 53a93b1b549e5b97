#include "common/tensor_checks.h"

namespace hyperseg {
namespace {

// Prints as "2, 3, 4, 5".
struct Sizes {
  const std::vector<int64_t>& sizes;
};
Message& operator<<(Message& message, const Sizes& list) {
  for (size_t i = 0; i < list.sizes.size(); ++i) message << (i ? ", " : "") << list.sizes[i];
  return message;
}

}  // namespace

Message& operator<<(Message& message, const ShapeOf& shape) {
  message << "[";
  for (int64_t i = 0; i < shape.tensor.dim(); ++i) message << (i ? ", " : "") << shape.tensor.size(i);
  return message << "]";
}

void check_floating(const char* op, const char* name, const torch::stable::Tensor& t) {
  using torch::headeronly::ScalarType;
  const ScalarType type = t.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
            type == ScalarType::BFloat16,
        op, ": ", name, " must be float16, bfloat16, float32 or float64, got ", torch::headeronly::toString(type));
}

void check_map(const char* op, const char* name, const torch::stable::Tensor& t, const char* layout) {
  check(t.dim() == 4, op, ": ", name, " must be ", layout, ", got ", shape_of(t));
  check_floating(op, name, t);
  for (int64_t i = 0; i < 4; ++i)
    check(t.size(i) >= 1 && t.size(i) <= kLargest, op, ": every side of ", name, " must be 1 to 2^24, got ",
          shape_of(t));
}

void check_same_device(const char* op, const char* name, const torch::stable::Tensor& t, const char* first_name,
                       const torch::stable::Tensor& first) {
  check(t.device() == first.device(), op, ": ", name, " and ", first_name,
        " are on different devices; move them together");
}

void check_same_kind(const char* op, const char* name, const torch::stable::Tensor& t, const char* first_name,
                     const torch::stable::Tensor& first) {
  check_same_device(op, name, t, first_name, first);
  check(t.scalar_type() == first.scalar_type(), op, ": ", name, " is ", torch::headeronly::toString(t.scalar_type()),
        " but ", first_name, " ", torch::headeronly::toString(first.scalar_type()), "; convert one to the other");
}

void check_shape(const char* op, const char* name, const torch::stable::Tensor& t,
                 const std::vector<int64_t>& expected) {
  bool same = t.dim() == static_cast<int64_t>(expected.size());
  for (int64_t i = 0; same && i < t.dim(); ++i) same = t.size(i) == expected[i];
  check(same, op, ": ", name, " must be [", Sizes{expected}, "], got ", shape_of(t));
}

void check_count(const char* op, const char* name, int64_t value, int64_t least) {
  check(value >= least && value <= kLargest, op, ": ", name, " must be ", least, " to 2^24, got ", value);
}

void check_halo(const char* op, const std::string& halo) {
  check(halo == "own" || halo == "neighbour", op, ": halo must be 'own' or 'neighbour', got '", halo, "'");
}

void check_grid(const char* op, int64_t fh, int64_t fw, const torch::stable::Tensor& x) {
  check(x.size(2) % fh == 0 && x.size(3) % fw == 0, op, ": a map of ", x.size(2), "x", x.size(3),
        " pixels does not divide into ", fh, "x", fw, " patches; pad it to a multiple of the grid");
}

void check_patch_weights(const char* op, const torch::stable::Tensor& weights, const torch::stable::Tensor& x,
                         int64_t parameters) {
  check_map(op, "weights", weights, "[N, fh, fw, P]");
  check_same_kind(op, "weights", weights, "the map", x);
  check(weights.size(0) == x.size(0), op, ": weights are for ", weights.size(0), " images but the map has ", x.size(0));
  check(weights.size(3) == parameters, op, ": weights have ", weights.size(3), " parameters per patch, expected ",
        parameters);
  check_grid(op, weights.size(1), weights.size(2), x);
}

void check_reflectable(const char* op, const torch::stable::Tensor& x, int64_t halo_h, int64_t halo_w) {
  check(x.size(2) > halo_h && x.size(3) > halo_w, op, ": the map is ", x.size(2), "x", x.size(3),
        " pixels, too small to reflect ", halo_h, "x", halo_w, " at its border; use a larger image");
}

void check_gradient(const char* op, const torch::stable::Tensor& grad, const torch::stable::Tensor& like,
                    int64_t channels) {
  check_same_kind(op, "grad", grad, "the map", like);
  check_shape(op, "grad", grad, {like.size(0), channels, like.size(2), like.size(3)});
}

}  // namespace hyperseg
