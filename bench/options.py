"""What the scripts of bench/ ask on their command lines, and the answers to what cannot be had."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any, NoReturn

import torch

from bench.subject import Refused
from hyperseg.runtime import device

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BACKENDS = ("auto", "reference", "cpp", "triton", "cuda")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A user's mistake is exit code 1: 2 is kept for a network that computes something else."""
        self.exit(1, f"{self.prog}: {message}\n")


def measuring_parser(script: str, doc: str, *, model: str, row: str, quick: str) -> Parser:
    """What every script that measures is asked; `model` is its default, `row` what it times one of."""
    parser = Parser(prog=script, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", default=[model], metavar="NAME", help="names, aliases, or all")
    add("--resolution", "--size", type=resolution, metavar="HxW", help="default: the published one of each network")
    add("--threads", type=positive(int), metavar="N", help="CPU threads; default: what torch takes")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=positive(float), metavar="S", help=f"measuring time of each {row}")
    length.add_argument("--iterations", type=positive(int), metavar="N", help=f"latency samples of each {row}")
    add("--quick", action="store_true", help=f"a first look: {quick}, fewer samples")
    add("--json", type=Path, metavar="FILE", help="everything, with each raw sample; rewritten after each model")
    add("--seed", type=int, default=0)
    return parser


def add_device(parser: Parser) -> None:
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:1; auto takes CUDA where there is any"
    )
    parser.add_argument("--dtype", default="float32", choices=DTYPES)


def resolution(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip().lower())
    if not match or min(int(match[1]), int(match[2])) < 1:
        raise argparse.ArgumentTypeError(f"a resolution is written HEIGHTxWIDTH, as in 512x1024, not {text!r}")
    return int(match[1]), int(match[2])


def positive(kind: type) -> Any:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < 1e9:
            raise argparse.ArgumentTypeError(f"a number above 0 is needed, not {text!r}")
        return value

    return parse


def pick_device(text: str) -> torch.device:
    try:
        return device.pick_device(text)
    except ValueError as error:
        raise Refused(f"{error}.") from None


def prepare_torch(args: argparse.Namespace) -> torch.device:
    picked = pick_device(args.device)
    if picked.type == "cuda":
        torch.cuda.set_device(picked)
        torch.backends.cudnn.benchmark = True
    # By the older interface: torch.export reads it, and cannot once the newer one was used.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if args.threads:
        torch.set_num_threads(args.threads)
    return picked


def pick_models(names: list[str]) -> list[str]:
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
    """Say so now, not after ten minutes of measuring."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError("permission denied")
    except OSError as error:
        raise Refused(f"{path} cannot be written: {error.strerror or error}.") from error
