"""Launch options of kernels (block sizes, warps, register limits), and other host functions of launchers.

A launcher looks its options up once per call; nothing is tuned at run time. ``tuned/<gpu>.json`` holds the options
measured to be faster than the defaults, by kernel, dtype and signature. ``registers.json`` goes with the defaults: it
sets ``maxnreg`` where ptxas would rather spill than lose a resident block per SM; the command
``python -m tools.gate.budgets --write`` finds the values.
"""

import contextlib
import functools
import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import triton

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

TUNED = Path(__file__).parent / "tuned"
REGISTERS = Path(__file__).with_name("registers.json")

Options = dict[str, int]  # block sizes by the names of the kernel's parameters, num_warps, num_stages


def cdiv(count: int, size: int) -> int:
    """Return how many blocks of ``size`` hold ``count`` values; ``triton.cdiv`` takes ten times as long on the host."""
    return -(-count // size)


def block(size: int, least: int = 16, most: int = 128) -> int:
    """Return the power of two that holds ``size`` values, between ``least`` and ``most``; ``tl.dot`` needs 16."""
    return min(max(1 << (size - 1).bit_length(), least), most)


def precision(dtype: torch.dtype) -> str:
    """Return the ``input_precision`` of ``tl.dot``: ``"ieee"``, unless PyTorch allows TF32 for float32."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@dataclass(frozen=True)
class Lookup:
    """A launcher's look-up: its kernel and that kernel's default."""

    kernel: str
    default: Options


_forced: dict[str, Options] = {}  # by kernel or table key
_recorders: list[dict[str, Lookup]] = []


def options(kernel: str, x: torch.Tensor, default: Options, **signature: int) -> Options:
    """Return the options of ``kernel`` for tensors like ``x`` and these widths and patch sizes."""
    line = key(kernel, x.dtype, signature)
    for recorder in _recorders:
        recorder.pop(line, None)  # the latest look-up is last
        recorder[line] = Lookup(kernel, default)
    found = _forced.get(line, _forced.get(kernel))
    if found is None and x.device.type == "cuda":
        found = _table(x.device.index or 0).get(line)
    return default | (found or registers(architecture(x)).get(line, {}))  # registers belong to the default's blocks


def architecture(x: torch.Tensor) -> int | None:
    """Return the compute capability of the GPU that holds ``x``: 90 is sm_90; None for a CPU."""
    return _architecture(x.device.index or 0) if x.device.type == "cuda" else None


@functools.cache
def _architecture(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def version() -> str:
    """Return Triton's major and minor version, as the tables name it."""
    return "triton " + ".".join(triton.__version__.split(".")[:2])


@functools.cache
def registers(architecture: int | None) -> dict[str, Options]:
    """Return the launches that need ``maxnreg``, by table key, for the installed Triton."""
    if not REGISTERS.is_file():
        return {}
    return json.loads(REGISTERS.read_text()).get(version(), {}).get(f"sm_{architecture}", {})


def key(kernel: str, dtype: torch.dtype, signature: dict[str, int]) -> str:
    """Return the key of a launch in tables: ``kernel float16 hidden=68 in=36``."""
    return " ".join([kernel, str(dtype)[6:], *(f"{name}={value}" for name, value in sorted(signature.items()))])


def modules() -> list[ModuleType]:
    """Import and return every module of kernels: one per operator, and the parts that they share."""
    folder = Path(__file__).parent
    names = [".".join(path.relative_to(folder).with_suffix("").parts) for path in sorted(folder.rglob("[!_]*.py"))]
    return [importlib.import_module(f"hyperseg.kernels.{name}") for name in names]


@contextlib.contextmanager
def forced(name: str, chosen: Options) -> Iterator[None]:
    """Inside, launch a kernel (by name or table key) with these options instead of the table's: for tuning."""
    before = _forced.get(name)
    _forced[name] = chosen
    try:
        yield
    finally:
        _forced.pop(name)
        if before is not None:
            _forced[name] = before


@contextlib.contextmanager
def lookups() -> Iterator[dict[str, Lookup]]:
    """Record the look-ups of launchers inside, by table key."""
    found: dict[str, Lookup] = {}
    _recorders.append(found)
    try:
        yield found
    finally:
        _recorders.pop()


def table_path(device_name: str) -> Path:
    """Return the path of the table of a GPU, by the name that CUDA gives it."""
    return TUNED / f"{re.sub(r'[^a-z0-9]+', '-', device_name.lower()).strip('-')}.json"


@functools.cache
def _table(device: int) -> dict[str, Options]:
    path = table_path(torch.cuda.get_device_name(device))
    return json.loads(path.read_text())["launches"] if path.is_file() else {}
