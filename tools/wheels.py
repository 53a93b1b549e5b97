"""Build what is published: an sdist, and wheels without an extension, for the CPU, and for GPUs too.

    python -m tools.wheels [--kind KIND ...] [--output dist]

| file | for | chosen by |
| --- | --- | --- |
| hyperseg-V.tar.gz | those who build it themselves | pip install hyperseg --no-binary hyperseg |
| hyperseg-V-py3-none-any.whl | Windows, macOS: plain PyTorch | pip, where the next one does not fit |
| hyperseg-V-cp310-abi3-manylinux_X_Y_x86_64.whl | Linux: C++ on the CPU; Triton on a GPU | pip |
| hyperseg-V+cu13-cp310-abi3-manylinux_X_Y_x86_64.whl | and CUDA C++, for a torch of that CUDA | hyperseg==V+cu13 |

V is the version. One library runs with every Python from 3.10 and every torch from 2.11. X_Y is the glibc that it
needs, read from the library: built where glibc is older, a wheel runs on older systems. PyTorch's libraries are not
copied into a wheel, as they are loaded before. The CUDA wheel has code for compute capabilities 8.0, 9.0 and 10.0 and
PTX, unless TORCH_CUDA_ARCH_LIST names others; it is left out, with the reason, where there is no nvcc.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("sdist", "pure", "cpu", "cuda")
LIBRARY = "hyperseg/_C.abi3.so"
ARCHITECTURES = "8.0;9.0;10.0+PTX"

# For each glibc that a tag may name, the newest versions of other libraries that its systems have, as in auditwheel.
POLICIES = {
    (2, 28): {"GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)},
    (2, 31): {"GLIBCXX": (3, 4, 28), "CXXABI": (1, 3, 12), "GCC": (7, 0, 0)},
    (2, 34): {"GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13), "GCC": (7, 0, 0)},
    (2, 35): {"GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13), "GCC": (12, 0, 0)},
    (2, 39): {"GLIBCXX": (3, 4, 33), "CXXABI": (1, 3, 15), "GCC": (14, 0, 0)},
}
# Those that every Linux has, and those that come with torch and are loaded before the extension.
SYSTEM = {"libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1"}
WITH_TORCH = re.compile(r"libc10\.so|libc10_cuda\.so|libtorch_cpu\.so|libtorch_cuda\.so|libcudart\.so\.\d+")


class WheelError(RuntimeError):
    """A distribution could not be built. The message says why and what to do."""


def required_versions(text: str) -> dict[str, tuple[int, ...]]:
    """Return the newest version of each library's symbols in the output of `readelf --version-info`."""
    newest: dict[str, tuple[int, ...]] = {}
    for name, digits in re.findall(r"Name: ([A-Z]+)_(\d+(?:\.\d+)*)\s", text):
        version = tuple(map(int, digits.split(".")))
        newest[name] = max(version, newest.get(name, version))
    return newest


def manylinux(required: dict[str, tuple[int, ...]], machine: str) -> str:
    """Return the platform tag of a library that requires these versions. Raises WheelError."""
    for glibc, allowed in POLICIES.items():
        limits = {"GLIBC": glibc, **allowed}
        if all(version <= limits[name] for name, version in required.items() if name in limits):
            return f"manylinux_{glibc[0]}_{glibc[1]}_{machine}"
    found = ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in sorted(required.items()))
    raise WheelError(f"{LIBRARY} needs {found}, more than any system in the table of tools/wheels.py has; update it")


def foreign(dynamic: str) -> list[str]:
    """Return the needed libraries, in the output of `readelf --dynamic`, that neither Linux nor torch brings."""
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    return [
        name for name in needed if name not in SYSTEM and not (WITH_TORCH.fullmatch(name) or name.startswith("ld-"))
    ]


def platform_tag(library: Path) -> str:
    """Return the platform tag of a library. Raises WheelError."""
    if others := foreign(_output("readelf", "--dynamic", library)):
        raise WheelError(f"{library} needs {', '.join(others)}, which neither Linux nor torch brings")
    machine = sysconfig.get_platform().removeprefix("linux-")
    return manylinux(required_versions(_output("readelf", "--version-info", library)), machine)


