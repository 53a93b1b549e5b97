"""Packaging: builds, the files of an sdist and a wheel, and a light import."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("setup.py", "pyproject.toml", "CMakeLists.txt", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md")

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="these tests are about a source checkout")
needs_cmake = pytest.mark.skipif(
    importlib.util.find_spec("cmake") is None or importlib.util.find_spec("ninja") is None,
    reason="building needs the packages cmake and ninja",
)
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="this machine has no C++ compiler"
)


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command and return its output. If it fails, fail the test with that output."""
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith(("HYPERSEG_", "PYTHONPATH", "TRITON_INTERPRET"))
    }
    result = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=inherited | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def copy_of_checkout(to: Path) -> Path:
    to.mkdir()
    for name in SHIPPED:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, to)
    for folder in ("csrc", "docs", "kernels", "hyperseg"):
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return to


def sources(folder: str) -> set[str]:
    """The Python files of a package, and the other files that it reads when it is installed."""
    suffixes = (".py", ".css", ".js", ".html", ".svg")
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.*") if path.suffix in suffixes}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_of_checkout(tmp_path / "checkout")


def in_fresh_python(code: str, cwd: Path = ROOT, **environment: str) -> str:
    return run(sys.executable, "-c", code, cwd=cwd, **environment)


def test_import_is_light():
    """Importing hyperseg creates no CUDA context, starts no process and imports no slow optional package."""
    code = """
import subprocess, sys, torch
before = set(sys.modules)
def fail(self, command, **options):
    sys.exit(f"importing hyperseg started {command}")
subprocess.Popen.__init__ = fail
import hyperseg
assert not torch.cuda.is_initialized()
slow = {"torchvision", "timm", "triton", "PIL", "skimage"}
print("imported:", sorted(slow & (set(sys.modules) - before)))
assert hyperseg.predict.Predictor is hyperseg.predict.Segmenter  # packages are imported on first use
"""
    assert in_fresh_python(code).strip().endswith("imported: []")


def test_kernels_belong_to_hyperseg():
    where = in_fresh_python(
        "import importlib.util; print(importlib.util.find_spec('hyperseg.kernels.upsample_argmax').origin)"
    )
    assert Path(where.strip()) == ROOT / "kernels/upsample_argmax.py"


def test_another_package_named_kernels_wins(tmp_path: Path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/__init__.py").write_text("")
    where = in_fresh_python("import kernels; print(kernels.__file__)", PYTHONPATH=str(tmp_path))
    assert Path(where.strip()) == tmp_path / "kernels/__init__.py"


def test_sdist(checkout: Path, tmp_path: Path):
    run(sys.executable, "-c", f"import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})", cwd=checkout)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as contents:
        names = {name.partition("/")[2] for name in contents.getnames()}
    native = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*")}
    required = sources("hyperseg") | sources("kernels") | native
    required |= {"setup.py", "CMakeLists.txt", "LICENSE", "docs/SPEC.md"}
    assert required <= names, f"missing: {sorted(required - names)} (see MANIFEST.in)"


def test_without_a_compiler_the_build_succeeds_and_reports_it(checkout: Path):
    nothing = {"PATH": str(checkout / "empty"), "CXX": ""}
    output = run(sys.executable, "setup.py", "build_ext", cwd=checkout, **nothing)
    assert re.search(r"_C is not built, as this machine lacks a C\+\+ compiler.*reference operators", output)
    assert not list(checkout.rglob("*.so"))


def test_a_required_extension_fails_without_a_compiler(checkout: Path):
    nothing = {"PATH": str(checkout / "empty"), "CXX": "", "HYPERSEG_REQUIRE_EXTENSION": "1"}
    with pytest.raises(AssertionError, match="HYPERSEG_REQUIRE_EXTENSION=1 makes this an error"):
        run(sys.executable, "setup.py", "build_ext", cwd=checkout, **nothing)


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"HYPERSEG_PURE": "1"}, "HYPERSEG_PURE=1 is set"),
        ({"FAKE_PLATFORM": "win32"}, "its C++ and CUDA code is for Linux, and this is win32"),
        ({"FAKE_PLATFORM": "darwin"}, "its C++ and CUDA code is for Linux, and this is darwin"),
        ({"PATH": "", "CXX": ""}, "this machine lacks a C++ compiler"),
    ],
)
def test_a_wheel_without_an_extension(checkout: Path, variables: dict[str, str], reason: str, tmp_path: Path):
    code = f"""
import os, sys
import setuptools.build_meta
sys.path.insert(0, "")
text = open("setup.py").read()
if "FAKE_PLATFORM" in os.environ:
    text = text.replace("sys.platform", repr(os.environ["FAKE_PLATFORM"]))
open("setup.py", "w").write(text)
setuptools.build_meta.build_wheel({str(tmp_path)!r})
"""
    output = run(sys.executable, "-c", code, cwd=checkout, **variables)
    assert f"hyperseg._C is not built, as {reason}" in output
    assert "will run on its reference operators in plain PyTorch" in output
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"hyperseg/{name}" for name in sources("kernels")} | sources("hyperseg") <= names
    assert not [name for name in names if name.endswith(".so")]


