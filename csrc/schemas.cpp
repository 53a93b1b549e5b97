#include <torch/csrc/stable/library.h>

// The schemas of all native operators; csrc/<device>/ops/<op>.cpp registers the implementations.
STABLE_TORCH_LIBRARY(hyperseg_native, m) {
  m.def("upsample_argmax(Tensor logits, SymInt height, SymInt width) -> Tensor");
  m.def("generate_weights(Tensor signal, Tensor[] generators, int[] offsets, int[] groups, int[] sizes) -> Tensor");
  m.def(
      "patch_conv2d(Tensor x, Tensor weights, Tensor? bias, int out_channels, int[] kernel_size, int groups, "
      "int[] dilation, str padding_mode) -> Tensor");
  m.def(
      "patch_inverted_residual(Tensor x, Tensor weights, Tensor? bias, int hidden, int out_channels, str halo) -> "
      "Tensor");
  m.def(
      "decoder_level(Tensor skip, Tensor? previous, Tensor? signal, Tensor? generator, Tensor? weights, Tensor bias, "
      "int offset, int groups, int out_channels, int hidden, str halo) -> Tensor");
  m.def(
      "decoder_level_argmax(Tensor skip, Tensor? previous, Tensor? signal, Tensor? generator, Tensor? weights, "
      "Tensor bias, int offset, int groups, int out_channels, int hidden, str halo) -> Tensor");
  m.def(
      "mbconv(Tensor x, Tensor? expand, Tensor? expand_bias, Tensor depthwise, Tensor depthwise_bias, Tensor reduce, "
      "Tensor reduce_bias, Tensor gate, Tensor gate_bias, Tensor project, Tensor project_bias, int stride, "
      "int[] padding, bool residual) -> Tensor");
  m.def(
      "mbconv_chain(Tensor x, Tensor[] weights, int[] expanded, int[] strides, int[] paddings, int[] residuals, "
      "int[] kept) -> Tensor[]");
  m.def(
      "stem(Tensor frames, Tensor scale, Tensor shift, Tensor weight, Tensor bias, SymInt height, SymInt width, "
      "int stride, int[] padding) -> Tensor");
  m.def(
      "normalise_frames(Tensor frames, Tensor scale, Tensor shift, Tensor like, SymInt height, SymInt width) -> "
      "Tensor");
  m.def("pointwise_conv(Tensor[] xs, Tensor[] weights, Tensor[] biases, str[] activations) -> Tensor[]");
  m.def(
      "context_head(Tensor x, Tensor? reduce, Tensor? reduce_bias, Tensor[] down, Tensor[] down_biases, Tensor[] up, "
      "Tensor[] up_biases) -> Tensor");
  m.def("channel_moments(Tensor x) -> (Tensor, Tensor)");
  m.def("norm_act(Tensor x, Tensor scale, Tensor shift, Tensor? gate, str activation) -> Tensor");
  m.def("norm_act_pool(Tensor x, Tensor scale, Tensor shift, str activation) -> Tensor");
  m.def(
      "norm_act_sums(Tensor grad, Tensor x, Tensor mean, Tensor scale, Tensor shift, Tensor? gate, str activation, "
      "bool values) -> (Tensor, Tensor)");
  m.def(
      "norm_act_gradient(Tensor(a!) out, Tensor grad, Tensor x, Tensor mean, Tensor scale, Tensor shift, Tensor? gate, "
      "Tensor? spread, Tensor slope, Tensor tilt, Tensor level, str activation) -> ()");
  m.def(
      "norm_act_depthwise(Tensor x, Tensor scale, Tensor shift, Tensor weight, int stride, int[] padding, "
      "str activation) -> Tensor");
  m.def(
      "norm_act_depthwise_gradients(Tensor grad, Tensor x, Tensor mean, Tensor scale, Tensor shift, Tensor weight, "
      "int stride, int[] padding, str activation) -> (Tensor, Tensor, Tensor)");

  m.def(
      "generate_weights_backward(Tensor grad, Tensor signal, Tensor[] generators, int[] offsets, int[] groups, "
      "int[] sizes) -> (Tensor, Tensor[])");
  m.def(
      "patch_conv2d_backward(Tensor grad, Tensor x, Tensor weights, Tensor? bias, int out_channels, "
      "int[] kernel_size, int groups, int[] dilation, str padding_mode) -> (Tensor, Tensor, Tensor)");
  m.def(
      "patch_inverted_residual_backward(Tensor grad, Tensor x, Tensor weights, Tensor? bias, int hidden, "
      "int out_channels, str halo) -> (Tensor, Tensor, Tensor)");
  m.def(
      "patch_inverted_residual_batch_norm(Tensor x, Tensor weights, Tensor scale, Tensor shift, int hidden, "
      "int out_channels, str halo, float eps, str group) -> (Tensor, Tensor, Tensor)");
  m.def(
      "patch_inverted_residual_batch_norm_backward(Tensor grad, Tensor x, Tensor weights, Tensor scale, Tensor shift, "
      "int hidden, int out_channels, str halo, float eps, str group, Tensor mean, Tensor variance) -> (Tensor, Tensor, "
      "Tensor, Tensor)");
  m.def(
      "decoder_level_backward(Tensor grad, Tensor skip, Tensor? previous, Tensor? signal, Tensor? generator, "
      "Tensor? weights, Tensor bias, int offset, int groups, int out_channels, int hidden, str halo) -> (Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "upsample_cross_entropy(Tensor logits, Tensor labels, Tensor? weight, int ignore_index, int bootstrap, "
      "float threshold) -> (Tensor, Tensor)");
  m.def("upsample_cross_entropy_backward(Tensor grad, Tensor logits, Tensor labels, Tensor weights) -> Tensor");
}