def build(kind: str, output: Path) -> Path:
    """Build one of `KINDS` into a folder and return the file. Raises WheelError."""
    temporary = ROOT / "build" / "wheels" / kind
    shutil.rmtree(temporary, ignore_errors=True)  # files of a module that is gone would be packed too
    temporary.mkdir(parents=True)
    metadata = ["egg_info", "--egg-base", temporary]
    if kind == "sdist":
        return _moved(_setup(*metadata, "sdist", "--dist-dir", temporary / "dist"), temporary / "dist", output)
    environment = {"HYPERSEG_REQUIRE_EXTENSION": "0" if kind == "pure" else "1"}
    if kind == "pure":
        environment["HYPERSEG_PURE"] = "1"
    elif kind == "cpu":
        environment["HYPERSEG_CUDA"] = "0"
    else:
        metadata += ["--tag-build", f"+cu{cuda_major()}"]
        environment["TORCH_CUDA_ARCH_LIST"] = os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHITECTURES
    tag: list[str] = []
    if kind != "pure":
        library = temporary / "extension"
        said = _setup("build_ext", "--build-lib", library, **environment)
        if kind == "cuda" and "building for the CPU only" in said:
            raise WheelError("the extension was built without CUDA: " + said.partition("CPU only: ")[2].splitlines()[0])
        tag = ["--plat-name", platform_tag(library / LIBRARY)]
    folders = ["build", "--build-base", temporary, "bdist_wheel", "--bdist-dir", temporary / "bdist"]
    said = _setup(*metadata, *folders, *tag, "--dist-dir", temporary / "dist", **environment)
    return _moved(said, temporary / "dist", output)


def cuda_major() -> str:
    """Return the major version of CUDA that the installed torch was built with. Raises WheelError if there is none."""
    import torch

    if torch.version.cuda is None:
        raise WheelError(f"the installed torch {torch.__version__} has no CUDA")
    return torch.version.cuda.split(".")[0]


def without_cuda() -> str | None:
    """Return why a CUDA wheel cannot be built here; None if it can."""
    imported = "import runpy, setuptools; setuptools.setup = lambda **_: None; found = runpy.run_path('setup.py')"
    code = f"{imported}; print(found['find_cuda']())"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        return result.stderr.strip().splitlines()[-1]
    root, _, reason = result.stdout.strip().strip("()").partition(", ")
    return reason.strip("'\"") if root == "None" else None


def missing_from(wheel: Path, sdist: Path) -> list[str]:
    """Return the package files of an sdist that a wheel lacks."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        re.sub(r"^kernels/", "hyperseg/kernels/", name) for name in names if name.endswith((".py", ".json", ".yaml"))
    }
    wanted = {name for name in wanted if name.startswith("hyperseg/")}
    return sorted(wanted - set(zipfile.ZipFile(wheel).namelist()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.wheels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this one; may be repeated")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="the folder for the files (default: dist)")
    args = parser.parse_args(argv)
    kinds: Iterable[str] = args.kind or KINDS
    if args.kind is None and (reason := without_cuda()) is not None:
        print(f"no CUDA wheel: {reason}", flush=True)
        kinds = [kind for kind in KINDS if kind != "cuda"]
    try:
        files = {kind: build(kind, args.output) for kind in kinds}
        if "sdist" in files:
            for kind, file in files.items():
                if kind != "sdist" and (absent := missing_from(file, files["sdist"])):
                    raise WheelError(f"{file.name} lacks {', '.join(absent)}")
    except WheelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for file in files.values():
        print(f"{file}  {file.stat().st_size / 1e6:.1f} MB")
    return 0


def _setup(*arguments: object, **environment: str) -> str:
    """Run setup.py, with its output both shown and returned. Raises WheelError."""
    command = [sys.executable, "setup.py", "-q", *map(str, arguments)]
    inherited = {
        key: value for key, value in os.environ.items() if key not in ("HYPERSEG_SHIM", "HYPERSEG_SANITIZE", "DEBUG")
    }
    process = subprocess.Popen(
        command, cwd=ROOT, env=inherited | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    if process.wait():
        raise WheelError(f"{' '.join(command)} failed; its output is above")
    return "".join(lines)


def _output(*command: object) -> str:
    try:
        return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise WheelError(f"{command[0]} of binutils is needed to read what the library requires ({error})") from None


def _moved(said: str, folder: Path, output: Path) -> Path:
    files = list(folder.iterdir())
    if len(files) != 1:
        raise WheelError(f"setup.py wrote {len(files)} files where one was expected:\n{said}")
    output.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(files[0], output / files[0].name))


if __name__ == "__main__":
    sys.exit(main())