@needs_cmake
@needs_compiler
@pytest.mark.skipif(torch.version.cuda is None or not shutil.which("nvcc"), reason="this machine compiles no CUDA")
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CUDA_HOME": "/nowhere"}, "no nvcc in /nowhere/bin; correct CUDA_HOME, or set HYPERSEG_CUDA=0"),
        ({"TORCH_CUDA_ARCH_LIST": "Hopper"}, "has 'Hopper'; write it like"),
        ({"TORCH_CUDA_ARCH_LIST": "9.0;7.5"}, "architecture 8.0 or later, not 7.5"),
        ({"TORCH_CUDA_ARCH_LIST": "99.0"}, "does not know architecture 99.0; it knows compute_"),
    ],
)
def test_wrong_cuda_settings_stop_the_build(checkout: Path, environment: dict[str, str], message: str):
    with pytest.raises(AssertionError, match=re.escape(message)):
        run(sys.executable, "setup.py", "build_ext", cwd=checkout, **environment)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run `python setup.py build_ext` in a copy of the checkout. Return the copy and the output."""
    checkout = copy_of_checkout(tmp_path_factory.mktemp("built") / "checkout")
    (checkout / "kernels/tuned").mkdir(exist_ok=True)
    (checkout / "kernels/tuned/a-gpu.json").write_text("{}")
    return checkout, run(sys.executable, "setup.py", "build_ext", cwd=checkout, HYPERSEG_CUDA="0")


@pytest.mark.slow
@needs_cmake
@needs_compiler
class TestBuilding:
    def test_bare_build_ext_builds_in_place(self, built: tuple[Path, str]):
        checkout, output = built
        assert "building for the CPU only: HYPERSEG_CUDA=0 is set." in output
        code = "import torch, hyperseg._C as c; print(c.__file__, c.torch_minimum, repr(c.cuda_architectures))"
        facts = in_fresh_python(code, cwd=checkout).split()
        assert facts == [str(checkout / "hyperseg/_C.abi3.so"), "2.11", "''"]

    def test_wheel(self, built: tuple[Path, str], tmp_path: Path):
        code = f"import setuptools.build_meta as b; b.build_wheel({str(tmp_path)!r})"
        output = run(sys.executable, "-c", code, cwd=built[0], HYPERSEG_CUDA="0", HYPERSEG_REQUIRE_EXTENSION="1")
        assert "no work to do" in output, "the build directory was not reused"
        (wheel,) = tmp_path.glob("*.whl")
        assert "-cp310-abi3-" in wheel.name
        names = set(zipfile.ZipFile(wheel).namelist())
        assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"hyperseg"}
        assert "hyperseg/kernels/tuned/a-gpu.json" in names, "the tuned launch options are not installed"
        required = sources("hyperseg") | {f"hyperseg/{name}" for name in sources("kernels")} | {"hyperseg/_C.abi3.so"}
        assert required <= names, f"missing: {sorted(required - names)} (a folder without __init__.py?)"

    def test_a_compile_error_stops_the_build(self, built: tuple[Path, str]):
        source = built[0] / "csrc/module.cpp"
        intact = source.read_text()
        source.write_text("this is not C++\n")
        try:
            with pytest.raises(AssertionError, match=r"error: (.|\n)*hyperseg\._C could not be built"):
                run(sys.executable, "setup.py", "build_ext", cwd=built[0], HYPERSEG_CUDA="0")
        finally:
            source.write_text(intact)
