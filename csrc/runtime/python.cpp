// hyperseg.runtime_cpp: the C++ runtime in Python, without importing PyTorch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include "hyperseg/segmenter.h"

namespace py = pybind11;
using hyperseg::Image, hyperseg::Info, hyperseg::Labels, hyperseg::Options, hyperseg::Segmenter;

namespace {

std::string shape_of(const py::array& array) {
  return py::str(py::tuple(py::cast(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()))));
}

// Labels of frames [H, W, 3] or [N, H, W, 3], N at most the package's batch. Rows may have any stride.
py::array_t<std::uint8_t> segment(const Segmenter& segmenter, const py::array& given) {
  if (!py::isinstance<py::array_t<std::uint8_t>>(given)) {
    throw py::type_error("frames must have dtype uint8, got " + std::string(py::str(given.dtype())));
  }
  const py::ssize_t dims = given.ndim();
  if ((dims != 3 && dims != 4) || given.shape(dims - 1) != 3 || (dims == 4 && given.shape(0) == 0)) {
    throw py::value_error("frames must be [H, W, 3] or [N, H, W, 3], got " + shape_of(given));
  }
  py::array frames = given;
  if (frames.strides(dims - 1) != 1 || frames.strides(dims - 2) != 3) {  // such as BGR views: packed pixels are needed
    frames = py::array_t<std::uint8_t, py::array::c_style | py::array::forcecast>(given);
  }
  const py::ssize_t count = dims == 4 ? frames.shape(0) : 1;
  const py::ssize_t height = frames.shape(dims - 3), width = frames.shape(dims - 2);
  std::vector<py::ssize_t> shape(frames.shape(), frames.shape() + dims - 1);
  py::array_t<std::uint8_t> labels(shape);
  std::vector<Image> images(count);
  std::vector<Labels> found(count);
  const auto* data = static_cast<const std::uint8_t*>(frames.data());
  for (py::ssize_t i = 0; i < count; ++i) {
    const py::ssize_t offset = dims == 4 ? i * frames.strides(0) : 0;
    images[i] = {data + offset, height, width, frames.strides(dims - 3)};
    found[i] = {labels.mutable_data() + i * height * width, height, width, 0};
  }
  {
    const py::gil_scoped_release release;
    segmenter.segment(images.data(), found.data(), static_cast<std::size_t>(count));
  }
  return labels;
}

py::dict as_dict(const Info& info) {
  py::dict found;
  found["network"] = info.network;
  found["height"] = info.height;
  found["width"] = info.width;
  found["batch"] = info.batch;
  found["classes"] = info.classes;
  found["palette"] = info.palette;
  found["device"] = info.device;
  found["dtype"] = info.dtype;
  found["capability"] = info.capability;
  found["hyperseg_version"] = info.hyperseg_version;
  found["torch_version"] = info.torch_version;
  return found;
}

}  // namespace

PYBIND11_MODULE(runtime_cpp, m) {
  // It registers the operators, which may exist only once in a process. Its other libraries are loaded by now.
  py::module_::import("hyperseg._C");
  m.doc() = "The C++ runtime: packages of `hyperseg export aoti` on NumPy arrays, without importing PyTorch.";
  py::register_exception<hyperseg::Error>(m, "Error", PyExc_RuntimeError);
  m.attr("torch_version") = hyperseg::torch_version();
  m.def(
      "read_info", [](const std::filesystem::path& package) { return as_dict(Segmenter::read_info(package.string())); },
      py::arg("package"), "Return what a package was made for, without loading it.");
  py::class_<Segmenter>(m, "Segmenter", "A package that is loaded; threads may share it.")
      .def(py::init(
               [](const std::filesystem::path& package, int threads, int concurrency, int device, bool keep_memory) {
                 const py::gil_scoped_release release;
                 return Segmenter(package.string(), Options{threads, concurrency, device, keep_memory});
               }),
           py::arg("package"), py::kw_only(), py::arg("threads") = 0, py::arg("concurrency") = 1,
           py::arg("device") = -1, py::arg("keep_memory") = true)
      .def_property_readonly("info", [](const Segmenter& segmenter) { return as_dict(segmenter.info()); })
      .def("__call__", &segment, py::arg("frames"),
           "Map uint8 RGB frames [H, W, 3] or [N, H, W, 3] to labels, uint8 [H, W] or [N, H, W].");
}
