#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <exception>

#include "cpu/simd/simd.h"

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
      "stem(Tensor frames, Tensor scale, Tensor shift, Tensor weight, Tensor bias, SymInt height, SymInt width, "
      "int stride, int[] padding) -> Tensor");

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

#ifndef HYPERSEG_SHIM
// The instruction set that the operators use here. A function, as it raises ValueError for an unknown name in
// HYPERSEG_CPU_CAPABILITY.
static PyObject* cpu_capability(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(hyperseg::cpu::capability());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
}

static PyMethodDef methods[] = {
    {"cpu_capability", cpu_capability, METH_NOARGS, "The instruction set in use: default, avx2 or avx512."}, {}};
#else
static PyMethodDef* const methods = nullptr;
#endif

// How this library was built, as string attributes of hyperseg._C; `python -m hyperseg.info` prints them.
PyMODINIT_FUNC PyInit__C(void) {
  static struct PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (!module) return nullptr;
  const char* const build[][2] = {
      {"compiler", HYPERSEG_COMPILER},
      {"build_type", HYPERSEG_BUILD_TYPE},
      {"torch_version", HYPERSEG_TORCH_VERSION},    // of the headers it was compiled against
      {"torch_minimum", HYPERSEG_TORCH_MINIMUM},    // the stable ABI it uses
      {"cpu_versions", HYPERSEG_CPU_VERSIONS},      // instruction sets to choose from at load time
      {"cuda_version", HYPERSEG_CUDA_VERSION},      // "" without CUDA kernels
      {"cuda_architectures", HYPERSEG_CUDA_ARCHS},  // likewise
  };
  for (const auto& [name, value] : build) {
    if (PyModule_AddStringConstant(module, name, value) < 0) {
      Py_DECREF(module);
      return nullptr;
    }
  }
  return module;
}
