"""Frames per second of the published networks, measured so that a sceptic can trust them.

    python bench/fps.py --model hyperseg-s
    python bench/fps.py --model all --dtype float16 --mode eager compile cudagraph --json fps.json

Every row is first compared with the plain float32 network; a row that does not compute it gets no speed.
Exit code: 0 measured, 1 something could not be run (a sentence says what), 2 a row failed the comparison.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

# Run as a script, the folder bench/ comes first on the path; its parent is what imports need.
_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [_ROOT, *(p for p in sys.path if p not in {_ROOT, str(Path(__file__).resolve().parent)})]

import torch  # noqa: E402

from bench import report  # noqa: E402
from bench.harness import Budget  # noqa: E402
from bench.options import (  # noqa: E402
    BACKENDS,
    add_device,
    measuring_parser,
    pick_models,
    positive,
    prepare_torch,
)
from bench.run import run_script, say  # noqa: E402
from bench.session import Session  # noqa: E402
from bench.subject import Refused  # noqa: E402

MODES = ("eager", "compile", "cudagraph")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = measuring_parser("bench/fps.py", __doc__, model="hyperseg-s", row="row", quick="same network and size")
    add_device(parser)
    add = parser.add_argument
    backend = os.environ.get("HYPERSEG_BACKEND", "auto")
    add("--backend", nargs="+", default=[backend], choices=BACKENDS, help="several are timed in alternation")
    add("--mode", nargs="+", choices=MODES, help="several are timed in alternation; default: eager, and cudagraph too")
    add("--scope", nargs="+", default=["all"], choices=[*report.SCOPES, "all"])
    add("--batch", type=positive(int), default=1, metavar="N")
    add("--weights", type=Path, metavar="FILE", help="an official .pth or a saved model; default: random, calibrated")
    add("--paper", action="store_true", help="the scope of the official FPS script, beside the published figure")
    return parser.parse_args(argv)


def pick_modes(modes: list[str] | None, device: torch.device) -> list[str]:
    cuda = device.type == "cuda"
    picked = list(dict.fromkeys(modes or (["eager", "cudagraph"] if cuda else ["eager"])))
    if not cuda and "cudagraph" in picked:
        picked.remove("cudagraph")
        sentence = "Mode cudagraph needs a CUDA device; this is a CPU."
        if not picked:
            raise Refused(sentence)
        say(f"{sentence} It is left out.")
    if "compile" in picked:
        if not cuda and not any(shutil.which(c) for c in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")):
            picked.remove("compile")
            say("Mode compile needs a C++ compiler and none was found; eager takes its place.")
            picked = picked or ["eager"]
        else:
            say("Mode compile: torch.compile takes minutes before the first frame.")
    return picked


def pick_budget(args: argparse.Namespace, device: torch.device) -> Budget:
    """Per row. A CPU frame costs a thousand times a GPU's, so there are fewer of them there."""
    cuda = device.type == "cuda"
    seconds = args.seconds or ((1.0 if args.quick else 4.0) if cuda else (3.0 if args.quick else 15.0))
    rounds = (5 if args.quick else 20) if cuda else (2 if args.quick else 5)
    if args.iterations is not None:
        rounds = min(rounds, args.iterations)
    if cuda:
        return Budget(seconds, rounds, args.iterations, warmup_steps=20, warmup_seconds=0.5 if args.quick else 2.0)
    # The comparison before timing has run every row on every input by now.
    warm = {"warmup_steps": 1, "warmup_seconds": 0.5} if args.quick else {"warmup_steps": 2, "warmup_seconds": 4.0}
    return Budget(seconds, rounds, args.iterations, **warm)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)

    def make() -> Session:
        device = prepare_torch(args)
        models = pick_models(args.model)
        if args.weights is not None and len(models) > 1:
            raise Refused("--weights belongs to one model; name just one with --model.")
        return Session(args, device, models, pick_modes(args.mode, device), pick_budget(args, device))

    return run_script("bench/fps.py", args, make)


if __name__ == "__main__":
    sys.exit(main())
