"""How large a kernel's blocks are and how many warps it gets: its own default, or what was measured on this GPU.

A launcher asks once a call, by a look-up; nothing is tuned at run time. ``tuned/<gpu>.json`` holds what was measured to
be faster than the default, by kernel, dtype and signature. ``registers.json`` belongs to the defaults: where ptxas
rather spills a register than have a block fewer on a multiprocessor, it says how many registers keep it from that; the
command ``python -m tools.gate.budgets --write`` finds them.
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


def block(size: int, least: int = 16, most: int = 128) -> int:
    """The power of two that holds ``size`` values, within what a block may have; ``tl.dot`` needs 16."""
    return min(max(triton.next_power_of_2(size), least), most)


def precision(dtype: torch.dtype) -> str:
    """For ``tl.dot``: float32 is multiplied exactly unless PyTorch was told that TF32 will do."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@dataclass(frozen=True)
class Question:
    """What a launcher asked for: its kernel and that kernel's default."""

    kernel: str
    default: Options


_forced: dict[str, Options] = {}  # by kernel, or by line of a table
_asked: list[dict[str, Question]] = []


def options(kernel: str, x: torch.Tensor, default: Options, **signature: int) -> Options:
    """What to launch ``kernel`` with, for tensors like ``x`` and these widths and patch sizes."""
    line = key(kernel, x.dtype, signature)
    for questions in _asked:
        questions.pop(line, None)  # the last question stands last
        questions[line] = Question(kernel, default)
    found = _forced.get(line, _forced.get(kernel))
    if found is None and x.device.type == "cuda":
        found = _table(x.device.index or 0).get(line)
    return default | (found or registers(architecture(x)).get(line, {}))  # which are those of the default's blocks


def architecture(x: torch.Tensor) -> int | None:
    """Of the GPU that holds ``x``: 90 is sm_90."""
    return _architecture(x.device.index or 0) if x.device.type == "cuda" else None


@functools.cache
def _architecture(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def version() -> str:
    """Of Triton, as far as code depends on it."""
    return "triton " + ".".join(triton.__version__.split(".")[:2])


@functools.cache
def registers(architecture: int | None) -> dict[str, Options]:
    """Launches that need ``maxnreg``, by line, for the installed Triton."""
    if not REGISTERS.is_file():
        return {}
    return json.loads(REGISTERS.read_text()).get(version(), {}).get(f"sm_{architecture}", {})


def key(kernel: str, dtype: torch.dtype, signature: dict[str, int]) -> str:
    """The line of a table: ``kernel float16 hidden=68 in=36``."""
    return " ".join([kernel, str(dtype)[6:], *(f"{name}={value}" for name, value in sorted(signature.items()))])


def modules() -> list[ModuleType]:
    """Import and return every module of kernels: one per operator, and the parts that they share."""
    folder = Path(__file__).parent
    names = [".".join(path.relative_to(folder).with_suffix("").parts) for path in sorted(folder.rglob("[!_]*.py"))]
    return [importlib.import_module(f"hyperseg.kernels.{name}") for name in names]


@contextlib.contextmanager
def forced(name: str, chosen: Options) -> Iterator[None]:
    """Launch a kernel, or what a line of a table is about, with these options, whatever the table says: for tuning."""
    before = _forced.get(name)
    _forced[name] = chosen
    try:
        yield
    finally:
        _forced.pop(name)
        if before is not None:
            _forced[name] = before


@contextlib.contextmanager
def asked() -> Iterator[dict[str, Question]]:
    """What launchers ask for inside, by line of a table."""
    questions: dict[str, Question] = {}
    _asked.append(questions)
    try:
        yield questions
    finally:
        _asked.pop()


def table_path(device_name: str) -> Path:
    """Where the table of a GPU lies, by the name that CUDA gives it."""
    return TUNED / f"{re.sub(r'[^a-z0-9]+', '-', device_name.lower()).strip('-')}.json"


@functools.cache
def _table(device: int) -> dict[str, Options]:
    path = table_path(torch.cuda.get_device_name(device))
    return json.loads(path.read_text())["launches"] if path.is_file() else {}
