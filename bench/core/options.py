"""Command-line arguments that several commands share, and errors about values that cannot be used here."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import torch

from bench.core.errors import Refused
from hyperseg.models.sizes import parse_sides
from hyperseg.runtime import device

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BACKENDS = ("auto", "reference", "cpp", "triton", "cuda")

Number = TypeVar("Number", int, float)


class Parser(argparse.ArgumentParser):
    """Parser for a command, described by its docstring."""

    def __init__(self, command: str, doc: str | None) -> None:
        super().__init__(prog=command, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """Exit with code 1: 2 means that an output is wrong."""
        self.exit(1, f"{self.prog}: {message}\n")


def measuring_parser(command: str, doc: str | None, *, model: str, row: str, quick: str) -> Parser:
    """Return a parser with the arguments of all commands that measure.

    Args:
        model: default network.
        row: what one row of the table times.
        quick: what ``--quick`` leaves unchanged.
    """
    parser = Parser(command, doc)
    add = parser.add_argument
    add("--model", nargs="+", default=[model], metavar="NAME", help="names, aliases, or all")
    add("--resolution", "--size", type=resolution, metavar="HxW", help="default: the published one of each network")
    add("--threads", type=positive(int), metavar="N", help="CPU threads; default: PyTorch's")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=positive(float), metavar="S", help=f"measuring time per {row}")
    length.add_argument("--iterations", type=positive(int), metavar="N", help=f"latency samples per {row}")
    add("--quick", action="store_true", help=f"a first look: {quick}, fewer samples")
    add("--json", type=Path, metavar="FILE", help="write all results with raw samples; rewritten after each network")
    add("--seed", type=int, default=0)
    return parser


def add_device(parser: Parser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1; auto is CUDA where there is any")
    parser.add_argument("--dtype", default="float32", choices=DTYPES)


def resolution(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH."""
    if (sides := parse_sides(text)) is None:
        raise argparse.ArgumentTypeError(f"a resolution is written HEIGHTxWIDTH, as in 512x1024, not {text!r}")
    return sides


def positive(kind: type[Number]) -> Callable[[str], Number]:
    """Return a parser of numbers above 0."""

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value < 1e9:
            raise argparse.ArgumentTypeError(f"a number above 0 is needed, not {text!r}")
        return value

    return parse


def pick_device(text: str) -> torch.device:
    try:
        return device.pick_device(text)
    except ValueError as error:
        raise Refused(str(error)) from None


def prepare_torch(name: str, threads: int | None) -> torch.device:
    """Return the device, and set PyTorch up for measuring on it: no TF32, cuDNN autotuning, number of threads."""
    picked = pick_device(name)
    if picked.type == "cuda":
        torch.cuda.set_device(picked)
        torch.backends.cudnn.benchmark = True
    # torch.export reads these settings by PyTorch's older interface, and raises once the newer one was used.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if threads:
        torch.set_num_threads(threads)
    return picked


def pick_models(names: list[str]) -> list[str]:
    """Return the registered names of these networks, each once."""
    from hyperseg.models import list_models, model_config

    known = list_models()
    picked: list[str] = []
    for name in names:
        try:
            found = known if name == "all" else [model_config(name).name]
        except ValueError as error:
            raise Refused(f"{error} Or all.") from error
        picked += [model for model in found if model not in picked]
    return picked


def probe_writable(path: Path) -> None:
    """Refuse a path that cannot be written, before ten minutes of measuring."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError("permission denied")
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror or error}.") from error
