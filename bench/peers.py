"""The network in several runtimes on the CPU: eager PyTorch, torch.compile, ONNX Runtime, OpenVINO, HyperSeg's engine.

    python bench/peers.py --model hyperseg-m
    python bench/peers.py --model hyperseg-s hyperseg-m hyperseg-l-camvid --json peers.json
    python bench/peers.py --peers engine --explain

From a uint8 frame to its labels, float32, the same number of threads for each, in alternation in one run: single
frames as of a camera, all threads asleep when one arrives, and a stream of frames back to back, in which the threads of
each runtime wait as they do by default. Each is compared with the plain float32 network; one that does not match it
gets no speed. ONNX Runtime and OpenVINO get the file that `hyperseg export onnx --batch 1` writes: pip install
'hyperseg[peers]'.
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
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hyperseg
from bench.core import parity, roofline
from bench.core.errors import Refused, one_line
from bench.core.labeller import plain_labeller
from bench.core.networks import Subject, inference, load
from bench.core.options import measuring_parser, pick_models, prepare_torch
from bench.core.parity import Parity
from bench.core.peers import (
    AOTI,
    BUILDERS,
    FRAME,
    IN_BFLOAT16,
    LABELS,
    LOGITS,
    MODEL,
    PACKAGE,
    RUNTIMES,
    Peer,
    memory_in_process,
    missing,
)
from bench.core.results import NetworkResults, ProcessMemory, Row, Work
from bench.core.run import Run, log, run_command
from bench.core.tables import bullets, fixed, parity_cell, percentiles, table
from bench.core.timing import Budget, Case, Ratio, median, ratio, summarise, throughput
from bench.core.turns import ASLEEP, CALLER, NONE, WOKEN, Pause, Turns, Usage, measure_pauses, measure_turns
from hyperseg.export import export_aoti, export_onnx
from hyperseg.models import HyperSeg
from hyperseg.runtime.parity import TOLERANCES

ROTATE = 2
BASE = "eager"
OURS = "engine"

# Seconds between a camera's frames, at least; core/turns.py sleeps longer while threads spin.
PAUSE = 0.05

# Rounds whose rates differ by more than this factor are not of one machine.
UNSTEADY = 1.3

# Preemptions per frame of a stream above which the machine is shared with other programs.
PREEMPTED = 5


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = measuring_parser("bench/peers.py", __doc__, model="hyperseg-m", row="peer", quick="same network and size")
    add = parser.add_argument
    add("--peers", metavar="A,B", help=f"of {','.join(BUILDERS)}; default: those that are installed")
    add("--no-memory", action="store_true", help="leave out the memory of each peer, which takes a process for each")
    add(
        "--explain",
        action="store_true",
        help="time the engine after other pauses too: where a camera loses time",
    )
    return parser.parse_args(argv)


def pick_budget(args: argparse.Namespace) -> Budget:
    rounds = 2 if args.quick else 6
    if args.iterations is not None:
        rounds = min(rounds, args.iterations)
    steps, limit = (1, 0.5) if args.quick else (3, 3.0)  # to settle, at the begin of each turn
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
        dtypes = "float32, bf16 peers bfloat16" if set(self.peers) & set(IN_BFLOAT16) else "float32"
        log(f"settings  {dtypes}, frame to labels, {self.threads} threads each, seed {self.args.seed}")
        if "compile" in self.peers:
            log("Peer compile: torch.compile takes minutes before the first frame.")

    def print_notes(self, rows: list[Row]) -> None:
        log("\n" + bullets([*NOTES, *(EXPLANATIONS if self.args.explain else ())]))

    def warnings(self) -> list[str]:
        return [*super().warnings(), *(text for entry in self.results.models for text in unsteady(entry))]

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
            write_onnx(subject.model, folder, subject.size)
        if AOTI in self.peers:
            self.progress(f"preparing {subject.name}: AOTInductor")
            export_aoti(subject.model, folder / PACKAGE, subject.size, batch=1, check=False)

    def measure_peers(self, folder: Path, subject: Subject, entry: NetworkResults) -> None:
        ready = self.ready(folder, subject, entry)
        turns = self.time_turns([item.case for item in ready])
        work = self.work(subject) if ready else None
        for item, found in zip(ready, turns, strict=True):
            after = check_labels(item.case, subject, item.peer.dtype)
            if not after.passed:
                self.refuse(entry, after.message(f"peer {item.peer.name}", "after timing"), wrong=True)
                continue
            if not found.asleep:
                log(f"Peer {item.peer.name}: some thread was not asleep before a frame of the camera.")
            row = peer_row(item, after, found, work)
            if self.args.explain and item.peer.name == OURS:
                self.progress(f"pauses of {subject.name}")
                row.pauses = measure_pauses(item.case, self.budget, frames=1 if self.args.quick else 3)
            entry.rows.append(row)
        if turns:
            entry.sgemm_flops_per_second = [list(s) for s in zip(*(found.speed for found in turns), strict=True)]
        compare(entry.rows, {item.peer.name: found for item, found in zip(ready, turns, strict=True)})
        ready.clear()
        if not self.args.no_memory:
            for row in entry.rows:
                self.progress(f"memory of {subject.name}: {row.peer}")
                try:
                    row.memory = ProcessMemory(**memory_in_process(row.peer, folder, self.threads))
                except (RuntimeError, OSError) as error:
                    self.refuse(entry, f"Peer {row.peer}: {error}")

    def time_turns(self, cases: list[Case]) -> list[Turns]:
        total = len(cases) * self.budget.rounds
        with tqdm(total=total, desc="timing", unit="turn", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

            def on_turn(case: Case) -> None:
                bar.set_postfix_str(" ".join(case.name), refresh=False)
                bar.update()

            return measure_turns(cases, self.budget, roofline.sgemm_rate, on_turn)

    def work(self, subject: Subject) -> Work | None:
        """Count the plain network's work per frame."""
        network = plain_labeller(subject.model, subject.model, subject.size)
        try:
            with inference("reference"):
                counts = roofline.count(lambda: network(subject.frames[0]))
        except Exception as error:  # rows are worth more than their counts
            log(f"FLOPs could not be counted ({type(error).__name__}: {one_line(error)}).")
            return None
        frames, parameters = subject.frames[0], sum(p.nbytes for p in subject.model.parameters())
        return Work(counts.flops, parameters + frames.nbytes + frames[..., 0].numel())

    def ready(self, folder: Path, subject: Subject, entry: NetworkResults) -> list[Ready]:
        ready: list[Ready] = []
        for name in self.peers:
            self.progress(f"preparing {subject.name}: {name}")
            try:
                peer = BUILDERS[name](folder, self.threads)
                case = peer_case(peer, subject)
                item = Ready(peer, case, check_labels(case, subject, peer.dtype), check_logits(peer, subject))
            except Exception as error:
                self.refuse(entry, self.cannot(f"Peer {name}", error))
                continue
            if failed := next((p for p in (item.labels, item.logits) if p is not None and not p.passed), None):
                self.refuse(entry, failed.message(f"peer {name}", "before timing"), wrong=True)
            else:
                ready.append(item)
        return ready


