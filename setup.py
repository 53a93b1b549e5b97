"""Build hyperseg._C with CMake (see CMakeLists.txt). pyproject.toml declares the rest of the package."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHS = ("8.0", "9.0", "10.0")  # the last one also as PTX, for newer GPUs


def report(message: str) -> None:
    print(f"hyperseg: {message}", flush=True)


def run(command: list) -> None:
    if subprocess.run(command).returncode:
        sys.exit("hyperseg._C could not be built; the error is above. HYPERSEG_CUDA=0 leaves the CUDA part out.")


def find_tool(name: str) -> str | None:
    """Return the path of a program from the pip package of this name, or else from the PATH."""
    if importlib.util.find_spec(name):
        module = importlib.import_module(name)
        folder = getattr(module, "CMAKE_BIN_DIR", None) or module.BIN_DIR
        if found := shutil.which(name, path=folder):
            return found
    return shutil.which(name)


def pybind11_headers() -> str:
    """Return the folder of pybind11's headers; "" if it is not installed."""
    return importlib.import_module("pybind11").get_include() if importlib.util.find_spec("pybind11") else ""


def missing_tools() -> list[str]:
    compiler = os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))
    return ([] if compiler else ["a C++ compiler"]) + [name for name in ("cmake", "ninja") if not find_tool(name)]


def reason_unbuilt() -> str | None:
    """Return why hyperseg._C is not built here; None if it is. Messages go on: "hyperseg._C is not built, as ..."."""
    if os.environ.get("HYPERSEG_PURE") == "1":
        return "HYPERSEG_PURE=1 is set"
    if sys.platform != "linux":
        return f"its C++ and CUDA code is for Linux, and this is {sys.platform}"
    missing = missing_tools()
    return f"this machine lacks {' and '.join(missing)}" if missing else None


def report_unbuilt(reason: str) -> None:
    """Say that the package is built without hyperseg._C; exit if that is not allowed."""
    problem = f"hyperseg._C is not built, as {reason}"
    if os.environ.get("HYPERSEG_REQUIRE_EXTENSION") == "1":
        sys.exit(f"{problem}; HYPERSEG_REQUIRE_EXTENSION=1 makes this an error.")
    report(f"{problem}: the package will run on its reference operators in plain PyTorch.")


def cuda_root(nvcc: str) -> Path | None:
    """Return the toolkit of this nvcc, or None. Its folder may be elsewhere, as nvcc on the PATH is often a wrapper."""
    plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    root = Path(top[1].strip()).resolve() if top else Path(nvcc).resolve().parent.parent
    return root if (root / "include/cuda_runtime.h").is_file() else None


def find_cuda() -> tuple[Path | None, str]:
    """Return the CUDA toolkit to build with, or None and the reason why the build is for the CPU only."""
    import torch

    if os.environ.get("HYPERSEG_CUDA") == "0":
        return None, "HYPERSEG_CUDA=0 is set"
    if torch.version.cuda is None:
        return None, f"the installed torch {torch.__version__} has no CUDA"
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=Path(home, "bin")) if home else shutil.which("nvcc")
    if home and nvcc is None:
        sys.exit(
            f"There is no nvcc in {home}/bin; correct CUDA_HOME, or set HYPERSEG_CUDA=0 to build for the CPU only."
        )
    nvcc = nvcc or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        return None, "there is no nvcc on the PATH or in CUDA_HOME"
    root = cuda_root(nvcc)
    if root is None:
        return None, f"{nvcc} does not belong to a CUDA toolkit with include/cuda_runtime.h (set CUDA_HOME to one)"
    release = re.search(r"release (\d+)\.(\d+)", subprocess.check_output([nvcc, "--version"], text=True))
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        found = release[0].removeprefix("release ") if release else "of an unknown version"
        return (
            None,
            f"nvcc is {found} but torch was built with CUDA {torch.version.cuda}; the major versions must agree",
        )
    return root, ""


def cuda_architectures(nvcc: Path) -> str:
    """Return TORCH_CUDA_ARCH_LIST, the architectures of this machine's GPUs or the default, in CMake's syntax."""
    import torch

    known = subprocess.check_output([nvcc, "--list-gpu-arch"], text=True).split()
    wanted = [arch for arch in re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "")) if arch]
    if not wanted and torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        wanted = sorted({"{}.{}".format(*torch.cuda.get_device_capability(device)) for device in devices})
    elif not wanted:
        wanted = [arch for arch in DEFAULT_ARCHS if f"compute_{arch.replace('.', '')}" in known]
        wanted[-1] += "+PTX"
    words = []
    for arch in wanted:
        match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", arch)
        if match is None:
            sys.exit(f'TORCH_CUDA_ARCH_LIST has {arch!r}; write it like "8.0;9.0+PTX".')
        if int(match[1]) < 8:
            sys.exit(f"The CUDA kernels need a GPU of architecture 8.0 or later, not {arch}; or set HYPERSEG_CUDA=0.")
        if f"compute_{match[1]}{match[2][0]}" not in known:
            sys.exit(f"This nvcc does not know architecture {arch}; it knows {', '.join(known)}.")
        words.append(match[1] + match[2] + ("" if match[3] else "-real"))
    return ";".join(words)


