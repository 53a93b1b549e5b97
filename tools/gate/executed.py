"""Budgets of executed instructions and of launches, counted in the machine code of the built extension.

    make shim && TORCH_CUDA_ARCH_LIST=9.0 python setup.py build_ext
    python -m tools.gate.executed            # check; --write records

The launches of a frame of each published network are recorded in the shim. For HyperSeg-M on Cityscapes, float16, and
its decoder in training, some blocks of each launch are executed by ``tools.machine``; ``executed.json`` has, by kernel,
the instructions of all threads per byte that the kernel writes. A commit that raises a budget says why.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from bench.core import launches
from bench.core.launches import Kernel
from hyperseg.models import list_models
from tools.machine import recording
from tools.machine.library import Library, library
from tools.machine.recording import Launch

ROOT = Path(__file__).resolve().parents[2]
SHIM, EXTENSION = ROOT / "build/shim/hyperseg/_C.abi3.so", ROOT / "hyperseg/_C.abi3.so"
BUDGETS = Path(__file__).with_name("executed.json")
COUNTED = "hyperseg-m-cityscapes"
BLOCKS = 6  # executed per launch: fewer than bench/predict_frame.py, as this is a test
SLACK = 0.05  # of instructions: a release of the compiler moves them that much


def needs(training: bool) -> dict[str, dict[str, float]]:
    """Return the launches per frame by network, and the instructions per byte written by kernel.

    Args:
        training: count the kernels of a training step too.
    """
    frames = {name: launches.frame(name) for name in list_models()}
    code = library(str(EXTENSION))
    found = {
        "launches": {name: float(len(kernels)) for name, kernels in sorted(frames.items())},
        "frame": instructions(frames[COUNTED], code),
    }
    if training:
        forward, backward = launches.decoder_step(COUNTED, 1)
        found["training"] = instructions([*forward, *backward], code)
    return found


def instructions(kernels: Iterable[Kernel], code: Library) -> dict[str, float]:
    """Return the instructions of all threads per byte written, over all launches of each kernel."""
    ours = [kernel.launch for kernel in kernels if isinstance(kernel.launch, Launch)]
    code.preload(ours)
    totals: dict[str, tuple[float, float]] = {}
    for launch in ours:
        counts = code.count(launch, BLOCKS)
        executed, written = totals.get(launch.name, (0.0, 0.0))
        totals[launch.name] = executed + 32 * counts.instructions, written + sum(counts.written.values())
    return {name: round(executed / max(written, 1.0), 2) for name, (executed, written) in sorted(totals.items())}


def problems(found: dict[str, dict[str, float]], budgets: dict[str, dict[str, float]]) -> list[str]:
    """Return what exceeds its budget or has none."""
    bad = []
    for kind, kernels in found.items():
        unit, slack = ("launches per frame", 0.0) if kind == "launches" else ("instructions per byte", SLACK)
        for name, need in kernels.items():
            most = budgets[kind].get(name)
            if most is None:
                bad.append(f"{name} has no budget of {unit} ({kind}): run python -m tools.gate.executed --write")
            elif need > most * (1 + slack):
                more = f" and {slack:.0%}" if slack else ""
                bad.append(f"{name} takes {need:g} {unit} ({kind}), its budget is {most:g}{more}")
    return bad


def missing() -> str | None:
    """Return why nothing can be counted, or None."""
    if not SHIM.is_file():
        return "the shim is not built; run `make shim`"
    try:
        library(str(EXTENSION))
    except (RuntimeError, OSError) as error:
        return str(error)
    return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gate.executed", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"rewrite {BUDGETS.name}")
    parser.add_argument("--quick", action="store_true", help="check the kernels of a frame only")
    args = parser.parse_args(argv)
    os.environ.setdefault("HYPERSEG_EXTENSION", str(SHIM))  # read when the first operator loads the extension
    if message := missing() or recording.unavailable():
        parser.error(message)
    found = needs(args.write or not args.quick)
    if args.write:
        BUDGETS.write_text(json.dumps(found, indent=2) + "\n")
        return 0
    bad = problems(found, json.loads(BUDGETS.read_text()))
    print(*(bad or ["Executed instructions and launches are within their budgets."]), sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
