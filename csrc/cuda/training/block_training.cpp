#include "cuda/training/block_training.h"

#include "common/all_reduce.h"

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
  PatchGemm expand = gemm(window_, expand_);
  expand.input = filter_.own ? windows_of(x_, grid()) : patches_of(x_, grid());
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
  if (partial) *partial = partial_of(rows_of_filtered(filter), stored());
  depthwise_filter(filter, z1.const_data_ptr(), z2.mutable_data_ptr(), partial ? data(partial->values) : nullptr, type_,
                   op_, stream_);
  return z2;
}

void TrainingBlock::project(const Tensor& z2, const ScaleShift& norm, const Map<const void>* paired,
                            const Map<float>& z3, Partial& partial) const {
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

void TrainingBlock::backward(const Map<const void>& d3, Tensor z1, Tensor z2, const ScaleShift& norm1,
                             const ScaleShift& norm2, const Through& through, const InputGradient& d_x,
                             void* d_weights) const {
  const int64_t inputs = x_.channels, parameters = (inputs + 9 + outputs_) * hidden();
  const PatchedMap<const void> before = filter_.own ? windows_of(x_, grid()) : patches_of(x_, grid());
  const PatchedMap<const void> filtered = pixel_by_pixel(z2.const_data_ptr(), grid(), patch_, stored());
  PatchWgrad wgrad{grid(), patch_, patches_of(d3, grid()), filtered, norm2, outputs_, hidden(), d_weights};
  wgrad.first = (inputs + 9) * hidden(), wgrad.parameters = parameters;
  patch_wgrad(wgrad, type_, op_, stream_);

  Tensor d2 = values(like_, pixels() * stored());
  PatchGemm back = gemm(patch_, transposed(project_, 0, type_));
  back.input = patches_of(d3, grid());
  back.other = filtered;
  back.norm = norm2;
  back.out = pixel_by_pixel(d2.mutable_data_ptr(), grid(), patch_, stored());
  back.stored = back.split = stored();
  Partial partial = partial_of(rows_of(back), stored());
  patch_gemm(back, Epilogue::kHiddenGated, data(partial.values), type_, op_, stream_);
  through(1, d2, z2, partial);

  const PatchDepthwise filter = filter_with(norm1);
  depthwise_wgrad(filter, d2.const_data_ptr(), z1.const_data_ptr(), d_weights, inputs * hidden(), parameters, type_,
                  op_, stream_);
  Tensor d1 = values(like_, pixels_before() * stored());
  partial = partial_of(rows_of_gradient(filter), stored());
  depthwise_gradient(filter, d2.const_data_ptr(), z1.const_data_ptr(), d1.mutable_data_ptr(), data(partial.values),
                     type_, op_, stream_);
  through(0, d1, z1, partial);

  const PatchedMap<const void> expanded = pixel_by_pixel<const void>(d1.const_data_ptr(), grid(), window_, stored());
  wgrad = {grid(), window_, expanded, before, {}, hidden(), static_cast<int>(inputs), d_weights};
  wgrad.parameters = parameters;
  patch_wgrad(wgrad, type_, op_, stream_);

  PatchGemm last = gemm(window_, transposed(expand_, d_x.first, type_));
  last.input = expanded;
  if (!filter_.own) {
    last.out = patches_of(d_x.skip, grid());
    last.rest = patches_of(d_x.previous, grid());
    last.split = d_x.split;
    return patch_gemm(last, Epilogue::kPlain, nullptr, type_, op_, stream_);
  }
  Tensor windows = values(like_, pixels_before() * last.stored);
  last.out = channel_by_channel(windows.mutable_data_ptr(), grid(), window_, last.stored);
  patch_gemm(last, Epilogue::kPlain, nullptr, type_, op_, stream_);
  collect_windows(windows.const_data_ptr(), grid(), last.stored, d_x, type_, op_, stream_);
}

}  // namespace hyperseg::cuda