def write_onnx(model: HyperSeg, folder: Path, size: tuple[int, int]) -> None:
    """Write the files of the ONNX runtimes as `hyperseg export onnx --batch 1` does; they are checked when they run."""
    for returns, name in (("labels", LABELS), ("logits", LOGITS)):
        export_onnx(model, folder / name, size, batch=1, returns=returns, check=False)


def peer_case(peer: Peer, subject: Subject) -> Case:
    frames = [frame.numpy() for frame in subject.frames]
    return Case((peer.name,), lambda i: peer.labels(frames[i % len(frames)]), context=peer.context)


def check_labels(case: Case, subject: Subject, dtype: str) -> Parity:
    """Compare the timed callable itself with the reference, on every frame, within the tolerance of its dtype."""
    found = []
    for i, reference in enumerate(subject.references):
        with case.context():
            labels = torch.as_tensor(case.step(i)).clone()
        found.append(parity.compare_labels(labels, reference, TOLERANCES[getattr(torch, dtype)]))
    return parity.worst(found)


def check_logits(peer: Peer, subject: Subject) -> Parity | None:
    """Compare the scores of the labels with the reference, on the first frame."""
    if peer.logits is None:
        return None
    with peer.context():
        logits = torch.as_tensor(peer.logits(subject.frames[0].numpy()))
    return parity.compare_logits(logits, subject.references[0], TOLERANCES[getattr(torch, peer.dtype)])


