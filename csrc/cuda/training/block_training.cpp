#include "cuda/training/block_training.h"

#include "common/all_reduce.h"
#include "cuda/decoder/level_tensors.h"
#include "cuda/training/patch_mma.h"

namespace hyperseg::cuda {

PatchMatrix transposed(const PatchMatrix& matrix, int first, Type type) {
  PatchMatrix back = matrix;
  back.data = static_cast<const char*>(matrix.data) + first * matrix.stride_input * bytes_of(type);
  std::swap(back.stride_output, back.stride_input);
  back.outputs = matrix.inputs - first;
  back.inputs = matrix.outputs;
  return back;
}

TrainingBlock::TrainingBlock(const char* op, const Tensor& like, const Map<const void>& x, const Tensor& weights,
                             int64_t hidden, int64_t outputs, const std::string& halo, Stream stream)
    : op_(op),
      like_(like),
      x_(x),
      weights_(weights),
      type_(type_of(op, like)),
      outputs_(static_cast<int>(outputs)),
      stream_(stream) {
  filter_.grid = grid_of(weights, x);
  filter_.hidden = static_cast<int>(hidden);
  filter_.stored = (filter_.hidden + 7) / 8 * 8;
  filter_.own = halo == "own";
  const int64_t most = int64_t{filter_.grid.patch_h + 2} * (filter_.grid.patch_w + 2);
  check(most < int64_t{1} << 31, op, ": a patch may have at most 2^31 pixels; divide the map into more");
  patch_ = PatchPixels(filter_.grid, false);
  window_ = PatchPixels(filter_.grid, filter_.own);
  expand_ = matrix_at(weights, type_, 0, hidden, x.channels);
  filter_.taps = matrix_at(weights, type_, x.channels * hidden, hidden, 9);
  project_ = matrix_at(weights, type_, (x.channels + 9) * hidden, outputs, hidden);
}

TrainingBlock::Partial TrainingBlock::partial_of(const PartialRows& rows, int channels) const {
  return {floats(like_, rows.rows * 2 * channels), rows};
}

PatchGemm TrainingBlock::gemm(const PatchPixels& pixels, const PatchMatrix& matrix) const {
  PatchGemm gemm;
  gemm.grid = grid();
  gemm.pixels = pixels;
  gemm.matrix = matrix;
  gemm.stored = gemm.split = matrix.outputs;
  return gemm;
}

PatchDepthwise TrainingBlock::filter_with(const ScaleShift& norm) const {
  PatchDepthwise filter = filter_;
  filter.norm = norm;
  return filter;
}

Tensor TrainingBlock::expand(Partial* partial) const {
  Tensor z1 = values(like_, pixels_before() * stored());
  const PatchedMap<const void> input = filter_.own ? windows_of(x_, grid()) : patches_of(x_, grid());
  ExpandForward by_mma{grid(), window_, expand_, input, z1.mutable_data_ptr(), stored()};
  if (expands_by_mma(by_mma, type_)) {
    if (partial) {
      *partial = partial_of(PartialRows(grid().patches(), window_.count(), window_.count()), stored());
      by_mma.partial = data(partial->values);
    }
    expand_mma(by_mma, type_, op_, stream_);
    return z1;
  }
  PatchGemm expand = gemm(window_, expand_);
  expand.input = input;
  expand.out = pixel_by_pixel(z1.mutable_data_ptr(), grid(), window_, stored());
  expand.stored = expand.split = stored();
  if (partial) *partial = partial_of(rows_of(expand), stored());
  patch_gemm(expand, partial ? Epilogue::kHiddenMoments : Epilogue::kHidden, partial ? data(partial->values) : nullptr,
             type_, op_, stream_);
  return z1;
}

Tensor TrainingBlock::filter(const Tensor& z1, const ScaleShift& norm, Partial* partial) const {
  Tensor z2 = values(like_, pixels() * stored());
  const PatchDepthwise filter = filter_with(norm);
  if (partial) *partial = partial_of(rows_of_filtered(filter, type_), stored());
  depthwise_filter(filter, z1.const_data_ptr(), z2.mutable_data_ptr(), partial ? data(partial->values) : nullptr, type_,
                   op_, stream_);
  return z2;
}

void TrainingBlock::project(const Tensor& z2, const ScaleShift& norm, const Map<const void>* paired,
                            const Map<float>& z3, Partial& partial) const {
  ProjectForward by_mma{grid(), patch_, project_, z2.const_data_ptr(), norm, stored(), patches_of(z3, grid())};
  if (projects_by_mma(by_mma, type_)) {
    partial = partial_of(PartialRows(grid().patches(), patch_.count(), patch_.count()), outputs_);
    if (paired) by_mma.paired = patches_of(*paired, grid());
    by_mma.partial = data(partial.values);
    project_mma(by_mma, type_, op_, stream_);
    return;
  }
  PatchGemm project = gemm(patch_, project_);
  project.input = pixel_by_pixel(z2.const_data_ptr(), grid(), patch_, stored());
  project.norm = norm;
  const Map<void> out{z3.data, z3.channels, z3.height, z3.width, z3.stride_n, z3.stride_c, z3.stride_h, z3.stride_w};
  project.out = patches_of(out, grid());
  if (paired) project.other = patches_of(*paired, grid());
  partial = partial_of(rows_of(project), outputs_);
  patch_gemm(project, paired ? Epilogue::kNormalisedPaired : Epilogue::kNormalised, data(partial.values), type_, op_,
             stream_);
}

std::pair<Tensor, ChannelSums> TrainingBlock::add(Partial& partial, bool moments) const {
  ChannelSums sums;
  sums.chunks = chunks_of(partial.rows);
  sums.stored = static_cast<int>(partial.values.numel() / (2 * partial.rows.rows));
  Tensor memory = torch::stable::new_empty(like_, {int64_t{2} * sums.chunks * sums.stored}, ScalarType::Double);
  sums.data = static_cast<double*>(memory.mutable_data_ptr());
  add_rows(data(partial.values), partial.rows, moments, sums, op_, stream_);
  return {memory, sums};
}

Tensor TrainingBlock::synchronise(const ChannelSums& sums, double count, const std::string& group) const {
  Tensor whole = torch::stable::new_empty(like_, {int64_t{2} * sums.stored + 1}, ScalarType::Double);
  whole_sums(sums, count, static_cast<double*>(whole.mutable_data_ptr()), op_, stream_);
  return all_reduce(whole, group);
}

TrainingBlock::Partial TrainingBlock::project_backward(const Tensor& grad, const LastNorm& last_norm, const Tensor& z2,
                                                       const ScaleShift& norm, Tensor& d2, void* d_weights) const {
  Tensor d3 = grad;
  if (last_norm.factors) {
    d3 = new_map(grad, outputs_);
    pass_batch_norm(read<void>(grad), last_norm.z3, last_norm.factors, outputs_, grid().images, write<void>(d3), type_,
                    op_, stream_);
  }
  const PatchedMap<const void> pulled = patches_of(read<void>(d3), grid());
  const PatchedMap<const void> filtered = pixel_by_pixel(z2.const_data_ptr(), grid(), patch_, stored());
  PatchWgrad wgrad{grid(), patch_, pulled, filtered, norm, outputs_, hidden(), d_weights};
  wgrad.first = (x_.channels + 9) * hidden(), wgrad.parameters = wgrad.first + int64_t{outputs_} * hidden();
  patch_wgrad(wgrad, type_, op_, stream_);

  PatchGemm back = gemm(patch_, transposed(project_, 0, type_));
  back.input = pulled;
  back.other = filtered;
  back.norm = norm;
  back.out = pixel_by_pixel(d2.mutable_data_ptr(), grid(), patch_, stored());
  back.stored = back.split = stored();
  Partial partial = partial_of(rows_of(back), stored());
  patch_gemm(back, Epilogue::kHiddenGated, data(partial.values), type_, op_, stream_);
  return partial;
}

void TrainingBlock::backward(const Tensor& grad, const LastNorm& last_norm, Tensor z1, Tensor z2,
                             const ScaleShift& norm1, const ScaleShift& norm2, const Through& through,
                             const InputGradient& d_x, void* d_weights) const {
  const int64_t inputs = x_.channels, parameters = (inputs + 9 + outputs_) * hidden();
  const PatchedMap<const void> before = filter_.own ? windows_of(x_, grid()) : patches_of(x_, grid());
  Tensor d2 = values(like_, pixels() * stored());
  ProjectBackward both{grid(), patch_, project_, patches_of(read<void>(grad), grid())};
  if (last_norm.factors) both.z3 = patches_of(last_norm.z3, grid()), both.factors = last_norm.factors;
  both.hidden = z2.const_data_ptr(), both.norm = norm2, both.stored = stored();
  both.d_matrix = d_weights, both.first = (inputs + 9) * hidden(), both.parameters = parameters;
  both.d_hidden = d2.mutable_data_ptr();
  Partial partial{like_, {}};
  if (projects_by_mma(both, type_)) {
    partial = partial_of(PartialRows(grid().patches(), patch_.count(), patch_.count()), stored());
    both.partial = data(partial.values);
    project_backward_mma(both, type_, op_, stream_);
  } else {
    partial = project_backward(grad, last_norm, z2, norm2, d2, d_weights);
  }
  const float* factors = through(1, partial);

  const PatchDepthwise filter = filter_with(norm1);
  Tensor d1 = values(like_, pixels_before() * stored());
  partial = partial_of(rows_of_gradient(filter, type_), stored());
  const DepthwiseGradients gradients{
      d2.mutable_data_ptr(), z2.const_data_ptr(), factors,           z1.const_data_ptr(), d1.mutable_data_ptr(),
      data(partial.values),  d_weights,           inputs * hidden(), parameters};
  depthwise_backward(filter, gradients, type_, op_, stream_);
  factors = through(0, partial);

  const PatchMatrix back_to_input = transposed(expand_, d_x.first, type_);
  Tensor windows = values(like_, filter_.own ? pixels_before() * back_to_input.outputs : 0);
  if (filter_.own) {
    const ExpandBackward both{grid(),
                              window_,
                              expand_,
                              before,
                              d1.const_data_ptr(),
                              z1.const_data_ptr(),
                              factors,
                              stored(),
                              d_weights,
                              parameters,
                              windows.mutable_data_ptr(),
                              d_x.first,
                              windows_by_pixel(d_x)};
    if (expand_backward_mma(both, type_, op_, stream_))
      return collect_windows(windows.const_data_ptr(), grid(), back_to_input.outputs, d_x, type_, op_, stream_);
  }
  if (factors)
    pass_batch_norm(d1.mutable_data_ptr(), z1.const_data_ptr(), factors, pixels_before(), stored(), type_, op_,
                    stream_);

  const PatchedMap<const void> expanded = pixel_by_pixel<const void>(d1.const_data_ptr(), grid(), window_, stored());
  PatchWgrad wgrad{grid(), window_, expanded, before, {}, hidden(), static_cast<int>(inputs), d_weights};
  wgrad.parameters = parameters;
  patch_wgrad(wgrad, type_, op_, stream_);

  PatchGemm last = gemm(window_, back_to_input);
  last.input = expanded;
  if (!filter_.own) {
    last.out = patches_of(d_x.skip, grid());
    last.rest = patches_of(d_x.previous, grid());
    last.split = d_x.split;
    return patch_gemm(last, Epilogue::kPlain, nullptr, type_, op_, stream_);
  }
  last.out = windows_by_pixel(d_x) ? pixel_by_pixel(windows.mutable_data_ptr(), grid(), window_, last.stored)
                                   : channel_by_channel(windows.mutable_data_ptr(), grid(), window_, last.stored);
  patch_gemm(last, Epilogue::kPlain, nullptr, type_, op_, stream_);
  collect_windows(windows.const_data_ptr(), grid(), last.stored, d_x, type_, op_, stream_);
}

}  // namespace hyperseg::cuda
