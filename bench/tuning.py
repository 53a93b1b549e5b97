"""Which launch options are faster than a kernel's default: candidates tried on a network's calls, samples weighed."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bench import parity
from bench.calls import Call
from bench.graphs import captured
from bench.harness import Budget, Case, measure, median, quantile
from bench.subject import one_line
from hyperseg.kernels import launch
from hyperseg.ops import BACKENDS

REPEATS = 20  # calls in a CUDA graph
LEAST_GAIN = 0.02  # what a line in a table must at least bring

DEFAULT = "default"


@dataclass
class Line:
    """A line of the table to be: the options tried, and what a pass over all its calls took in each round, in ms."""

    default: launch.Options
    options: dict[str, launch.Options] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    calls: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, samples: dict[str, list[float]], times: int) -> None:
        """The samples of another call, which is made so many times; a candidate counts if it served every call."""
        for name, ms in samples.items():
            before = self.samples.get(name, [0.0] * len(ms))
            self.samples[name] = [a + times * b for a, b in zip(before, ms, strict=True)]
        self.calls += 1

    def best(self) -> str:
        """The fastest that served every call, if it beats the default beyond the spread of both; else the default."""
        default = self.samples[DEFAULT]
        fair = {name: ms for name, ms in self.samples.items() if name not in self.failed}
        name = min(fair, key=lambda n: median(fair[n]))
        gained = median(fair[name]) <= (1 - LEAST_GAIN) * median(default)
        apart = quantile(fair[name], 0.9) < quantile(default, 0.1)
        return name if gained and apart else DEFAULT

    def to_dict(self) -> dict[str, Any]:
        return {
            "best": self.best(),
            "calls": self.calls,
            "default": self.default,
            "failed": self.failed,
            "ms_by_round": self.samples,
        }


def candidates() -> dict[str, list[launch.Options]]:
    """What the modules of kernels list, by the kernel's name in tables."""
    found: dict[str, list[launch.Options]] = {}
    for module in launch.modules():
        listed = getattr(module, "CANDIDATES", {})
        assert not found.keys() & listed.keys(), f"{module.__name__} repeats candidates of a kernel"
        found |= listed
    return found


def served(call: Call) -> Callable[[], Any] | None:
    """The Triton implementation of a call, without the dispatcher around it; None if it has none."""
    backend = BACKENDS["triton"]
    if backend.not_supported_reasons(call.operator, tuple(call.arguments)):
        return None
    function = backend.supported[call.operator]
    return lambda: function(*call.arguments)


class Tuner:
    """Tries every candidate on every call given to it.

    Attributes:
        lines: what was found, by line of the table.
        wrong: sentences about candidates that answered something else than the default.
    """

    def __init__(self, device: torch.device, budget: Budget, options: dict[str, list[launch.Options]]) -> None:
        self.device, self.budget, self.options = device, budget, options
        self.lines: dict[str, Line] = {}
        self.wrong: list[str] = []

    def call(self, run: Callable[[], Any], dtype: str, times: int = 1) -> None:
        """Tune what launchers ask for in this call, one kernel after the other."""
        with launch.asked() as questions:
            run()
        for name, question in questions.items():
            if question.kernel in self.options:
                self.line(name, question, run, dtype, times)

    def line(self, name: str, question: launch.Question, run: Callable[[], Any], dtype: str, times: int) -> None:
        line = self.lines.setdefault(name, Line(question.default))
        with launch.forced(name, {}):
            expected = [t.clone() for t in tensors(run())]
        cases = [self.case(DEFAULT, name, {}, run)]
        same = []  # of a candidate that is this call's default: what the default takes
        for options in self.options[question.kernel]:
            text = json.dumps(options, sort_keys=True)
            if text in line.failed:
                continue
            line.options[text] = options
            if question.default | options == question.default:
                same.append(text)
                continue
            try:
                with launch.forced(name, options):
                    reason = difference(tensors(run()), expected, dtype)
                if reason:
                    self.wrong.append(f"{name} with {text}: {reason}")
                else:
                    cases.append(self.case(text, name, options, run))
            except Exception as error:  # whatever a compiler or a driver says to options that do not fit
                reason = f"{type(error).__name__}: {one_line(error)}"
            if reason:
                line.failed[text] = reason
        timed = measure(cases, self.device, self.budget)
        found = {
            case.name[0]: [ms / n for ms, n in zip(s.window_ms, s.window_images, strict=True)]
            for case, s in zip(cases, timed, strict=True)
        }
        line.add(found | dict.fromkeys(same, found[DEFAULT]), times)

    def case(self, text: str, name: str, options: launch.Options, run: Callable[[], Any]) -> Case:
        def context() -> AbstractContextManager:
            return launch.forced(name, options)

        with context():
            step = captured(run, self.device, REPEATS)
        return Case((text,), step, REPEATS, context)

    def launches(self) -> dict[str, launch.Options]:
        """The lines for which another choice than the default is faster."""
        best = {name: line.best() for name, line in self.lines.items()}
        return {name: self.lines[name].options[text] for name, text in best.items() if text != DEFAULT}


def tensors(answer: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor)]


def difference(answers: list[Tensor], expected: list[Tensor], dtype: str) -> str:
    """Why these are not the default's answers; empty if they are, within rounding. Whole numbers must be equal."""
    whole = [i for i, t in enumerate(expected) if not t.is_floating_point()]
    if not all(torch.equal(answers[i], expected[i]) for i in whole):
        return "its labels are not the default's"
    rest = [i for i in range(len(expected)) if i not in whole]
    if not rest:
        return ""
    compared = parity.compare_tensors([answers[i] for i in rest], [expected[i] for i in rest], parity.TOLERANCES[dtype])
    return compared.reason or "" if not compared.passed else ""


def merged(before: dict[str, Any], tuner: Tuner) -> dict[str, dict[str, Any]]:
    """The launches and samples of a table: those measured now, and of earlier runs those that were not."""
    launches = {k: v for k, v in before.get("launches", {}).items() if k not in tuner.lines} | tuner.launches()
    samples = before.get("samples", {}) | {name: line.to_dict() for name, line in tuner.lines.items()}
    return {"launches": dict(sorted(launches.items())), "samples": dict(sorted(samples.items()))}