def peer_row(item: Ready, after: Parity, turns: Turns, work: Work | None) -> Row:
    samples = turns.samples
    sgemm = None
    if work is not None and work.flops is not None:
        sgemm = 100 * work.flops * median([a / b for a, b in zip(samples.rates(), turns.speed, strict=True)])
    return Row(
        peer=item.peer.name,
        about=item.peer.about,
        parity_before=item.labels,
        parity_logits=item.logits,
        parity_after=after,
        latency_ms=summarise(samples.latency_ms),
        throughput=throughput(samples),
        samples=samples,
        work=work,
        percent_of_matmul=sgemm,
        camera_over_stream=turns.camera_over_stream(),
        camera_use=turns.camera.per_frame(),
        stream_use=turns.stream.per_frame(),
    )


def compare(rows: Sequence[Row], turns: dict[str, Turns]) -> None:
    """Add the ratios of each peer over eager, and of the engine over each peer, round by round."""
    stream = {row.peer: row.throughput.by_window for row in rows}
    camera = {row.peer: turns[row.peer].camera_rates() for row in rows}
    for row in rows:
        name = row.peer
        if BASE in stream:
            row.over_eager = ratio(stream[name], stream[BASE])
            row.over_eager_camera = ratio(camera[name], camera[BASE])
        if OURS in stream:
            row.engine_over = ratio(stream[OURS], stream[name])
            row.engine_over_camera = ratio(camera[OURS], camera[name])


def unsteady(entry: NetworkResults) -> list[str]:
    """Return warnings about a machine whose speed changed between rounds, or within one."""
    out = []
    rounds = [median(speeds) for speeds in entry.sgemm_flops_per_second or []]
    if rounds and max(rounds) > UNSTEADY * min(rounds):
        out.append(
            f"{entry.name}: sgemm ran at {min(rounds) / 1e9:.0f} to {max(rounds) / 1e9:.0f} GFLOP/s, by round: the "
            "machine changed its speed. Quote ratios, not times."
        )
    within = [max(speeds) > UNSTEADY * min(speeds) for speeds in entry.sgemm_flops_per_second or [] if speeds]
    if any(within):
        out.append(
            f"{entry.name}: the sgemm rate changed by more than {UNSTEADY}x between peers in {sum(within)} of "
            f"{len(within)} rounds: ratios of these rounds are not to be trusted either."
        )
    rates = {row.peer: row.throughput for row in entry.rows}
    if peers := [name for name, found in rates.items() if found.max > UNSTEADY * found.min]:
        out.append(f"{entry.name}: rounds differ by more than {UNSTEADY}x for {', '.join(peers)}.")
    return out


def peers_table(rows: Sequence[Row]) -> str:
    head = ["peer", "what", "camera p50 ms", "p90", "n", "stream ms", "FPS", "spread", "of sgemm", "camera loses"]
    head += ["times eager: camera", "stream", "engine is times it: camera", "stream"]
    head += ["MiB idle", "build", "run", "labels agree", "logits' error"]
    body = []
    for row in rows:
        cells = [row.peer, row.about, *percentiles(row.latency_ms, "p50", "p90"), str(row.latency_ms.n)]
        cells += [fixed(1e3 / row.throughput.rate), fixed(row.throughput.rate)]
        cells.append(f"{row.throughput.spread_percent:.1f} %")
        cells.append("-" if row.percent_of_matmul is None else f"{fixed(row.percent_of_matmul, 3)} %")
        cells.append("-" if row.camera_over_stream is None else lost(row.camera_over_stream))
        ratios = (row.over_eager_camera, row.over_eager, row.engine_over_camera, row.engine_over)
        cells += ["-" if over is None else str(over) for over in ratios]
        memory, logits = row.memory, row.parity_logits
        sizes = ["-"] * 3 if memory is None else [memory.idle_mib, memory.build_mib, memory.run_mib]
        cells += [size if isinstance(size, str) else f"{size:.0f}" for size in sizes]
        error = None if logits is None else logits.relative
        body.append([*cells, parity_cell(row), "-" if error is None else f"{error:.0e}"])
    return table(head, body, left=2)


def lost(over: Ratio) -> str:
    """Return the share of a stream's speed that is lost with a camera, with its range over the rounds."""
    middle, low, high = (100 * (1 - 1 / value) for value in (over.median, over.min, over.max))
    return f"{middle:.1f} % ({low:.1f} to {high:.1f})"


