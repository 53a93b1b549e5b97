"""``python -m hyperseg.info``: what is built here, which backend each operator takes, and why not the others."""

import os
import platform
import sys
from importlib import metadata
from types import ModuleType
from typing import Any

import torch

import hyperseg
from hyperseg import ops
from hyperseg.ops.backends import native


def report() -> dict[str, Any]:
    """Return everything that :func:`main` prints, as JSON-ready values."""
    module, message = native.extension()
    has_cuda = torch.cuda.is_available()
    return {
        "versions": {
            "hyperseg": hyperseg.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "timm": _version("timm"),
        },
        "devices": {
            "cpu": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
            f"{torch.backends.cpu.get_cpu_capability()}",
            "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            if has_cuda
            else "none that PyTorch can use",
        },
        "extension": message if module is None else _build(module),
        "backends": {
            b.name: {"description": b.description, "missing": b.unavailable_reasons()} for b in ops.BACKENDS.values()
        },
        "named_backend": ops.named_backend(),
        "operators": {
            device: {
                name: dict(zip(("backend", "passed_over"), ops.chosen(name, device), strict=True))
                for name in ops.OPERATORS
            }
            for device in ["cpu", *(["cuda"] if has_cuda else [])]
        },
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _build(module: ModuleType) -> dict[str, str]:
    return {name: str(getattr(module, name)) for name in sorted(dir(module)) if not name.startswith("_")}


def main() -> None:
    """Print the report. Operators name only reasons that are not about the backend as a whole."""
    try:
        facts = report()
    except ops.BackendError as error:
        sys.exit(f"HYPERSEG_BACKEND: {error}")
    print("HyperSeg " + ", ".join(f"{k} {v}" for k, v in facts["versions"].items()).removeprefix("hyperseg "))
    for device, description in facts["devices"].items():
        print(f"  {device:10} {description if isinstance(description, str) else ', '.join(description)}")
    print("\nExtension hyperseg._C")
    if isinstance(facts["extension"], str):
        print(f"  {facts['extension']}")
    else:
        print(f"  {'file':22} {getattr(native.extension()[0], '__file__', '-')}")
        for key, value in facts["extension"].items():
            print(f"  {key:22} {value or '-'}")
    if requested := os.environ.get("HYPERSEG_CPU_CAPABILITY"):
        print(
            f"  HYPERSEG_CPU_CAPABILITY is {requested}; without it the best of cpu_versions that this CPU has is used."
        )
    print("\nBackends")
    for name, backend in facts["backends"].items():
        print(f"  {name:10} {backend['description']}: {'; '.join(backend['missing']) or 'available'}")
    if facts["named_backend"]:
        print(f"  HYPERSEG_BACKEND is {facts['named_backend']}: operators that it does not support raise an error.")
    for device, operators in facts["operators"].items():
        print(f"\nOperators on {device}" + (", if no backend were named" if facts["named_backend"] else ""))
        for name, choice in operators.items():
            reasons = {b: r for b, r in choice["passed_over"].items() if r != facts["backends"][b]["missing"]}
            why = "; ".join(f"not {b}: {', '.join(r)}" for b, r in reasons.items())
            print(f"  {name:44} {choice['backend']:10} {why}")


if __name__ == "__main__":
    main()
