"""Frames per second of the published networks, measured so that a sceptic can trust them.

    python bench/fps.py --model hyperseg-s
    python bench/fps.py --model all --dtype float16 --mode eager compile cudagraph --json fps.json

Every row is first compared with the plain float32 network; a row that does not compute it gets no speed.
Exit code: 0 measured, 1 something could not be run (a sentence says what), 2 a row failed the comparison.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

# Run as a script, the folder bench/ comes first on the path; its parent is what imports need.
_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [_ROOT, *(p for p in sys.path if p not in {_ROOT, str(Path(__file__).resolve().parent)})]

import torch  # noqa: E402

from bench import report  # noqa: E402
from bench.harness import Budget  # noqa: E402
from bench.session import DTYPES, Session, say  # noqa: E402
from bench.subject import Refused  # noqa: E402

MODES = ("eager", "compile", "cudagraph")
BACKENDS = ("auto", "reference", "cpp", "triton", "cuda")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """A user's mistake is exit code 1: 2 is kept for a network that computes something else."""
        self.exit(1, f"{self.prog}: {message}\n")


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


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="bench/fps.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", default=["hyperseg-s"], metavar="NAME", help="names, aliases, or all")
    add("--resolution", type=resolution, metavar="HxW", help="default: where the network's accuracy was published")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:1; auto takes CUDA where there is any")
    add("--dtype", default="float32", choices=DTYPES)
    backend = os.environ.get("HYPERSEG_BACKEND", "auto")
    add("--backend", nargs="+", default=[backend], choices=BACKENDS, help="several are timed in alternation")
    add("--mode", nargs="+", choices=MODES, help="several are timed in alternation; default: eager, and cudagraph too")
    add("--scope", nargs="+", default=["all"], choices=[*report.SCOPES, "all"])
    add("--batch", type=positive(int), default=1, metavar="N")
    add("--weights", type=Path, metavar="FILE", help="an official .pth or a saved model; default: random, calibrated")
    add("--threads", type=positive(int), metavar="N", help="CPU threads; default: what torch takes")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=positive(float), metavar="S", help="measuring time of each row")
    length.add_argument("--iterations", type=positive(int), metavar="N", help="latency samples of each row")
    add("--quick", action="store_true", help="a first look: same network and size, fewer samples")
    add("--paper", action="store_true", help="the scope of the official FPS script, beside the published figure")
    add("--json", type=Path, metavar="FILE", help="everything, with each raw sample; rewritten after each model")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def pick_device(text: str) -> torch.device:
    if text == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise Refused(f"The device is auto, cpu, cuda or cuda:1, not {text!r}.")
    device = torch.device(text)
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        why = "this torch was built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        raise Refused(f"{text} is not here: {why}.")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise Refused(f"{text} is not here: torch sees {torch.cuda.device_count()} CUDA device(s).")
    return torch.device("cuda", index)


def prepare_torch(args: argparse.Namespace) -> torch.device:
    device = pick_device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if args.threads:
        torch.set_num_threads(args.threads)
    return device


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
    session = None
    try:
        if args.json is not None:
            probe_writable(args.json)
        device = prepare_torch(args)
        models = pick_models(args.model)
        if args.weights is not None and len(models) > 1:
            raise Refused("--weights belongs to one model; name just one with --model.")
        session = Session(args, device, models, pick_modes(args.mode, device), pick_budget(args, device))
        return session.run()
    except Refused as refusal:
        print(f"bench/fps.py: {refusal}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = f" What was finished is in {args.json}." if session is not None and args.json else ""
        print(f"\nStopped.{kept}", file=sys.stderr)
        return 130


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


if __name__ == "__main__":
    sys.exit(main())