def remarks(rows: Sequence[Row]) -> list[str]:
    """Return what the columns do not show at once."""
    out = []
    runtimes = [row for row in rows if row.peer in RUNTIMES and row.peer not in IN_BFLOAT16]
    ours = next((row for row in rows if row.peer == OURS), None)
    if runtimes and ours:
        fastest = max(runtimes, key=lambda row: row.throughput.rate)
        out.append(f"The engine is {fastest.engine_over} times the fastest ONNX runtime in a stream, {fastest.peer}.")
        fastest = min(runtimes, key=lambda row: row.latency_ms.p50)
        out.append(f"The engine is {fastest.engine_over_camera} times the fastest one with a camera, {fastest.peer}.")
    if ours and ours.camera_over_stream and ours.camera_use and ours.stream_use:
        out.append(
            f"The engine loses {lost(ours.camera_over_stream)} of its speed in a stream with a camera. CPU time of a "
            f"frame {usage(ours.camera_use)} with a camera, {usage(ours.stream_use)} in a stream."
        )
    if ours and ours.stream_use and ours.stream_use.preemptions > PREEMPTED:
        count = f"{ours.stream_use.preemptions:.0f} times per frame of the stream"
        out.append(
            f"Other programs took a CPU from the engine {count}: "
            "OpenMP's threads spin while they wait for one that has no CPU. OMP_WAIT_POLICY=passive lets them sleep."
        )
    if ours and ours.pauses:
        out.append("\nThe engine's frames after different pauses:\n\n" + pauses_table(ours.pauses))
    if unstable := [row.peer for row in rows if not row.samples.warmup_stable]:
        out.append(f"Step times had not settled when a warm-up ended: {', '.join(unstable)}.")
    return out


def usage(found: Usage) -> str:
    return (
        f"{fixed(found.user_ms, 3)} ms user and {fixed(found.system_ms, 3)} system, {found.page_faults:.0f} page "
        f"faults, {found.waits:.0f} waits and {found.preemptions:.0f} preemptions"
    )


def pauses_table(pauses: Sequence[Pause]) -> str:
    body = [
        [p.before, *percentiles(p.latency_ms, "p50", "p90"), str(p.latency_ms.n), str(p.over_stream)] for p in pauses
    ]
    return table(["before a frame", "p50 ms", "p90", "n", "times that after nothing"], body, left=1)


NOTES = (
    "Scope: a uint8 RGB frame in host memory to its uint8 labels at full size, with normalisation, upsampling and "
    "argmax. float32 (bf16 peers: bfloat16), the same number of threads for each; ONNX Runtime and OpenVINO get the "
    "same file, of hyperseg export onnx --batch 1.",
    "camera: milliseconds of single frames (p50, p90), each after all threads of the process went to sleep. stream: "
    "frames back to back, FPS is the median of the rounds, spread (max - min) / median; threads that spin for a while "
    "after a frame, as each runtime has it by default, do not go to sleep. Peers alternate (A B C A B C ...) in one "
    "process. A turn begins when all threads are asleep, then untimed frames run until their times have settled.",
    "camera loses: the share of the speed in a stream, median of the rounds, with minimum and maximum.",
    "of sgemm: GFLOP of the plain network times FPS, in percent of the rate of float32 matrix multiplication with as "
    "many threads (of MKL or oneDNN, the faster) at the begin of the same turn: it compares runs on machines that "
    "change their speed.",
    "times eager, engine is times it: ratios of speed within a round, median of the rounds, with minimum and maximum.",
    "The engine makes malloc keep the memory that the process frees (HYPERSEG_KEEP_MEMORY=0 prevents it), which speeds "
    "up every peer in this process; eager PyTorch in a process of its own is slower than here.",
    "MiB: the largest resident size of a process of its own: idle after its imports (torch or the runtime), once built "
    "(including the engine's comparison with the module), and while running frames.",
    "labels agree: worst over all frames and over the checks before and after timing, against the plain float32 module "
    "(reference operators); logits' error: the largest, relative to the largest score. compile gives labels only.",
)

EXPLANATIONS = (
    f"before a frame: {NONE} is a stream; after {CALLER} only the thread pools have to be woken; after {ASLEEP} (a "
    f"camera) the calling thread and its core too, whose clock and caches may have changed; after {WOKEN} threads "
    "and clock are up again, and only the caches are as after other work.",
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
