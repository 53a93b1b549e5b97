"""Frames per second of the published networks. Every row is compared with the reference before and after timing.

    python bench/fps.py --model hyperseg-s
    python bench/fps.py --model all --dtype float16 --mode eager compile cudagraph --json fps.json
    python bench/fps.py --model hyperseg-m --peers

A row whose output does not match the plain float32 network gets no speed.
Exit code: 0 measured, 1 something could not be run (a message gives the reason), 2 a row failed the comparison.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.core import rivals, roofline
from bench.core.errors import Refused, one_line
from bench.core.frame_peers import KINDS, Contestant, other_row, own_rows
from bench.core.networks import Subject, inference, load
from bench.core.options import BACKENDS, DTYPES, add_device, measuring_parser, pick_models, positive, prepare_torch
from bench.core.parity import Parity
from bench.core.results import NetworkResults, Row, Work
from bench.core.run import Run, log, run_command
from bench.core.tables import ENOUGH, bullets, chosen_backends, fixed, parity_cell, percentiles, table
from bench.core.timing import (
    Budget,
    Case,
    Samples,
    latency_slice,
    median,
    ratio,
    schedule,
    summarise,
    throughput,
    without_gc,
)
from hyperseg.models.variants import PUBLISHED
from hyperseg.runtime.device import keep_freed_memory
from hyperseg.runtime.engine import Engine

MODES = ("eager", "compile", "cudagraph")

SCOPES = {
    "network": "normalised float images on the device -> scores at the network's own output stride, on the device",
    "labels": "normalised float images on the device -> uint8 labels at full size (upsampling and argmax included)",
    "frame": "uint8 RGB frames on the device -> uint8 labels at full size (adds the normalisation)",
    "host": "uint8 RGB frames in host memory -> uint8 labels in host memory (adds both copies and the wait for them)",
}

PUBLISHED_GPU = "GTX 1080 Ti"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = measuring_parser("bench/fps.py", __doc__, model="hyperseg-s", row="row", quick="same network and size")
    add_device(parser)
    add = parser.add_argument
    backend = os.environ.get("HYPERSEG_BACKEND", "auto")
    add("--backend", nargs="+", default=[backend], choices=BACKENDS, help="several are timed in alternation")
    add(
        "--mode",
        nargs="+",
        choices=MODES,
        help="default: eager, and on CUDA cudagraph",
    )
    add("--scope", nargs="+", default=["all"], choices=[*SCOPES, "all"])
    add("--batch", type=positive(int), default=1, metavar="N", help="frames per step")
    add("--weights", type=Path, metavar="FILE", help="a .pth, a saved model or a name; default: random, calibrated")
    add("--paper", action="store_true", help="measure as the official FPS script does, next to the published figure")
    peers = f"the network by several ways beside networks of others, of {', '.join(rivals.FOR_FRAMES)}; default: all"
    add("--peers", nargs="*", metavar="NAME", help=f"{peers} that are here")
    for option, checkout in rivals.CHECKOUTS.items():
        add(f"--{option}", type=Path, metavar="FOLDER", help=f"with --peers: a clone of {checkout.url}; runs its code")
    return parser.parse_args(argv)


def check_peers(args: argparse.Namespace) -> None:
    """Refuse what --peers does not measure; it takes every mode by default."""
    if args.peers is None:
        if named := [option for option in rivals.CHECKOUTS if getattr(args, option) is not None]:
            raise Refused(f"--{named[0]} is for --peers; add it.")
        return
    if args.paper:
        raise Refused("--peers and --paper measure different scopes; give one of them.")
    if not {*args.scope} <= {"all", "frame"}:
        raise Refused("--peers measures the scope frame, which every network has; leave --scope out.")
    if len(args.backend) > 1:
        raise Refused("--peers takes one backend for the engine; give one with --backend.")


def pick_modes(modes: list[str] | None, device: torch.device, default: Sequence[str] | None = None) -> list[str]:
    """Return the modes that can run here, of ``default`` if there are no ``modes``; print which cannot, and why."""
    cuda = device.type == "cuda"
    picked = list(dict.fromkeys(modes or default or (["eager", "cudagraph"] if cuda else ["eager"])))
    if not cuda and "cudagraph" in picked:
        picked.remove("cudagraph")
        message = "Mode cudagraph needs a CUDA device; this is a CPU."
        if not picked:
            raise Refused(message)
        log(f"{message} It is left out.")
    if "compile" in picked:
        if not cuda and not any(shutil.which(c) for c in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")):
            picked.remove("compile")
            log("Mode compile needs a C++ compiler and none was found; eager takes its place.")
            picked = picked or ["eager"]
        else:
            log("Mode compile: torch.compile takes minutes before the first frame.")
    return picked


def pick_budget(args: argparse.Namespace, device: torch.device) -> Budget:
    """Return the budget of a row. A frame takes a thousand times longer on a CPU than on a GPU: there are fewer."""
    cuda = device.type == "cuda"
    seconds = args.seconds or ((1.0 if args.quick else 4.0) if cuda else (3.0 if args.quick else 15.0))
    rounds = (5 if args.quick else 20) if cuda else (2 if args.quick else 5)
    if args.iterations is not None:
        rounds = min(rounds, args.iterations)
    # On a CPU the comparison before timing has already run every row on every input.
    steps, most = (20, 0.5 if args.quick else 2.0) if cuda else (1, 0.5) if args.quick else (2, 4.0)
    return Budget(seconds, rounds, args.iterations, warmup_steps=steps, warmup_seconds=most)


@dataclass
class Ready:
    """A case that passed the comparison, and its engine, kept alive as long as the case."""

    case: Case
    engine: Engine | None
    parity: Parity
    peak_mib: float | None = None


class FpsRun(Run):
    """Rows: modes and backends in nested scopes."""

    kind = "hyperseg-fps"

    def __init__(
        self, args: argparse.Namespace, device: torch.device, models: list[str], modes: list[str], budget: Budget
    ) -> None:
        super().__init__(args, device, models, budget)
        self.modes = modes
        self.backends = list(dict.fromkeys(args.backend))
        self.scopes = list(SCOPES) if "all" in args.scope else list(dict.fromkeys(args.scope))
        self.rotate = 4 if self.cuda else 2
        self.dtype = DTYPES[args.dtype]
        self.describe_inputs(self.rotate)
        self.folders = {option: getattr(args, option) for option in rivals.CHECKOUTS}
        self.peers = [] if args.peers is None else rivals.pick(args.peers or None, rivals.FOR_FRAMES, log, self.folders)
        for name in self.peers:
            if (checkout := rivals.RIVALS[name].checkout) is not None:
                log(f"{name}: this runs the Python code of {self.folders[checkout.option] / checkout.file}.")

    def print_settings(self) -> None:
        log(f"settings  {self.args.dtype}, TF32 off, batch {self.args.batch}, seed {self.args.seed}")
        if "auto" in self.backends:
            log(f"backends  {chosen_backends(self.results.backends, self.device.type)}")
        if not self.cuda and self.args.device == "auto":
            log("\nNo CUDA device was found: this measures the CPU, with fewer iterations.")
        if not self.cuda and self.dtype == torch.float16:
            log("float16 has no fast path on most CPUs: a frame can take minutes. float32 and bfloat16 have one.")
        if not self.args.paper:
            self.measure_ceilings(self.dtype)

    def clean(self) -> None:
        super().clean()
        if "compile" in self.modes:
            torch.compiler.reset()

    def print_notes(self, rows: list[Row]) -> None:
        found: Sequence[str] = PAPER_NOTES if self.args.paper else notes(rows, self.cuda, self.rotate)
        log("\n" + bullets(found if self.args.peers is None else peer_notes(rows, found)))

    def measure_network(self, entry: NetworkResults) -> None:
        name = entry.name
        network, entry.weights = load(name, self.args.weights, self.args.seed)
        config = network.config
        size = self.args.resolution or (config.resolution[0], config.resolution[1])
        subject = Subject(name, network, size, self.args.batch, self.dtype, self.device, self.rotate, self.args.seed)
        parameters = sum(p.numel() for p in network.parameters())
        entry.resolution, entry.published_resolution = [*size], [*config.resolution]
        entry.batch, entry.dtype, entry.parameters = self.args.batch, self.args.dtype, parameters
        note = "" if size == tuple(config.resolution) else ", not the published resolution"
        log(
            f"\n{name}: {size[0]}x{size[1]} (height x width{note}), {config.num_classes} classes, "
            f"{parameters / 1e6:.2f} M parameters, weights {entry.weights['source']}"
        )
        self.progress(f"preparing {name}: reference")
        subject.prepare()
        entry.reference = subject.reference_scale
        if self.args.paper:
            self.measure_as_paper(subject, entry)
            return
        if self.args.peers is not None:
            self.measure_with_peers(subject, entry)
            return
        ready = self.cases(subject, entry)
        if not ready:
            return
        work = self.work(subject, ready)
        for item, samples in zip(ready, self.time([item.case for item in ready]), strict=True):
            # On a CPU, --quick affords one frame for the second comparison; the first one compared all.
            only = self.rotate - 1 if self.args.quick and not self.cuda else None
            after = subject.check(item.case, only)
            if after.passed:
                entry.rows.append(self.row(subject, item, after, samples, work.get(item.case.name[2])))
            else:
                self.refuse(entry, after.message(describe(item.case), "after timing"), wrong=True)
        if entry.rows:
            log("\n" + rows_table(entry.rows, self.cuda))
            for line in remarks(entry.rows):
                log(line)

    def cases(self, subject: Subject, entry: NetworkResults) -> list[Ready]:
        """Return every row that can run here and matches the reference."""
        ready: list[Ready] = []
        todo = [(mode, backend) for backend in self.backends for mode in self.modes]
        for mode, backend in todo:
            self.progress(f"preparing {subject.name}: {mode} {backend}")
            base = 0
            if self.cuda:
                torch.cuda.synchronize(self.device)
                torch.cuda.reset_peak_memory_stats(self.device)
                base = torch.cuda.memory_allocated(self.device)
            found: list[Ready] = []
            try:
                engine = subject.build(mode, backend)
                for scope in self.scopes:
                    case = subject.case(engine, mode, backend, scope)
                    result = subject.check(case)
                    if result.passed:
                        found.append(Ready(case, engine, result))
                    else:
                        self.refuse(entry, result.message(describe(case), "before timing"), wrong=True)
            except Exception as error:
                self.refuse(entry, self.cannot(f"Mode {mode}, backend {backend}", error))
                if mode == "compile" and ("eager", backend) not in todo:
                    log("Mode eager takes its place.")
                    todo.append(("eager", backend))
                continue
            if self.cuda:
                for item in found:
                    item.peak_mib = (torch.cuda.max_memory_allocated(self.device) - base) / 2**20
            ready += found
        return ready

    def work(self, subject: Subject, ready: list[Ready]) -> dict[str, roofline.Counts]:
        """Count FLOPs and bytes of each scope on an engine in eager mode: a CUDA graph hides its operators."""
        eager = {item.case.name[2]: item.case for item in reversed(ready) if item.case.name[0] == "eager"}
        found: dict[str, roofline.Counts] = {}
        try:
            if not eager:
                engine = subject.build("eager", self.backends[0])
                eager = {scope: subject.case(engine, "eager", self.backends[0], scope) for scope in self.scopes}
            for scope, case in eager.items():
                if scope == "host" and "frame" in eager and not self.cuda:
                    continue
                with case.context():
                    found[scope] = roofline.count(functools.partial(case.step, 0))
            if "frame" in found:
                found.setdefault("host", found["frame"])  # on a CPU they are the same
        except Exception as error:  # rows are worth more than their counts
            log(f"FLOPs and unfused bytes could not be counted ({type(error).__name__}: {one_line(error)}).")
        return found

    def row(self, subject: Subject, item: Ready, after: Parity, samples: Samples, work: roofline.Counts | None) -> Row:
        mode, backend, scope = item.case.name
        step_seconds = item.case.items * median(samples.ms_per_item()) / 1e3
        least = subject.least_bytes(scope)
        ceilings = self.results.ceilings
        return Row(
            mode=mode,
            backend=backend,
            scope=scope,
            parity_before=item.parity,
            parity_after=after,
            latency_ms=summarise(samples.latency_ms),
            device_ms=summarise(samples.device_ms) if samples.device_ms else None,
            throughput=throughput(samples),
            work=Work(None, least)
            if work is None
            else Work(work.flops, least, work.unfused_bytes, work.operators, work.uncounted),
            roofline=roofline.bound(work.flops, least, ceilings, step_seconds) if work and ceilings else None,
            peak_memory_mib=item.peak_mib,
            samples=samples,
        )

    # --peers: the network by several ways, and networks of others, each in its best mode

    def measure_with_peers(self, subject: Subject, entry: NetworkResults) -> None:
        """Choose the mode of each row, compare, time all in alternation, compare again."""
        if not self.cuda:
            keep_freed_memory()  # an engine does it for the whole process: nobody is tried without it
        ready: list[tuple[Contestant, Parity | None]] = []
        builders = [*own_rows(subject, self.modes, self.backends[0])]
        for name in self.peers:
            builders.append((name, functools.partial(other_row, subject, name, self.modes, self.folders)))
        for what, build in builders:
            self.progress(f"preparing {subject.name}: {what}")
            try:
                row = build()
                before = row.check(None) if row.check else None
            except Exception as error:
                self.refuse(entry, self.cannot(f"Row {what}", error))
                continue
            for failure in row.failed:
                log(f"{row.name}: mode {failure} is left out.")
            if before is None or before.passed:
                ready.append((row, before))
            else:
                self.refuse(entry, before.message(f"{row.name}, mode {row.mode}", "before timing"), wrong=True)
        only = self.rotate - 1 if self.args.quick and not self.cuda else None
        timed = self.time([row.case for row, _ in ready]) if ready else []
        for (row, before), samples in zip(ready, timed, strict=True):
            after = row.check(only) if row.check else None
            if after is None or after.passed:
                entry.rows.append(self.row_beside_peers(subject, row, before, after, samples))
            else:
                self.refuse(entry, after.message(f"{row.name}, mode {row.mode}", "after timing"), wrong=True)
        if base := [row for row in entry.rows if row.kind == "official"]:
            for found in entry.rows:
                found.over_reference = ratio(found.throughput.by_window, base[0].throughput.by_window)
        if entry.rows:
            log("\n" + peers_table(entry.rows, self.cuda))
            for line in peer_remarks(entry.rows):
                log(line)

    def row_beside_peers(
        self, subject: Subject, row: Contestant, before: Parity | None, after: Parity | None, samples: Samples
    ) -> Row:
        counts, ceilings = row.counts, self.results.ceilings
        labels = subject.batch * subject.size[0] * subject.size[1]
        least = row.parameters * subject.dtype.itemsize + subject.frames[0].nbytes + labels
        work = Work(None, least)
        bound = None
        if counts is not None:
            work = Work(counts.flops, least, counts.unfused_bytes, counts.operators, counts.uncounted)
        if counts is not None and ceilings is not None:
            seconds = subject.batch * median(samples.ms_per_item()) / 1e3
            bound = roofline.bound(counts.flops, least, ceilings, seconds)
        return Row(
            kind=row.kind,
            peer=row.peer,
            about=row.about,
            mode=row.mode,
            layout=row.layout,
            backend=row.backend,
            scope="frame",
            parameters=row.parameters,
            tried_ms=row.tried,
            parity_before=before,
            parity_after=after,
            latency_ms=summarise(samples.latency_ms),
            device_ms=summarise(samples.device_ms) if samples.device_ms else None,
            throughput=throughput(samples),
            work=work,
            roofline=bound,
            samples=samples,
        )

    # --paper: the scope of the official FPS script, to have something comparable with the published figures

    def measure_as_paper(self, subject: Subject, entry: NetworkResults) -> None:
        """Compare, time two passes, compare again, print next to the published figure."""
        ready: list[Ready] = []
        # The plain module is the baseline.
        rows = [("module", "reference"), *((mode, backend) for backend in self.backends for mode in self.modes)]
        for mode, backend in rows:
            try:
                case = paper_case(subject, mode, backend)
                result = subject.check(case)
            except Exception as error:
                self.refuse(entry, self.cannot(f"Mode {mode}, backend {backend}", error))
                continue
            if result.passed:
                ready.append(Ready(case, None, result))
            else:
                self.refuse(entry, result.message(describe(case), "before timing"), wrong=True)
        cases = [item.case for item in ready]
        steps = self.args.iterations
        if steps is None:
            steps = (50 if self.args.quick else 500) if self.cuda else (3 if self.args.quick else 10)
        one_pass(cases, steps, self.device)
        self.watch.read_if_quick("during")
        timed = one_pass(cases, steps, self.device)
        self.watch.read_if_quick("during")
        published = PUBLISHED[subject.name].fps if subject.name in PUBLISHED else None
        if entry.resolution != entry.published_resolution:
            published = None
        entry.published = {"fps": published, "gpu": PUBLISHED_GPU}
        for item, samples in zip(ready, timed, strict=True):
            after = subject.check(item.case)
            if not after.passed:
                self.refuse(entry, after.message(describe(item.case), "after timing"), wrong=True)
                continue
            mode, backend, scope = item.case.name
            entry.rows.append(
                Row(
                    mode=mode,
                    backend=backend,
                    scope=scope,
                    parity_before=item.parity,
                    parity_after=after,
                    latency_ms=summarise(samples.latency_ms),
                    throughput=throughput(samples),
                    samples=samples,
                )
            )
        if entry.rows:
            log("\n" + paper_table(entry.rows, published))


def describe(case: Case) -> str:
    mode, backend, scope = case.name
    return f"mode {mode}, backend {backend}, scope {scope}"


def paper_case(subject: Subject, mode: str, backend: str) -> Case:
    """Return the official script's step: copy a normalised image to the device, compute scores at full size."""
    hosts = subject.normalised_hosts()
    engine = None if mode == "module" else subject.build(mode, backend)
    dtype = torch.float32 if engine is None else subject.dtype

    def network(images: torch.Tensor) -> torch.Tensor:
        return subject.model(images) if engine is None else subject.full_size(engine.network(images))

    def step(i: int) -> torch.Tensor:
        return network(hosts[i % len(hosts)].to(subject.device).to(dtype))

    return Case((mode, backend, "paper"), step, items=subject.batch, context=lambda: inference(backend))


