#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <exception>

#include "common/constants.h"
#include "cpu/simd/simd.h"
#ifdef HYPERSEG_SHIM
#include "shim/record.h"
#endif

static PyObject* set_constants_ready(PyObject*, PyObject* ready) {
  const int value = PyObject_IsTrue(ready);
  return value < 0 ? nullptr : PyBool_FromLong(hyperseg::set_constants_ready(value));
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

#else
using hyperseg::shim::Launch, hyperseg::shim::launches, hyperseg::shim::Recording;

// record(mode): forget the launches so far; 0: record none, 1: record and do not run, 2: record and run.
static PyObject* record(PyObject*, PyObject* mode) {
  const long value = PyLong_AsLong(mode);
  if (value == -1 && PyErr_Occurred()) return nullptr;
  if (value < 0 || value > 2) {
    PyErr_Format(PyExc_ValueError, "record: the mode must be 0, 1 or 2, got %ld", value);
    return nullptr;
  }
  launches.clear();
  hyperseg::shim::recording = static_cast<Recording>(value);
  return Py_NewRef(Py_None);
}

// The recorded launches: (operator, mangled type that names the kernel, grid, threads, shared bytes, parameters).
static PyObject* recorded(PyObject*, PyObject*) {
  PyObject* list = PyList_New(0);
  for (const Launch& one : launches) {
    PyObject* item = Py_BuildValue("(ss(III)Iny#)", one.op.c_str(), one.kernel.c_str(), one.grid[0], one.grid[1],
                                   one.grid[2], one.threads, static_cast<Py_ssize_t>(one.shared),
                                   reinterpret_cast<const char*>(one.parameters.data()),
                                   static_cast<Py_ssize_t>(one.parameters.size()));
    const bool appended = list && item && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    if (!appended) {
      Py_XDECREF(list);
      return nullptr;
    }
  }
  return list;
}

#endif

static PyMethodDef methods[] = {
    {"set_constants_ready", set_constants_ready, METH_O,
     "Whether this thread's calls may read parameters ahead of the previous kernel; returns what it was."},
#ifdef HYPERSEG_SHIM
    {"record", record, METH_O, "Record launches: 0 none, 1 without running, 2 and run."},
    {"recorded", recorded, METH_NOARGS, "The recorded launches."},
#else
    {"cpu_capability", cpu_capability, METH_NOARGS, "The instruction set in use: default, avx2, avx512 or amx."},
#endif
    {}};

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