class CMakeBuild(build_ext):
    def finalize_options(self) -> None:
        # `python setup.py build_ext` alone builds in place, to make a checkout usable; a wheel builds in build_lib.
        if self.distribution.commands == ["build_ext"] and self.build_lib is None:
            self.inplace = True
        super().finalize_options()
        self.in_checkout = bool(self.inplace)  # setuptools clears `inplace` while it builds

    def run(self) -> None:
        if (reason := reason_unbuilt()) is not None:
            report_unbuilt(reason)
            self.extensions = []
        elif not importlib.util.find_spec("torch"):
            sys.exit(f"PyTorch is not installed for {sys.executable}; install torch>=2.11, then build again.")
        super().run()

    def build_extension(self, ext: Extension) -> None:
        cmake = find_tool("cmake")
        sanitize = os.environ.get("HYPERSEG_SANITIZE", "")
        shim = os.environ.get("HYPERSEG_SHIM") == "1"  # the CUDA kernels on the CPU, for tests: csrc/shim/README.md
        root, reason = (None, "HYPERSEG_SHIM=1 runs the CUDA kernels on the CPU") if shim else find_cuda()
        variant = "-shim" if shim else "-cpu" if root is None else ""
        kind = self.plat_name + variant + ("-sanitize" if sanitize else "")
        build = ROOT / "build" / f"cmake-{kind}"  # every command reuses it, so the next build is fast
        debug = self.debug or os.environ.get("DEBUG") == "1"
        options = {
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "CMAKE_BUILD_TYPE": "Debug" if debug else "Release",
            "Python3_EXECUTABLE": sys.executable,
            "HYPERSEG_SANITIZE": sanitize,
            "HYPERSEG_SHIM": "ON" if shim else "OFF",
            # Only for this machine: unlike hyperseg._C it runs with no other version of torch.
            "HYPERSEG_RUNTIME": "ON" if self.in_checkout else "OFF",
            "HYPERSEG_PYBIND11": pybind11_headers(),  # a change, as by an installation, configures the build anew
            "HYPERSEG_CUDA": "OFF",
        }
        if root is None:
            report(f"building for the CPU only: {reason}.")
        else:
            nvcc = root / "bin/nvcc"
            options |= {
                "HYPERSEG_CUDA": "ON",
                "CMAKE_CUDA_COMPILER": nvcc,
                "CMAKE_CUDA_ARCHITECTURES": cuda_architectures(nvcc),
            }
            report(f"using the CUDA toolkit in {root} for architectures {options['CMAKE_CUDA_ARCHITECTURES']}.")
        self.configure([cmake, "-S", ROOT, "-B", build, "-G", "Ninja"], options, build)
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        run([cmake, "--build", build, *jobs])

        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        copies = {target: build / "_C.abi3.so"}
        if self.in_checkout:
            copies |= {
                ROOT / "hyperseg" / path.name: path for path in (build / "csrc/runtime").glob("runtime_cpp.*.so")
            }
        for copy, source in copies.items():
            copy.unlink(missing_ok=True)  # a running process may have the old file mapped
            shutil.copy2(source, copy)

    def configure(self, command: list, options: dict, build: Path) -> None:
        """Run CMake if its options or torch changed since the last run. Ninja notices a changed CMakeLists.txt."""
        import torch

        command += [f"-D{name}={value}" for name, value in options.items()]
        compiler = os.environ.get("CXX", "")
        settings = "\n".join(map(str, [*command, torch.__file__, torch.__version__, compiler]))
        recorded = build / "configured.txt"
        if not recorded.is_file() or recorded.read_text() != settings:
            recorded.unlink(missing_ok=True)
            (build / "CMakeCache.txt").unlink(missing_ok=True)  # it would keep the old compiler, even if CXX changed
            run(command)
            recorded.write_text(settings)


class Wheel(bdist_wheel):
    """A wheel for any platform where hyperseg._C is not built; pip would refuse to install it elsewhere otherwise."""

    def finalize_options(self) -> None:
        self.reason_unbuilt = reason_unbuilt()
        if self.reason_unbuilt is not None:
            self.distribution.ext_modules = []
        super().finalize_options()

    def run(self) -> None:
        if self.reason_unbuilt is not None:
            report_unbuilt(self.reason_unbuilt)
        super().run()


setup(
    # Packages are found, not listed, so that the wheel contains new folders too.
    packages=[
        *find_packages(include=["hyperseg", "hyperseg.*"]),
        "hyperseg.kernels",
        *(f"hyperseg.kernels.{name}" for name in find_packages("kernels")),
    ],
    ext_modules=[Extension("hyperseg._C", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