def one_pass(cases: list[Case], steps: int, device: torch.device) -> list[Samples]:
    """Time single steps, the cases alternating step by step. All steps of a case are one window."""
    found = [Samples(window_items=[steps * case.items]) for case in cases]
    with without_gc():
        for index in schedule(len(cases), steps):
            with cases[index].context():
                found[index].latency_ms += latency_slice(cases[index], device, 1, len(found[index].latency_ms))
    for samples in found:
        samples.window_ms = [sum(samples.latency_ms)]
    return found


# What is printed


def rows_table(rows: Sequence[Row], cuda: bool) -> str:
    head = ["mode", "backend", "scope", "p50 ms", "p90", "p99", "n"]
    head += ["device p50"] if cuda else []
    head += ["FPS", "spread", "GFLOP", "MB least", "MB unfused", "roofline", "bound by", "labels agree, error"]
    body = []
    for row in rows:
        cells = [row.mode, row.backend, row.scope]
        cells += [*percentiles(row.latency_ms, "p50", "p90", "p99"), str(row.latency_ms.n)]
        cells += percentiles(row.device_ms, "p50") if cuda else []
        cells += [fixed(row.throughput.rate), f"{row.throughput.spread_percent:.1f} %"]
        work = row.work
        cells.append("-" if work is None or work.flops is None else fixed(work.flops / 1e9))
        cells.append("-" if work is None else fixed(work.least_bytes / 1e6))
        cells.append("-" if work is None or work.unfused_bytes is None else fixed(work.unfused_bytes / 1e6))
        cells += ["-", "-"] if row.roofline is None else [f"{fixed(row.roofline.percent, 3)} %", row.roofline.by]
        body.append([*cells, parity_cell(row)])
    return table(head, body, left=3)


