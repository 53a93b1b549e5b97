"""Time from the start of a process to its first labels: Python with PyTorch, the C++ runtime in Python, a C++ program.

    python bench/startup.py --model hyperseg-m
    python bench/startup.py --model hyperseg-m --program build/example/segment --json startup.json

Every sample is a new process, which loads a network that is on the disk and labels one frame; they alternate, after a
first one of each that only fills the page cache. All labels are compared. --program is the example of csrc/runtime.
Exit code: 0 measured, 1 something could not be run (a message gives the reason), 2 the labels differ.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hyperseg
from bench.core import machine
from bench.core.errors import Refused
from bench.core.networks import load, synthetic_frame
from bench.core.options import Parser, pick_models, positive, probe_writable
from bench.core.results import write_json
from bench.core.run import log
from bench.core.tables import fixed, table
from bench.core.timing import median
from hyperseg.export import ExportError, export_aoti

ROOT = Path(__file__).resolve().parents[1]
ENGINE = """
import sys, hyperseg, numpy, torch
model, frame = hyperseg.load(sys.argv[1]), torch.from_numpy(numpy.load(sys.argv[2]))
engine = hyperseg.build_engine(model, tuple(frame.shape[:2]), device="cpu", check={check})
sys.stdout.buffer.write(engine(frame[None]).numpy().tobytes())
"""
RUNTIME = """
import sys, numpy
from hyperseg.runtime_cpp import Segmenter
sys.stdout.buffer.write(Segmenter(sys.argv[1])(numpy.load(sys.argv[2])).tobytes())
"""


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("bench/startup.py", __doc__)
    add = parser.add_argument
    add("--model", default="hyperseg-m", metavar="NAME", help="a name or an alias")
    add("--rounds", type=positive(int), default=7, metavar="N", help="processes of each kind")
    add("--program", type=Path, metavar="FILE", help="the program of csrc/runtime/example")
    add("--json", type=Path, metavar="FILE", help="write every sample")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def commands(folder: Path, frame: Path, raw: Path, package: Path, program: Path | None) -> dict[str, tuple[list, Path]]:
    """Return the command of each kind, and the file for its input."""
    python = [sys.executable, "-c"]
    found = {
        "Python: load, build_engine": ([*python, ENGINE.format(check=True), folder, frame], raw),
        "Python: the same, check=False": ([*python, ENGINE.format(check=False), folder, frame], raw),
        "Python: hyperseg.runtime_cpp": ([*python, RUNTIME, package, frame], raw),
    }
    if program is not None:
        found["C++"] = ([program, package, "-"], raw)
    return found


def seconds_to_labels(command: list, given: Path, count: int) -> tuple[float, bytes]:
    """Return the time from the start of a process to its last label, and the labels."""
    with open(given, "rb") as stdin:
        start = time.perf_counter()
        with subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            labels = process.stdout.read(count)
            elapsed = time.perf_counter() - start
            message = process.stderr.read().decode(errors="replace")
    if len(labels) < count:
        raise Refused(f"{command[0]} gave no labels: {(message.strip() or 'it printed nothing').splitlines()[-1]}")
    return elapsed, labels


def measure(args: argparse.Namespace, folder: Path) -> tuple[str, dict[str, list[float]], bool]:
    """Return the network, the samples by kind, and whether all labels are equal."""
    name = pick_models([args.model])[0]
    network, _ = load(name, None, args.seed)
    height, width = network.config.resolution
    hyperseg.save(network, folder / "model")
    frame = synthetic_frame(height, width, torch.Generator().manual_seed(args.seed)).numpy()
    numpy.save(folder / "frame.npy", frame)
    (folder / "frame.rgb").write_bytes(frame.tobytes())
    log(f"{name}: {height}x{width}; exporting the package takes a minute")
    try:
        export_aoti(network, folder / "package.pt2", (height, width), check=False)
    except ExportError as error:
        raise Refused(str(error)) from None
    program = None if args.program is None else args.program.resolve()
    kinds = commands(folder / "model", folder / "frame.npy", folder / "frame.rgb", folder / "package.pt2", program)
    samples: dict[str, list[float]] = {kind: [] for kind in kinds}
    labels = set()
    for i in range(args.rounds + 1):
        for kind, (command, given) in kinds.items():
            elapsed, found = seconds_to_labels(command, given, height * width)
            labels.add(found)
            if i:
                samples[kind].append(elapsed)
        log(f"round {i} of {args.rounds}")
    return name, samples, len(labels) == 1


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    try:
        if args.json:
            probe_writable(args.json)
        with tempfile.TemporaryDirectory() as folder:
            name, samples, equal = measure(args, Path(folder))
    except Refused as refusal:
        log(f"bench/startup.py: {refusal}")
        return 1
    base = median(next(iter(samples.values())))
    rows = [
        [kind, fixed(median(times), 3), f"{min(times):.2f} to {max(times):.2f}", fixed(base / median(times), 3)]
        for kind, times in samples.items()
    ]
    log("\n" + table(["process", "s to its first labels", "least to most", "times the first"], rows, left=1))
    if not equal:
        log("The labels of the processes differ.")
        return 2
    if args.json:
        about = {
            "kind": "hyperseg-startup",
            "network": name,
            "machine": machine.describe(torch.device("cpu")),
            "seconds": samples,
        }
        write_json(args.json, about)
        log(f"wrote {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
