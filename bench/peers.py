"""The network in several runtimes on the CPU: eager PyTorch, torch.compile, ONNX Runtime, OpenVINO, HyperSeg's engine.

    python bench/peers.py --model hyperseg-m
    python bench/peers.py --model hyperseg-s hyperseg-m hyperseg-l-camvid --json peers.json

From a uint8 frame to its labels, float32, the same number of threads for each, in alternation in one run. Each is
compared with the plain float32 network; one that does not match it gets no speed. Runtimes other than PyTorch get an
ONNX file of the network with the reference operators: pip install 'hyperseg[peers]'.
Exit code: 0 measured, 1 something could not be run (a message gives the reason), 2 a peer failed the comparison.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hyperseg
from bench.core import parity
from bench.core.errors import Refused
from bench.core.networks import Subject, load
from bench.core.options import measuring_parser, pick_models, prepare_torch
from bench.core.parity import Parity
from bench.core.peers import (
    BUILDERS,
    FRAME,
    LABELS,
    LOGITS,
    MODEL,
    RUNTIMES,
    Peer,
    memory_in_process,
    missing,
)
from bench.core.results import NetworkResults, ProcessMemory, Row
from bench.core.run import Run, log, run_command
from bench.core.tables import bullets, fixed, parity_cell, percentiles, table
from bench.core.timing import Budget, Case, ratio, summarise, throughput
from hyperseg.export.onnx import export_program, write_onnx

ROTATE = 2
BASE = "eager"
OURS = "engine"

# Seconds. OpenMP's threads spin for 1 ms after a region, ONNX Runtime's are set to stop (core/peers.py), TBB's sleep at
# once.
PAUSE = 0.05


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = measuring_parser("bench/peers.py", __doc__, model="hyperseg-m", row="peer", quick="same network and size")
    add = parser.add_argument
    add("--peers", metavar="A,B", help=f"of {','.join(BUILDERS)}; default: those that are installed")
    add("--no-memory", action="store_true", help="leave out the memory of each peer, which takes a process for each")
    return parser.parse_args(argv)


def pick_budget(args: argparse.Namespace) -> Budget:
    rounds = 2 if args.quick else 6
    if args.iterations is not None:
        rounds = min(rounds, args.iterations)
    steps, limit = (1, 0.5) if args.quick else (3, 4.0)
    seconds = args.seconds or (3.0 if args.quick else 18.0)
    return Budget(seconds, rounds, args.iterations, warmup_steps=steps, warmup_seconds=limit, pause=PAUSE)


def pick_peers(text: str | None) -> list[str]:
    """Return the installed peers; raise Refused if one that the user named is missing."""
    names = list(BUILDERS) if text is None else [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in BUILDERS]:
        raise Refused(f"There is no peer {unknown[0]!r}; there are {', '.join(BUILDERS)}.")
    picked = []
    for name in dict.fromkeys(names):
        if (message := missing(name)) is None:
            picked.append(name)
        elif text is not None:
            raise Refused(message)
        else:
            log(message)
    if not picked:
        raise Refused("No peer was named.")
    return picked


@dataclass
class Ready:
    """A peer that passed the comparison."""

    peer: Peer
    case: Case
    labels: Parity
    logits: Parity | None


class PeerRun(Run):
    """Rows: peers."""

    kind = "hyperseg-peers"

    def __init__(
        self, args: argparse.Namespace, device: torch.device, models: list[str], peers: list[str], budget: Budget
    ) -> None:
        super().__init__(args, device, models, budget)
        self.peers = peers
        self.threads = torch.get_num_threads()
        self.describe_inputs(ROTATE)
        self.results.threads, self.results.pause_seconds = self.threads, budget.pause

    def print_settings(self) -> None:
        log(f"settings  float32, frame to labels, {self.threads} threads each, seed {self.args.seed}")
        if "compile" in self.peers:
            log("Peer compile: torch.compile takes minutes before the first frame.")

    def print_notes(self, rows: list[Row]) -> None:
        log("\n" + bullets(NOTES))

    def clean(self) -> None:
        super().clean()
        if "compile" in self.peers:
            torch.compiler.reset()

    def measure_network(self, entry: NetworkResults) -> None:
        name = entry.name
        network, entry.weights = load(name, None, self.args.seed)
        size = self.args.resolution or (network.config.resolution[0], network.config.resolution[1])
        subject = Subject(name, network, size, 1, torch.float32, self.device, ROTATE, self.args.seed)
        entry.resolution, entry.dtype = [*size], "float32"
        log(f"\n{name}: {size[0]}x{size[1]} (height x width), weights {entry.weights['source']}")
        self.progress(f"preparing {name}: reference")
        subject.prepare()
        entry.reference = subject.reference_scale
        with tempfile.TemporaryDirectory() as path:
            folder = Path(path)
            self.fill(folder, subject)
            self.measure_peers(folder, subject, entry)
        if entry.rows:
            log("\n" + peers_table(entry.rows))
            for line in remarks(entry.rows):
                log(line)

    def fill(self, folder: Path, subject: Subject) -> None:
        """Write the files that peers are built from."""
        hyperseg.save(subject.model, folder / MODEL)
        numpy.save(folder / FRAME, subject.frames[0].numpy())
        if set(self.peers) & set(RUNTIMES):
            self.progress(f"preparing {subject.name}: ONNX export")
            program = export_program(subject.model, subject.frames[0])
            write_onnx(program, {"labels": folder / LABELS, "logits": folder / LOGITS})

    def measure_peers(self, folder: Path, subject: Subject, entry: NetworkResults) -> None:
        ready = self.ready(folder, subject, entry)
        for item, samples in zip(ready, self.time([item.case for item in ready]), strict=True):
            after = check_labels(item.case, subject)
            if not after.passed:
                self.refuse(entry, after.message(f"peer {item.peer.name}", "after timing"), wrong=True)
                continue
            entry.rows.append(
                Row(
                    peer=item.peer.name,
                    about=item.peer.about,
                    parity_before=item.labels,
                    parity_logits=item.logits,
                    parity_after=after,
                    latency_ms=summarise(samples.latency_ms),
                    throughput=throughput(samples),
                    samples=samples,
                )
            )
        ready.clear()
        compare(entry.rows)
        if not self.args.no_memory:
            for row in entry.rows:
                self.progress(f"memory of {subject.name}: {row.peer}")
                try:
                    row.memory = ProcessMemory(**memory_in_process(row.peer, folder, self.threads))
                except (RuntimeError, OSError) as error:
                    self.refuse(entry, f"Peer {row.peer}: {error}")

    def ready(self, folder: Path, subject: Subject, entry: NetworkResults) -> list[Ready]:
        ready: list[Ready] = []
        for name in self.peers:
            self.progress(f"preparing {subject.name}: {name}")
            try:
                peer = BUILDERS[name](folder, self.threads)
                case = peer_case(peer, subject)
                item = Ready(peer, case, check_labels(case, subject), check_logits(peer, subject))
            except Exception as error:
                self.refuse(entry, self.cannot(f"Peer {name}", error))
                continue
            if failed := next((p for p in (item.labels, item.logits) if p is not None and not p.passed), None):
                self.refuse(entry, failed.message(f"peer {name}", "before timing"), wrong=True)
            else:
                ready.append(item)
        return ready


def peer_case(peer: Peer, subject: Subject) -> Case:
    frames = [frame.numpy() for frame in subject.frames]
    return Case((peer.name,), lambda i: peer.labels(frames[i % len(frames)]), context=peer.context)


def check_labels(case: Case, subject: Subject) -> Parity:
    """Compare the timed callable itself with the reference, on every frame."""
    found = []
    for i, reference in enumerate(subject.references):
        with case.context():
            labels = torch.as_tensor(case.step(i)).clone()
        found.append(parity.compare_labels(labels, reference, subject.tolerance))
    return parity.worst(found)


def check_logits(peer: Peer, subject: Subject) -> Parity | None:
    """Compare the scores of the labels with the reference, on the first frame."""
    if peer.logits is None:
        return None
    with peer.context():
        logits = torch.as_tensor(peer.logits(subject.frames[0].numpy()))
    return parity.compare_logits(logits, subject.references[0], subject.tolerance)


def compare(rows: Sequence[Row]) -> None:
    """Add the ratios of each peer over eager, and of the engine over each peer, round by round."""
    rates = {row.peer: row.throughput.by_window for row in rows}
    for row in rows:
        mine = rates[row.peer]
        row.over_eager = ratio(mine, rates[BASE]) if BASE in rates else None
        row.engine_over = ratio(rates[OURS], mine) if OURS in rates else None


def peers_table(rows: Sequence[Row]) -> str:
    head = ["peer", "what", "p50 ms", "p90", "n", "FPS", "spread", "times eager", "engine is times it"]
    head += ["MiB idle", "build", "run", "labels agree", "logits' error"]
    body = []
    for row in rows:
        cells = [row.peer, row.about, *percentiles(row.latency_ms, "p50", "p90"), str(row.latency_ms.n)]
        cells += [fixed(row.throughput.rate), f"{row.throughput.spread_percent:.1f} %"]
        cells += ["-" if over is None else str(over) for over in (row.over_eager, row.engine_over)]
        memory, logits = row.memory, row.parity_logits
        sizes = ["-"] * 3 if memory is None else [memory.idle_mib, memory.build_mib, memory.run_mib]
        cells += [size if isinstance(size, str) else f"{size:.0f}" for size in sizes]
        error = None if logits is None else logits.relative
        body.append([*cells, parity_cell(row), "-" if error is None else f"{error:.0e}"])
    return table(head, body, left=2)


def remarks(rows: Sequence[Row]) -> list[str]:
    """Return what the columns do not show at once."""
    out = []
    runtimes = [row for row in rows if row.peer in RUNTIMES]
    if runtimes and any(row.peer == OURS for row in rows):
        fastest = max(runtimes, key=lambda row: row.throughput.rate)
        out.append(f"The engine is {fastest.engine_over} times the fastest ONNX runtime measured, {fastest.peer}.")
    if unstable := [row.peer for row in rows if not row.samples.warmup_stable]:
        out.append(f"Step times had not settled when the warm-up ended: {', '.join(unstable)}.")
    return out


NOTES = (
    "Scope: a uint8 RGB frame in host memory to its uint8 labels at full size, with normalisation, upsampling and "
    "argmax. float32, the same number of threads for each; ONNX Runtime and OpenVINO get the same file.",
    "p50, p90: milliseconds of a single frame. FPS: frames one after the other, median of the rounds; spread is "
    "(max - min) / median. Peers alternate (A B C A B C ...) in one process, each after a pause and an untimed frame.",
    "times eager, engine is times it: ratios of FPS within a round, median of the rounds, with minimum and maximum.",
    "The engine makes malloc keep the memory that the process frees (HYPERSEG_KEEP_MEMORY=0 prevents it), which speeds "
    "up every peer in this process; eager PyTorch in a process of its own is slower than here.",
    "MiB: the largest resident size of a process of its own: idle after its imports (torch or the runtime), once built "
    "(including the engine's comparison with the module), and while running frames.",
    "labels agree: worst over all frames and over the checks before and after timing, against the plain float32 module "
    "(reference operators); logits' error: the largest, relative to the largest score. compile gives labels only.",
)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    args.device = "cpu"

    def make() -> PeerRun:
        device = prepare_torch(args.device, args.threads)
        return PeerRun(args, device, pick_models(args.model), pick_peers(args.peers), pick_budget(args))

    return run_command("bench/peers.py", args, make)


if __name__ == "__main__":
    sys.exit(main())