def peers_table(rows: Sequence[Row], cuda: bool) -> str:
    head = ["network", "mode", "memory format", "p50 ms", "p90", "n"] + ["device p50"] * cuda
    head += ["FPS", "spread", "times official", "GFLOP", "M parameters", "roofline", "labels agree"]
    body = []
    for row in rows:
        cells = [row.peer or KINDS[row.kind], row.mode, row.layout or "its own"]
        cells += [*percentiles(row.latency_ms, "p50", "p90"), str(row.latency_ms.n)]
        cells += percentiles(row.device_ms, "p50") if cuda else []
        cells += [fixed(row.throughput.rate), f"{row.throughput.spread_percent:.1f} %"]
        cells.append("-" if row.over_reference is None else str(row.over_reference))
        cells.append("-" if row.work is None or row.work.flops is None else fixed(row.work.flops / 1e9))
        cells.append("-" if row.parameters is None else fixed(row.parameters / 1e6, 3))
        cells.append("-" if row.roofline is None else f"{fixed(row.roofline.percent, 3)} %")
        cells.append(parity_cell(row) + ", with itself" * bool(row.peer) if row.parity_before else "not compared")
        body.append(cells)
    return table(head, body, left=3)


def peer_remarks(rows: Sequence[Row]) -> list[str]:
    """Return what networks of others are, and what the trials found."""
    out = []
    for row in rows:
        name = row.peer or KINDS[row.kind]
        if row.peer:
            rival = rivals.RIVALS[row.peer]
            published = f"; its authors publish {rival.published} mIoU" if rival.published else ""
            out.append(f"{name}: {row.about}{published}; {rival.link}.")
        if len(tried := row.tried_ms or {}) > 1:
            out.append(f"{name}: tried {', '.join(f'{way} {fixed(ms)} ms' for way, ms in tried.items())}.")
    if unstable := [row.peer or f"{KINDS[row.kind]} ({row.mode})" for row in rows if not row.samples.warmup_stable]:
        out.append(f"Step times had not settled when the warm-up ended: {', '.join(unstable)}.")
    return out


