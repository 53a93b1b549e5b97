"""A training step of the published recipes: step time, images per second, peak memory, and which batch fits.

    python bench/train_step.py --model hyperseg-m --size 256x512 --batch 2
    python bench/train_step.py --model all --amp none bf16 --compile none encoder model --fits --json train.json

The timed step is that of `hyperseg train`: forward, the recipe's loss at label size, backward, norm of the gradients,
optimiser, from a batch on the device. Everything alternates in one process; memory on a CPU is measured in a process
per row. Loss and gradients of a first step are compared with plain PyTorch in float32 before and after timing, and a
row that does not match it gets no speed. Other networks are timed too if their packages are installed.
Exit code: 0 measured, 1 something could not be run (a message gives the reason), 2 a row failed the comparison.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.core import parity, rivals, training
from bench.core.errors import Refused
from bench.core.options import BACKENDS as NAMES
from bench.core.options import measuring_parser, pick_models, positive, prepare_torch
from bench.core.parity import BadReference, Parity
from bench.core.results import NetworkResults, ProcessMemory, Row
from bench.core.run import Run, log, run_command
from bench.core.tables import bullets, fixed, percentiles, table
from bench.core.timing import Budget, Case, Samples, ratio, summarise, synchronize, throughput
from bench.core.training import Setting, Task, Trainer, plain
from hyperseg.models import model_config
from hyperseg.ops.backends import BACKENDS
from hyperseg.ops.backends.dispatch import PREFERENCE
from hyperseg.runtime.device import is_out_of_memory
from hyperseg.verify import verify_kernels

COMPILE = ("none", "encoder", "model")
AMP = ("none", "bf16")
PEAK_STEPS = 2
LARGEST = 2**14  # images; --fits stops there


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = measuring_parser(
        "bench/train_step.py", __doc__, model="hyperseg-m", row="row", quick="same network, size and batch"
    )
    add = parser.add_argument
    add("--device", default="auto", help="auto, cpu, cuda or cuda:1; auto is CUDA where there is any")
    add("--backend", nargs="+", choices=NAMES, help="in addition to the reference; default: all that run here")
    add("--batch", type=positive(int), metavar="N", help="default: the recipe's, on a CPU 2")
    add("--amp", nargs="+", choices=AMP, help="autocast; default: none, on CUDA none and bf16")
    add("--compile", nargs="+", default=["none"], choices=COMPILE, help="default: none")
    add("--contiguous", action="store_true", help="also the fast backends without channels-last memory")
    add("--recompute", action="store_true", help="also with the encoder computed again in the backward pass")
    add("--fits", action="store_true", help="on CUDA: double the batch of each row until the memory is not enough")
    add("--peers", nargs="*", metavar="NAME", help=f"of {', '.join(rivals.FOR_TRAINING)}; default: the installed ones")
    add("--no-memory", action="store_true", help="leave out memory on a CPU, which takes a process for each row")
    return parser.parse_args(argv)


def pick_budget(args: argparse.Namespace, device: torch.device) -> Budget:
    cuda = device.type == "cuda"
    rounds = (4 if args.quick else 12) if cuda else (2 if args.quick else 7)
    if args.iterations is not None:
        rounds = min(rounds, args.iterations)
    seconds = args.seconds or ((1.5 if args.quick else 6.0) if cuda else (4.0 if args.quick else 30.0))
    steps, limit = (10, 2.0) if cuda else (1, 2.0)
    return Budget(seconds, rounds, args.iterations, warmup_steps=steps, warmup_seconds=limit)


def pick_backends(names: list[str] | None, device: torch.device) -> list[str]:
    """Return the backends that are compared with the reference: those named, or all that run on the device."""
    if names is not None:
        return [name for name in dict.fromkeys(names) if name != "reference"]
    found = []
    for name in PREFERENCE[device.type]:
        if reasons := BACKENDS[name].unavailable_reasons():
            log(f"Backend {name} is left out: {'; '.join(reasons)}.")
        elif name != "reference":
            found.append(name)
    return found if len(found) < 2 else ["auto", *found]


def pick_amp(names: list[str] | None, device: torch.device) -> list[training.Amp]:
    picked = names or (["none", "bf16"] if device.type == "cuda" else ["none"])
    return [amp for amp in AMP if amp in picked]  # type: ignore[misc]


def pick_compile(names: list[str], device: torch.device) -> list[training.Compile]:
    """Return what is compiled; print why not if it cannot be."""
    picked = list(dict.fromkeys(names))
    compiled = [name for name in picked if name != "none"]
    if compiled and device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        log("torch.compile needs a C++ compiler and none was found; it is left out.")
        picked = ["none"]
    elif compiled:
        log("torch.compile takes minutes before the first step.")
    return picked  # type: ignore[return-value]


@dataclass
class Ready:
    """A row that matches the reference; of a peer, that has a finite loss.

    Attributes:
        peak_mib: largest GPU memory of its steps, with weights and optimiser.
    """

    task: Task
    setting: Setting
    trainer: Trainer
    case: Case
    before: Parity | None
    peak_mib: float | None = None


class TrainStepRun(Run):
    """Rows: settings of a network's step, then peers."""

    kind = "hyperseg-train-step"

    def __init__(self, args: argparse.Namespace, device: torch.device, models: list[str], budget: Budget) -> None:
        super().__init__(args, device, models, budget)
        if args.fits and not self.cuda:
            raise Refused("--fits needs a CUDA device: a CPU has no memory of its own to fill.")
        self.backends = pick_backends(args.backend, device)
        self.amps = pick_amp(args.amp, device)
        self.compiled = pick_compile(args.compile, device)
        self.peers = rivals.pick(args.peers, rivals.FOR_TRAINING, log)
        self.threads = torch.get_num_threads()
        self.results.threads = None if self.cuda else self.threads
        self.describe_inputs(training.ROTATE, "synthetic frames, labels in blocks of 16x16 pixels")

    def print_settings(self) -> None:
        log(f"settings  autocast {', '.join(self.amps)}; TF32 off, seed {self.args.seed}, {self.threads} threads")

    def print_notes(self, rows: list[Row]) -> None:
        log("\n" + bullets(notes(self.cuda)))

    def clean(self) -> None:
        super().clean()
        if self.compiled != ["none"]:
            torch.compiler.reset()

    def settings(self) -> list[Setting]:
        """Return what is measured: for each autocast type plain PyTorch first."""
        found: list[Setting] = []
        for amp in self.amps:
            found.append(plain(amp))
            for backend in ("reference", *self.backends):
                for compiled in self.compiled:
                    setting = Setting(backend, lean_blocks=False, compile=compiled, amp=amp)
                    found.append(setting)
                    if backend == "reference":
                        continue
                    if self.args.contiguous:
                        found.append(replace(setting, channels_last=False))
                    if compiled == "none":
                        found.append(replace(setting, lean_blocks=True))
                    if self.args.recompute:
                        found.append(replace(setting, lean_blocks=compiled == "none", recompute=True))
        return list(dict.fromkeys(found))

    def measure_network(self, entry: NetworkResults) -> None:
        config, published = training.recipe(entry.name), model_config(entry.name)
        size = self.args.resolution or config.augmentation.crop
        batch = self.args.batch or (config.batch if self.cuda else 2)
        task = Task(entry.name, size, batch, self.args.seed)
        entry.resolution, entry.published_resolution = [*size], [*config.augmentation.crop]
        entry.batch, entry.dtype, entry.weights = batch, "float32", {"source": "synthetic", "seed": self.args.seed}
        log(
            f"\n{entry.name}: {batch} images of {size[0]}x{size[1]} (height x width), {published.num_classes} classes, "
            f"{config.loss.kind} loss, {config.optimizer.name}"
        )
        if "auto" in self.backends:
            verify_kernels(self.device, (torch.float32, torch.bfloat16)[: len(self.amps)], training=True)
        ready, reference = self.ready(task, entry)
        for item, samples in zip(ready, self.time([item.case for item in ready]), strict=True):
            self.add_row(item, samples, reference, entry)
        tasks = {item.case.name: (item.task, item.setting) for item in ready}
        ready.clear()
        self.clean()
        for row in entry.rows:
            self.measure_space(row, *tasks[name_of(row)], entry)
        compare(entry.rows)
        if entry.rows:
            log("\n" + rows_table(entry.rows, self.cuda, self.args.fits))
            for line in remarks(entry.rows):
                log(line)

    def ready(self, task: Task, entry: NetworkResults) -> tuple[list[Ready], Reference]:
        """Return every row that can run here and matches plain PyTorch in float32, and what it was compared with."""
        self.progress(f"preparing {task.model}: reference")
        trainer = training.build(task, plain("none"), self.device)
        entry.parameters = sum(p.numel() for p in trainer.network.parameters())
        reference = Reference(trainer.first_step())
        del trainer
        found = [self.attempt(task, setting, entry, reference) for setting in self.settings()]
        for peer in self.peers:
            setting = Setting("reference", lean_blocks=False, amp=self.amps[-1])
            found.append(self.attempt(replace(task, peer=peer), setting, entry, None))
        return [item for item in found if item is not None], reference

    def attempt(self, task: Task, setting: Setting, entry: NetworkResults, reference: Reference | None) -> Ready | None:
        """Prepare a row; say why it cannot run."""
        try:
            return self.prepare(task, setting, entry, reference)
        except BadReference:
            raise
        except Exception as error:
            self.refuse(entry, self.cannot(f"Peer {task.peer}" if task.peer else f"Row {setting}", error))
            self.forget()
            return None

    def prepare(self, task: Task, setting: Setting, entry: NetworkResults, reference: Reference | None) -> Ready | None:
        what = task.peer or f"row {setting}"
        self.progress(f"preparing {task.model}: {what}")
        base = self.begin_peak()
        trainer = training.build(task, setting, self.device)
        loss, gradients = trainer.first_step()
        before = None if reference is None else reference.check(setting, loss, gradients)
        if before is not None and not before.passed:
            self.refuse(entry, before.message(what, "before timing"), wrong=True)
            return None
        del gradients
        case = Case(
            (setting.backend, setting.layout, setting.blocks, setting.mode, setting.amp, task.peer),
            trainer.step,
            items=task.batch,
            context=trainer.context,
        )
        return Ready(task, setting, trainer, case, before, self.peak(trainer, base))

    def begin_peak(self) -> int:
        if not self.cuda:
            return 0
        self.forget()
        return torch.cuda.memory_allocated(self.device)

    def forget(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def peak(self, trainer: Trainer, base: int) -> float | None:
        """Return the GPU memory of steps in MiB: all that was allocated since ``base`` and is needed at once."""
        if not self.cuda:
            return None
        with trainer.context():
            trainer.step(0)
            synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            for i in range(PEAK_STEPS):
                trainer.step(i)
            synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - base) / 2**20

    def add_row(self, item: Ready, samples: Samples, reference: Reference, entry: NetworkResults) -> None:
        what = item.task.peer or f"row {item.setting}"
        loss, gradients = item.trainer.first_step()
        after = None if item.task.peer else reference.check(item.setting, loss, gradients)
        if after is not None and not after.passed:
            self.refuse(entry, after.message(what, "after timing"), wrong=True)
            return
        entry.rows.append(
            Row(
                peer=item.task.peer,
                about=rivals.about(item.task.peer) if item.task.peer else "",
                backend=item.setting.backend,
                mode=item.setting.mode,
                layout=item.setting.layout,
                blocks=item.setting.blocks,
                amp=item.setting.amp,
                parity_before=item.before,
                parity_after=after,
                latency_ms=summarise(samples.latency_ms),
                device_ms=summarise(samples.device_ms) if samples.device_ms else None,
                throughput=throughput(samples),
                samples=samples,
                peak_memory_mib=item.peak_mib,
            )
        )

    def measure_space(self, row: Row, task: Task, setting: Setting, entry: NetworkResults) -> None:
        """Measure the memory of a row in a process of its own, and on a GPU the largest batch, where this is wanted."""
        what = task.peer or f"row {setting}"
        if not self.cuda and not self.args.no_memory:
            self.progress(f"memory of {task.model}: {what}")
            try:
                row.memory = ProcessMemory(**training.memory_in_process(task, setting, self.threads))
            except (RuntimeError, OSError) as error:
                self.refuse(entry, str(error))
        if self.args.fits:
            self.progress(f"largest batch of {task.model}: {what}")
            row.largest_batch = self.largest_batch(task, setting)

    def largest_batch(self, task: Task, setting: Setting) -> int | None:
        """Double the batch until a step does not fit; return the last one that did."""
        fits, batch = None, task.batch
        while batch <= LARGEST and self.runs(replace(task, batch=batch), setting):
            fits, batch = batch, 2 * batch
        return fits

    def runs(self, task: Task, setting: Setting) -> bool:
        try:
            trainer = training.build(task, setting, self.device)
            with trainer.context():
                for i in range(PEAK_STEPS):
                    trainer.step(i)
            synchronize(self.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            trainer = None  # type: ignore[assignment]
            self.forget()
        return True


class Reference:
    """Loss and gradients of plain PyTorch in float32, and how far its own are from them in another type.

    Attributes:
        own: by autocast type, the errors of plain PyTorch.
    """

    def __init__(self, step: tuple[float, Sequence[torch.Tensor]]) -> None:
        self.step = step
        self.own: dict[str, Parity] = {}

    def check(self, setting: Setting, loss: float, gradients: Sequence[torch.Tensor]) -> Parity:
        """Compare a first step; the one of plain PyTorch comes first for each autocast type."""
        if setting.amp == "none":
            return parity.compare_step(loss, gradients, self.step, parity.STEP_TOLERANCE)
        if setting == setting.base:
            anything = parity.StepTolerance(*[float("inf")] * 3)
            self.own[setting.amp] = parity.compare_step(loss, gradients, self.step, anything)
        if setting.amp not in self.own:
            raise Refused(f"plain PyTorch in {setting.amp} did not run, so there is nothing to compare with.")
        return parity.compare_step(loss, gradients, self.step, parity.loosened_step(self.own[setting.amp]))


def name_of(row: Row) -> tuple[str, ...]:
    """Return the name of a row's case."""
    return (row.backend, row.layout, row.blocks, row.mode, row.amp, row.peer)


def compare(rows: Sequence[Row]) -> None:
    """Add speed and memory of each row relative to plain PyTorch in the same autocast type."""
    bases = {row.amp: row for row in rows if not row.peer and name_of(row) == base_name(row.amp)}
    for row in rows:
        if (base := bases.get(row.amp)) is None:
            continue
        row.over_reference = ratio(row.throughput.by_window, base.throughput.by_window)
        mine, theirs = row.used_mib, base.used_mib
        if mine is not None and theirs is not None:
            row.memory_over_reference = mine / theirs


def base_name(amp: str) -> tuple[str, ...]:
    setting = plain(amp)  # type: ignore[arg-type]
    return (setting.backend, setting.layout, setting.blocks, setting.mode, setting.amp, "")


def rows_table(rows: Sequence[Row], cuda: bool, fits: bool) -> str:
    head = ["operators", "memory format", "encoder's blocks", "mode", "autocast", "p50 ms", "p90", "n", "images/s"]
    head += ["spread", "times plain", "MiB", "of plain's"] + ["fits"] * fits + ["errors: loss", "gradients"]
    body = []
    for row in rows:
        first = [f"{row.peer} ({row.about})" if row.peer else row.backend, row.layout, "-" if row.peer else row.blocks]
        cells = [*first, row.mode, row.amp, *percentiles(row.latency_ms, "p50", "p90"), str(row.latency_ms.n)]
        cells += [fixed(row.throughput.rate), f"{row.throughput.spread_percent:.1f} %"]
        cells.append("-" if row.over_reference is None else str(row.over_reference))
        used, share = row.used_mib, row.memory_over_reference
        cells += ["-" if used is None else f"{used:.0f}", "-" if share is None else f"{share:.2f}"]
        cells += ["-" if row.largest_batch is None else str(row.largest_batch)] * fits
        body.append([*cells, *errors(row)])
    return table(head, body, left=5)


def errors(row: Row) -> list[str]:
    """Return the worse errors of the checks before and after timing: of the loss and of all gradients together."""
    checks = [check for check in (row.parity_before, row.parity_after) if check is not None]
    found = []
    for values in ([check.max_abs for check in checks], [check.rms for check in checks]):
        known = [value for value in values if value is not None]
        found.append(f"{max(known):.0e}" if known else "-")
    return found


def remarks(rows: Sequence[Row]) -> list[str]:
    """Return what the columns do not show at once."""
    out = []
    for amp in dict.fromkeys(row.amp for row in rows):
        own = [r for r in rows if r.amp == amp and not r.peer and r.backend != "reference" and r.over_reference]
        if own:
            best = max(own, key=lambda row: row.throughput.rate)
            share = best.memory_over_reference
            memory = "" if share is None else f", with {share:.2f} times its memory"
            name = f"{best.backend}, {best.layout}, {best.blocks} blocks, {best.mode}"
            out.append(f"Autocast {amp}: the fastest is {name}: {best.over_reference} times plain PyTorch{memory}.")
    if unstable := [" ".join(filter(None, name_of(row))) for row in rows if not row.samples.warmup_stable]:
        out.append(f"Step times had not settled when the warm-up ended: {'; '.join(unstable)}.")
    return out


def notes(cuda: bool) -> tuple[str, ...]:
    memory = (
        "MiB: the most GPU memory that PyTorch had allocated at once in steps after the first, above what it had "
        "before the row was built."
        if cuda
        else "MiB: the largest resident size of a process of its own in steps after the first, above that before the "
        "network was built. There, only HyperSeg's steps change malloc, as hyperseg train does; in this process malloc "
        "keeps freed memory for all rows, which speeds up all of them."
    )
    return (
        "Scope: normalised float32 images and uint8 labels on the device, to updated weights. Reading, augmentation, "
        "averaged weights and logs are not in it. Dropout is on, except in the comparison.",
        "plain: the reference operators in contiguous memory with PyTorch's own blocks, in the same autocast type. "
        "times plain: ratio of images per second within a round, median of the rounds, with minimum and maximum.",
        memory + " It includes weights, gradients, the optimiser's averages and two batches.",
        'Blocks: "lean" ones keep the outputs of convolutions only (speed.lean_blocks), "recomputed": stages of the '
        "encoder are computed again in the backward pass (speed.recompute).",
        "errors: of the loss and of all gradients as one vector in a first step, relative to plain PyTorch in float32.",
        "Other networks have as many classes, the same batch and optimiser, cross-entropy at label size, channels-last "
        "memory and random weights; they compute something else, so only speed and memory can be compared.",
    )


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)

    def make() -> TrainStepRun:
        device = prepare_torch(args.device, args.threads)
        args.device = str(device)
        return TrainStepRun(args, device, pick_models(args.model), pick_budget(args, device))

    return run_command("bench/train_step.py", args, make)


if __name__ == "__main__":
    sys.exit(main())
