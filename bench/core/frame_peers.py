"""What `bench/fps.py --peers` times: a network by several ways, and networks of others, from uint8 frames to labels.

Everything outside of HyperSeg's engine gets the same first and last step in plain PyTorch, and the mode and memory
format in which it was fastest in a short trial.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.core import parity, plain, rivals, roofline
from bench.core.errors import Refused, one_line
from bench.core.labeller import Labeller, plain_labeller
from bench.core.networks import Subject, inference, synthetic_frames
from bench.core.parity import Parity
from bench.core.run import log
from bench.core.timing import Case, synchronize
from hyperseg.models.sizes import normalise
from hyperseg.runtime.graphs import Captured

Step = Callable[[int], Any]

# By kind of row: how the table calls it. Networks of others go by their names.
KINDS = {
    "official": "official network, norms kept",
    "without-norms": "norms removed: another network",
    "folded": "norms folded, unfused",
    "engine": "engine",
    "other": "",
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
STRIDE = 32  # sides are padded to multiples of it, where a network does not say otherwise
TRIAL_SECONDS, TRIAL_STEPS = 1.5, 20
REPEATS = 0.999  # share of labels that must be the same when a step is repeated: a GPU may add in another order
ENTRIES = 64  # of torch.compile, per function: all networks share that of `Labeller`


@dataclass
class Contestant:
    """One row before it is timed.

    Attributes:
        kind: of `KINDS`; ``peer``: the name of another network.
        mode, layout, backend: how it runs; ``layout`` is empty for an engine, which has its own.
        check: compares the timed step with the reference, on every input or only on one; of another network, with its
            own plain module in float32. None: there is nothing to compare with.
        counts: work of a step, counted in eager mode; None: it could not be counted.
        tried: milliseconds of a frame in the trial, by mode and memory format.
        failed: modes that could not run, and why.
    """

    kind: str
    case: Case
    mode: str
    layout: str
    backend: str
    parameters: int
    check: Callable[[int | None], Parity] | None
    counts: roofline.Counts | None
    tried: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    peer: str = ""
    about: str = ""

    @property
    def name(self) -> str:
        return self.peer or KINDS[self.kind]


class Trial:
    """Times several ways to do the same, and keeps the fastest."""

    def __init__(self, subject: Subject, backend: str) -> None:
        self.subject, self.backend = subject, backend
        self.tried: dict[str, float] = {}
        self.failed: list[str] = []
        self.seconds, self.name = math.inf, ""
        self.step: Step | None = None
        self._error: Exception | None = None

    def add(self, name: str, make: Callable[[], Step]) -> None:
        """Build a way and time it. What fails is noted; `result` raises if everything has failed."""
        try:
            with inference(self.backend), torch._dynamo.config.patch(recompile_limit=ENTRIES):
                step = make()
                turns = iter(range(10**9))
                seconds = roofline.best_seconds(
                    lambda: step(next(turns)), self.subject.device, TRIAL_STEPS, TRIAL_SECONDS
                )
        except Exception as error:  # of compilers and packages
            self._error = self._error or error
            self.failed.append(f"{name} ({type(error).__name__}: {one_line(error)})")
            return
        self.tried[name] = 1e3 * seconds
        if seconds < self.seconds:
            self.seconds, self.name, self.step = seconds, name, step

    def result(self) -> Step:
        if self.step is None:
            raise self._error or Refused("there is no mode to run it in.")
        return self.step


def modes_of(modes: Sequence[str]) -> list[str]:
    """Return modes of plain PyTorch: those given, and both at once of a compiler and a CUDA graph."""
    return [*modes, *(["compile cudagraph"] if {"compile", "cudagraph"} <= {*modes} else [])]


def fastest(subject: Subject, labeller: Labeller, modes: Sequence[str], layouts: Sequence[str]) -> tuple[Trial, str]:
    """Return the trial of a labeller in these modes, and the memory format, in which it is left.

    Eager mode decides on the memory format, also where it is not among the modes.
    """
    frames = subject.frames

    def build(mode: str) -> Step:
        run: Callable[[Tensor], Tensor] = labeller
        if "compile" in mode:
            run = torch.compile(labeller, dynamic=False)
        if "cudagraph" in mode:
            run = Captured(run, subject.device)
        return lambda i: run(frames[i % len(frames)])

    eager = Trial(subject, "reference")
    for layout in layouts:
        labeller.use_layout(LAYOUTS[layout])
        eager.add(layout, lambda: build("eager"))
    eager.result()
    labeller.use_layout(LAYOUTS[eager.name])
    trial = Trial(subject, "reference")
    for mode in modes:
        if mode == "eager":
            trial.tried |= {f"eager {layout}": ms for layout, ms in eager.tried.items()}
            trial.seconds, trial.name, trial.step = eager.seconds, "eager", build("eager")
        else:
            trial.add(mode, functools.partial(build, mode))
    trial.result()
    return trial, eager.name


def of_labeller(
    kind: str,
    subject: Subject,
    labeller: Labeller,
    modes: Sequence[str],
    layouts: Sequence[str],
    parameters: int,
    check: Callable[[Case, int | None], Parity] | None,
) -> Contestant:
    labeller = labeller.to(subject.device).eval().requires_grad_(False)
    with inference("reference"):
        counts = count(lambda: labeller(subject.frames[0]))
    trial, layout = fastest(subject, labeller, modes, layouts)
    name = (kind, trial.name, "frame")  # `Subject.check` reads the scope
    case = Case(name, trial.result(), items=subject.batch, context=lambda: inference("reference"))
    return Contestant(
        kind,
        case,
        trial.name,
        layout,
        "reference",
        parameters,
        None if check is None else functools.partial(check, case),
        counts,
        trial.tried,
        trial.failed,
    )


def count(step: Callable[[], object]) -> roofline.Counts | None:
    try:
        return roofline.count(step)
    except Exception as error:  # rows are worth more than their counts
        log(f"FLOPs and unfused bytes could not be counted ({type(error).__name__}: {one_line(error)}).")
        return None


def own_rows(subject: Subject, modes: Sequence[str], backend: str) -> Iterator[tuple[str, Callable[[], Contestant]]]:
    """Yield a name for messages and a builder of each row of the network itself."""
    parameters = sum(p.numel() for p in subject.model.parameters())

    def make(
        kind: str, network: Callable[[Any], nn.Module], modes: Sequence[str], layouts: Sequence[str]
    ) -> Contestant:
        labeller = plain_labeller(subject.model, network(subject.model), subject.size, subject.dtype)
        check = None if kind == "without-norms" else subject.check
        return of_labeller(kind, subject, labeller, modes, layouts, parameters, check)

    # The official code knows no other memory format and no compiler.
    yield "official", lambda: make("official", plain.with_norms, ["eager"], ["contiguous"])
    yield "without-norms", lambda: make("without-norms", plain.without_norms, ["eager"], ["contiguous"])
    for mode in modes:
        yield f"folded, {mode}", functools.partial(make, "folded", plain.folded, [mode], [*LAYOUTS])
    yield "engine", lambda: engine_row(subject, modes, backend, parameters)


def engine_row(subject: Subject, modes: Sequence[str], backend: str, parameters: int) -> Contestant:
    trial = Trial(subject, backend)
    counts = None

    def build(mode: str) -> Step:
        return subject.case(subject.build(mode, backend), mode, backend, "frame").step

    for mode in modes:
        trial.add(mode, functools.partial(build, mode))
    step = trial.result()
    with inference(backend):
        eager = step if trial.name == "eager" else build("eager")  # a graph hides its operators
        counts = count(lambda: eager(0))
    case = Case(("engine", trial.name, "frame"), step, items=subject.batch, context=lambda: inference(backend))
    check = functools.partial(subject.check, case)
    return Contestant("engine", case, trial.name, "", backend, parameters, check, counts, trial.tried, trial.failed)


def other_row(subject: Subject, name: str, modes: Sequence[str], folders: Mapping[str, Path | None]) -> Contestant:
    """Build another network with as many classes, and compare it with itself.

    Raises:
        Refused: its package has no such network, its scores are not finite, or its labels are not its own.
    """
    config, rival = subject.model.config, rivals.RIVALS[name]
    network = rivals.build(name, config.num_classes, config.encoder, subject.seed, folders).requires_grad_(False)
    parameters = sum(p.numel() for p in network.parameters())
    images = normalise(torch.cat(synthetic_frames(2, 1, 128, 256, subject.seed + 1)), config.mean, config.std)
    rivals.settle_norms(network, images.contiguous())
    copied, how = rivals.folded(name, network, images.contiguous())
    height, width = (-(-side // STRIDE) * STRIDE for side in subject.size)

    def labeller(found: nn.Module, dtype: torch.dtype) -> Labeller:
        scores = rivals.Scores(found, rival.scores)
        return Labeller(scores, config.mean, config.std, (height, width), dtype).to(subject.device).eval()

    with inference("reference"):
        module = labeller(network, torch.float32)
        expected = [module.scores(frames) for frames in subject.frames]
        # The network itself where its norms could not be folded: converted after its reference scores were computed.
        timed = labeller(copied, subject.dtype)
        if not all(torch.isfinite(scores).all() for scores in [*expected, timed.strided(subject.frames[0])]):
            raise Refused("its scores are not finite.")
    check = functools.partial(check_other, subject, expected)
    found = of_labeller("other", subject, timed, modes_of(modes), [*LAYOUTS], parameters, check)
    found.case.name = (name, found.mode, "frame")
    found.peer, found.about = name, f"{rivals.about(name)}, {rival.licence}, {how}, random weights"
    return found


def check_other(subject: Subject, expected: Sequence[Tensor], case: Case, only: int | None = None) -> Parity:
    """Compare the labels of a timed step with those of the same network as a plain module in float32.

    They must have its shape and repeat. In 16-bit floats they need not agree, because random weights leave classes
    close together.
    """
    results = []
    with case.context():
        for i, scores in enumerate(expected):
            if only not in {None, i}:
                continue
            labels, again = (case.step(i).clone() for _ in range(2))  # type: ignore[attr-defined]
            synchronize(subject.device)
            found = parity.compare_labels(labels, scores, subject.tolerance)
            if not found.passed and found.agreement is not None and subject.dtype != torch.float32:
                found = replace(found, passed=True, reason="")
            if found.passed and (labels == again).double().mean().item() < REPEATS:
                found = Parity(False, "its labels change when it is repeated")
            results.append(found)
    return parity.worst(results)
