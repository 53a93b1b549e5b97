"""HyperSeg (CVPR 2021): real-time semantic segmentation with patch-wise generated convolution weights.

One folder per subject. Files here are about the package as a whole; this one exports the main names.
"""

import importlib
import os
from pathlib import Path

__version__ = "0.1.0"

_here = Path(__file__).resolve().parent
if not (_here / "kernels").is_dir():
    # A source checkout: kernels/ is a sibling of hyperseg/; an installation puts it inside.
    __path__.append(str(_here.parent))

# PyTorch's OpenMP threads wait for each other by spinning, some 10 ms at a time. Where other programs use the CPUs too,
# a thread then spins on the CPU that another one needs, and a frame takes five times as long. With this count they
# sleep after about 0.1 ms, which costs nothing on an idle machine (docs/measuring.md). libgomp reads it when PyTorch is
# imported, so it has no effect after that.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"

# Loaded on first use: torch and timm take seconds to import, `hyperseg --help` should not.
_EXPORTS = {
    "build_engine": "hyperseg.runtime",
    "create_model": "hyperseg.models",
    "list_models": "hyperseg.models",
    "load": "hyperseg.models",
    "load_official": "hyperseg.models",
    "save": "hyperseg.models",
    "save_official": "hyperseg.models",
    "synthesize_weights": "hyperseg.models",
}

_PACKAGES = (
    "data",
    "evaluation",
    "export",
    "images",
    "models",
    "ops",
    "predict",
    "publish",
    "runtime",
    "serve",
    "verify",
)

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"hyperseg.{name}")
    raise AttributeError(f"module 'hyperseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *_PACKAGES})