def paper_table(rows: Sequence[Row], published: float | None) -> str:
    head = ["mode", "backend", "p50 ms", "mean ms", "n", "FPS", f"published FPS, {PUBLISHED_GPU}"]
    body = []
    for row in rows:
        latency = row.latency_ms
        cells = [row.mode, row.backend, *percentiles(latency, "p50"), fixed(latency.mean), str(latency.n)]
        body.append([*cells, fixed(row.throughput.rate), str(published or "none"), parity_cell(row)])
    return table([*head, "labels agree, error"], body, left=2)


def remarks(rows: Sequence[Row]) -> list[str]:
    """Return what the table of one network cannot show in its columns."""
    out = comparisons(rows)
    if peaks := {(r.mode, r.backend): r.peak_memory_mib for r in rows if r.peak_memory_mib is not None}:
        each = ", ".join(f"{' '.join(key)} {mib:.0f} MiB" for key, mib in peaks.items())
        out.append(f"Peak GPU memory of building and running an engine, above the float32 module: {each}.")
    if unstable := [f"{r.mode} {r.backend} {r.scope}" for r in rows if not r.samples.warmup_stable]:
        out.append(f"Step times had not settled when the warm-up ended: {', '.join(unstable)}.")
    uncounted = {op for r in rows if r.work for op in r.work.uncounted_operators or [] if "upsample" not in op}
    if uncounted:
        out.append(f"No FLOP formula is known for {', '.join(sorted(uncounted))}: GFLOP and roofline are too low.")
    return out


