"""Install a wheel or an sdist into an environment of its own, and use it there as a user does.

    python -m tools.smoke dist/hyperseg-0.1.0-cp310-abi3-manylinux_2_34_x86_64.whl
    python -m tools.smoke FILE --torch torch==2.11.0 torchvision==0.26.0 triton==3.6.0 --python python3.10
    python -m tools.smoke dist/hyperseg-0.1.0.tar.gz --expect reference --no-compiler

The package is imported from an empty folder, all kernels of the CPU are compared with the reference, and `hyperseg
info` and `hyperseg predict` run, the latter with a network that was saved before. `--expect` is the backend that the
operators of an engine must take on the CPU. Exit code 1 if anything is otherwise.

Torch is downloaded, unless `--environment` names a folder where an earlier run left it: only hyperseg is then
installed anew. An sdist is built without isolation, against the torch that is installed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# Runs in the environment: everything about the installed package that a command does not show.
CHECK = """
import sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
import hyperseg
from hyperseg import ops
from hyperseg.ops.backends import native
from hyperseg.ops.backends.cuda import device_reasons

expected, prefix = sys.argv[1:]
assert Path(hyperseg.__file__).is_relative_to(prefix), f"{hyperseg.__file__} is not the installed package"
module, message = native.extension()
print("torch", torch.__version__, "- extension:", module.__file__ if module else message)
chosen = {name: ops.chosen(name, "cpu")[0] for name in ops.OPERATORS if not name.endswith("_backward")}
wrong = {name: backend for name, backend in chosen.items() if backend not in (expected, "reference")}
taken = sum(backend == expected for backend in chosen.values())
assert (module is not None) == (expected == "cpp"), message
assert not wrong and taken >= len(chosen) - 3, f"expected {expected}: {chosen}"
print(f"{expected} runs {taken} of {len(chosen)} operators")
architectures = module.cuda_architectures if module else ""
for word in architectures.split():
    digits = word.partition("-")[0].rstrip("af")  # 90a is of compute capability 9.0
    assert not (reasons := device_reasons((int(digits[:-1]), int(digits[-1])), architectures)), reasons
print("CUDA C++ for", architectures or "no GPU")

network = hyperseg.synthesize_weights(hyperseg.create_model("hyperseg-s-camvid")).eval()
image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
labels = hyperseg.build_engine(network, size=(96, 128))(torch.from_numpy(image)[None])
with ops.use_backend("reference"):
    plain = hyperseg.build_engine(network, size=(96, 128))(torch.from_numpy(image)[None])
assert (labels == plain).float().mean() > 0.999
hyperseg.save(network, "network")
Image.fromarray(image).save("street.png")
np.save("labels.npy", labels[0].numpy())
"""
COMPARE = """
import numpy as np
from PIL import Image
with Image.open("predictions/street_labels.png") as image:
    assert image.mode == "P"
    assert np.array_equal(np.array(image), np.load("labels.npy")), "the labels of hyperseg predict differ"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.smoke", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="wheels or sdists, each of which is tested")
    parser.add_argument("--expect", choices=("cpp", "reference"), default="cpp", help="the backend on the CPU")
    parser.add_argument(
        "--torch", nargs="+", default=["torch"], help="what pip installs before (default: the newest torch)"
    )
    parser.add_argument("--python", default=sys.executable, help="the interpreter (default: this one)")
    parser.add_argument("--environment", type=Path, help="a folder that keeps the environment")
    parser.add_argument("--no-compiler", action="store_true", help="hide compilers and CUDA from the build")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="hyperseg-smoke-") as folder:
        try:
            for i, file in enumerate(args.files):
                (Path(folder) / str(i)).mkdir()
                smoke(args, file, Path(folder) / str(i))
        except subprocess.CalledProcessError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print("passed")
    return 0


def smoke(args: argparse.Namespace, file: Path, folder: Path) -> None:
    """Install the file and check it. Raises CalledProcessError."""
    environment = (args.environment or folder / "environment").resolve()
    python = environment / "bin" / "python"
    if not python.exists():
        _run([args.python, "-m", "venv", environment])
        _run([python, "-m", "pip", "install", "-q", *args.torch])
    variables = {}
    install = [python, "-m", "pip", "install", "-q"]
    sdist = file.name.endswith(".tar.gz")
    if sdist:
        _run([*install, "setuptools>=77", "cmake>=3.24", "ninja"])
        variables = {"HYPERSEG_REQUIRE_EXTENSION": "1", "HYPERSEG_CUDA": "0"}
        if args.no_compiler:
            (folder / "empty").mkdir()
            variables = {"PATH": str(folder / "empty"), "CXX": "", "HYPERSEG_REQUIRE_EXTENSION": "0"}
        install += ["--no-build-isolation", "--no-cache-dir"]
    _run([python, "-m", "pip", "uninstall", "-q", "-y", "hyperseg"])
    _run([*install, file.resolve()], None, **variables)

    work = folder / "work"
    work.mkdir()
    command = environment / "bin" / "hyperseg"
    variables = {"HYPERSEG_CACHE": str(folder / "cache")}
    _run([python, "-c", CHECK, args.expect, environment], work, **variables)
    _run([command, "info", "--verify"], work, **variables)
    _run([command, "predict", "street.png", "--weights", "network", "--device", "cpu"], work, **variables)
    _run([python, "-c", COMPARE], work, **variables)


def _run(command: Sequence[object], folder: Path | None = None, **variables: str) -> None:
    words = [str(word) for word in command]
    shown = ["..." if "\n" in word else word for word in words]
    print("$", *shown, flush=True)
    begin = time.monotonic()
    hidden = ("HYPERSEG_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    subprocess.run(words, cwd=folder, env=inherited | variables, check=True)
    print(f"  {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