def comparisons(rows: Sequence[Row]) -> list[str]:
    """Compare the rows of each scope with its first row."""
    found: dict[str, list[str]] = {}
    for scope in dict.fromkeys(row.scope for row in rows):
        first, *others = [row for row in rows if row.scope == scope]
        for row in others:
            over = ratio(row.throughput.by_window, first.throughput.by_window)
            found.setdefault(f"{row.mode} {row.backend} over {first.mode} {first.backend}", []).append(
                f"{scope} {over}"
            )
    return [f"FPS of {key}, by round: {', '.join(texts)}." for key, texts in found.items()]


def notes(rows: Sequence[Row], cuda: bool, rotated: int) -> list[str]:
    """Explain the words of the table, for exactly the columns printed."""
    scopes = [scope for scope in SCOPES if any(row.scope == scope for row in rows)]
    lines = [f"scope {scope}: {SCOPES[scope]}" for scope in scopes]
    sync = "the device synchronised before and after each" if cuda else "one at a time"
    lines.append(
        f"p50, p90, p99: milliseconds of a single step of one batch, {sync}; n samples, a percentile is left out below "
        f"{ENOUGH['p90']} or {ENOUGH['p99']} of them."
    )
    if cuda:
        lines.append("device p50: the same step between two CUDA events, measured in separate runs.")
    lines.append(
        "FPS: images per second with steps issued back to back and one synchronisation per window, median over the "
        "windows; spread is (max - min) / median over them. Scope host waits for its labels at every step."
    )
    lines.append(
        f"Rows are timed in alternation (A B C A B C ...) in one process. Inputs rotate over {rotated} different "
        "frames; caches are not flushed: weights and activations stay as warm as they are in a video."
    )
    if any(row.mode == "cudagraph" for row in rows):
        lines.append("Mode cudagraph includes the copy of each input into the memory that the graph reads.")
    lines.append(
        "Norms are folded into the weights, never removed. Labels agree: worst over all inputs and over the checks "
        "before and after timing, against the plain float32 module (reference backend, TF32 off)."
    )
    lines.append(
        "GFLOP: two per multiply-add, of convolutions and matrix multiplications. MB least: parameters, input and "
        "output once each. MB unfused: every operator reads its inputs and writes its outputs once."
    )
    lines.append(
        "roofline: the larger of GFLOP / measured matmul rate and MB least / measured copy bandwidth, over the "
        "median time per step of a window." + (" Copies between host and device are not in it." if cuda else "")
    )
    return lines


def peer_notes(rows: Sequence[Row], others: Sequence[str]) -> list[str]:
    """Explain the rows of --peers, then the columns that they share with other runs."""
    lines = [
        "official network, norms kept: this network in plain PyTorch, every norm a call of its own, as the official "
        "code runs it; that code needs packages of 2021. times official: ratio of FPS within a round, median of the "
        "rounds, with minimum and maximum.",
        "norms removed: what the official script times. Its labels are wrong, so they are not compared.",
        "norms folded, unfused: plain PyTorch again, eagerly, compiled by torch.compile, or replayed as a CUDA graph.",
        "Every row but the engine has the same first and last step: normalisation, and bilinear resizing of the scores "
        "with argmax in float32. Folded networks and those of others run in the mode and memory format, the engine in "
        "the mode, that was fastest in a short trial before.",
    ]
    if any(row.peer for row in rows):
        lines.append(
            "Networks of others have as many classes, random weights, and norms folded where a convolution precedes "
            "them. Their labels are compared with those of their own plain module in float32, and must repeat. They "
            "compute something else: only speed can be compared, and published mIoU is of other weights and sizes."
        )
    skip = ("Norms are folded", "GFLOP:", "Mode cudagraph")
    lines += [line for line in others if not line.startswith(skip)]
    lines.append("GFLOP: two per multiply-add, of convolutions and matrix multiplications, in eager mode.")
    return lines


PAPER_NOTES = (
    "Scope: a normalised float32 image in host memory is copied to the device and passes through the network to "
    "scores at full size, including its last upsampling: as in the official script, no argmax, no labels, no loading.",
    "The official script deletes the norms while it times, so that it times another network; module keeps them, the "
    "engine has them folded. Its default batch is 16, and the figure it saves counts batches, not images; here FPS are "
    "images per second, from the sum of all steps.",
    "Two passes over the same inputs, the first one is the warm-up; the device is synchronised around each step. "
    "Rows alternate step by step.",
    f"Published FPS are the authors', on a {PUBLISHED_GPU}. The GPUs differ, so the two numbers are not a speed-up.",
)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)

    def make() -> FpsRun:
        device = prepare_torch(args.device, args.threads)
        models = pick_models(args.model)
        if args.weights is not None and len(models) > 1:
            raise Refused("--weights belongs to one model; name just one with --model.")
        check_peers(args)
        default = None
        if args.peers is not None:
            default = [mode for mode in MODES if mode != "cudagraph" or device.type == "cuda"]
        return FpsRun(args, device, models, pick_modes(args.mode, device, default), pick_budget(args, device))

    return run_command("bench/fps.py", args, make)


if __name__ == "__main__":
    sys.exit(main())
