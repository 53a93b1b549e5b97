"""Find the launch options that suit this GPU, and write kernels/tuned/<gpu>.json, which the launchers read.

    python bench/tune.py
    python bench/tune.py --model hyperseg-m --op mbconv decoder_level --dtype float16

Every kernel whose module lists CANDIDATES is tried on the calls of the networks. Each candidate must match the
default's output; all of them alternate, and one replaces the default only where it is faster beyond the spread.
Exit code: 0 tuned, 1 nothing can be tuned here (a message gives the reason), 2 a candidate's output is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.core import machine, parity
from bench.core.calls import Call, distinct, inference_calls, training_calls
from bench.core.errors import Refused, one_line
from bench.core.networks import inference, load, synthetic_frames
from bench.core.options import DTYPES, Parser, pick_models, positive, prepare_torch, probe_writable
from bench.core.results import Json, write_json
from bench.core.run import log
from bench.core.timing import Budget, Case, captured, measure, median, quantile
from hyperseg.kernels import launch
from hyperseg.ops import BACKENDS
from hyperseg.runtime.parity import TOLERANCES

REPEATS = 20  # calls in a CUDA graph
LEAST_GAIN = 0.02  # of the default's time, for a line in a table

DEFAULT = "default"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("bench/tune.py", __doc__)
    add = parser.add_argument
    add("--model", nargs="+", default=["all"], metavar="NAME", help="names, aliases, or all")
    add("--op", nargs="+", default=["all"], metavar="NAME", help="operators of the Triton backend, or all")
    add("--dtype", nargs="+", default=["float16", "float32"], choices=DTYPES)
    add("--device", default="auto", help="auto, cuda or cuda:1")
    add("--seconds", type=positive(float), default=0.1, metavar="S", help="measuring time per candidate and call")
    add("--rounds", type=positive(int), default=15, metavar="N", help="turns per candidate")
    add("--output", type=Path, metavar="FILE", help="default: the table of this GPU in kernels/tuned")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def pick(args: argparse.Namespace) -> tuple[torch.device, list[str]]:
    """Return the GPU and the operators.

    Raises:
        Refused: nothing can be tuned here, or there is no such operator.
    """
    if missing := BACKENDS["triton"].unavailable_reasons():
        raise Refused(f"There is nothing to tune here: {'; '.join(missing)}.")
    device = prepare_torch(args.device, threads=None)
    if device.type != "cuda":
        raise Refused("There is nothing to tune here: kernels are tuned on a CUDA device, not on a CPU.")
    known = list(BACKENDS["triton"].supported)
    if unknown := [name for name in args.op if name not in {"all", *known}]:
        raise Refused(f"The Triton backend has no operator {unknown[0]!r}; it has {', '.join(known)}. Or all.")
    return device, known if "all" in args.op else args.op


def recorded(name: str, device: torch.device, operators: list[str], seed: int) -> list[Call]:
    """Return the calls of these operators in inference and in a training step, each shape once."""
    network, _ = load(name, None, seed)
    network = network.to(device)
    frames = synthetic_frames(1, 1, *network.config.resolution, seed)[0].to(device)
    calls = [*inference_calls(network, frames), *training_calls(network, frames, backward=True)]
    return [call for call in distinct(calls) if call.operator in operators]


@dataclass
class Line:
    """A line of the table to write.

    Attributes:
        default: the launcher's own options.
        options: candidates by their text.
        samples: milliseconds of one pass over all calls, by candidate and round.
        calls: number of different calls measured.
        failed: reasons why candidates failed on a call.
    """

    default: launch.Options
    options: dict[str, launch.Options] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    calls: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, samples: dict[str, list[float]], times: int) -> None:
        """Add the samples of another call, which is made ``times`` times."""
        for name, ms in samples.items():
            before = self.samples.get(name, [0.0] * len(ms))
            self.samples[name] = [a + times * b for a, b in zip(before, ms, strict=True)]
        self.calls += 1

    def best(self) -> str:
        """Return the fastest candidate that ran every call; the default unless it wins beyond both spreads."""
        default = self.samples[DEFAULT]
        fair = {name: ms for name, ms in self.samples.items() if name not in self.failed}
        name = min(fair, key=lambda n: median(fair[n]))
        gained = median(fair[name]) <= (1 - LEAST_GAIN) * median(default)
        separate = quantile(fair[name], 0.9) < quantile(default, 0.1)
        return name if gained and separate else DEFAULT

    def to_dict(self) -> Json:
        return {
            "best": self.best(),
            "calls": self.calls,
            "default": self.default,
            "failed": self.failed,
            "ms_by_round": self.samples,
        }


def candidates() -> dict[str, list[launch.Options]]:
    """Return the CANDIDATES of all kernel modules, by the kernel's name in tables."""
    found: dict[str, list[launch.Options]] = {}
    for module in launch.modules():
        listed = getattr(module, "CANDIDATES", {})
        assert not found.keys() & listed.keys(), f"{module.__name__} repeats candidates of a kernel"
        found |= listed
    return found


def triton_function(call: Call) -> Callable[[], Any] | None:
    """Return the Triton implementation of a call, without the dispatcher; None if it does not support the call."""
    backend = BACKENDS["triton"]
    if backend.not_supported_reasons(call.operator, tuple(call.arguments)):
        return None
    function = backend.supported[call.operator]
    return lambda: function(*call.arguments)


class Tuner:
    """Tries every candidate on every call.

    Attributes:
        lines: results by line of the table.
        wrong: messages about candidates whose output does not match the default's.
    """

    def __init__(self, device: torch.device, budget: Budget, options: dict[str, list[launch.Options]]) -> None:
        self.device, self.budget, self.options = device, budget, options
        self.lines: dict[str, Line] = {}
        self.wrong: list[str] = []

    def call(self, run: Callable[[], Any], dtype: str, times: int = 1) -> None:
        """Tune the launches of this call, one kernel after the other."""
        with launch.lookups() as lookups:
            run()
        for name, lookup in lookups.items():
            if lookup.kernel in self.options:
                self.line(name, lookup, run, dtype, times)

    def line(self, name: str, lookup: launch.Lookup, run: Callable[[], Any], dtype: str, times: int) -> None:
        line = self.lines.setdefault(name, Line(lookup.default))
        with launch.forced(name, {}):
            expected = [t.clone() for t in tensors(run())]
        cases = [self.case(DEFAULT, name, {}, run)]
        same = []  # candidates that are this call's default: their time is the default's
        for options in self.options[lookup.kernel]:
            text = json.dumps(options, sort_keys=True)
            if text in line.failed:
                continue
            line.options[text] = options
            if lookup.default | options == lookup.default:
                same.append(text)
                continue
            try:
                with launch.forced(name, options):
                    reason = difference(tensors(run()), expected, dtype)
                if reason:
                    self.wrong.append(f"{name} with {text}: {reason}")
                else:
                    cases.append(self.case(text, name, options, run))
            except Exception as error:  # any error of a compiler or driver about options that do not fit
                reason = f"{type(error).__name__}: {one_line(error)}"
            if reason:
                line.failed[text] = reason
        timed = measure(cases, self.device, self.budget)
        found = {case.name[0]: samples.ms_per_item() for case, samples in zip(cases, timed, strict=True)}
        line.add(found | dict.fromkeys(same, found[DEFAULT]), times)

    def case(self, text: str, name: str, options: launch.Options, run: Callable[[], Any]) -> Case:
        def context() -> AbstractContextManager[None]:
            return launch.forced(name, options)

        with context():
            step = captured(run, self.device, REPEATS)
        return Case((text,), step, REPEATS, context)

    def launches(self) -> dict[str, launch.Options]:
        """Return the lines for which a candidate is faster than the default."""
        best = {name: line.best() for name, line in self.lines.items()}
        return {name: self.lines[name].options[text] for name, text in best.items() if text != DEFAULT}


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def difference(outputs: list[Tensor], expected: list[Tensor], dtype: str) -> str:
    """Return why outputs differ from the default's; empty if they match within rounding. Integers must be equal."""
    integers = [i for i, t in enumerate(expected) if not t.is_floating_point()]
    if not all(torch.equal(outputs[i], expected[i]) for i in integers):
        return "its labels are not the default's"
    rest = [i for i in range(len(expected)) if i not in integers]
    if not rest:
        return ""
    return parity.compare_tensors(
        [outputs[i] for i in rest], [expected[i] for i in rest], TOLERANCES[DTYPES[dtype]]
    ).reason


def merged(before: Json, tuner: Tuner) -> Json:
    """Return launches and samples of the table: those measured now, and those of earlier runs for other lines."""
    launches = {k: v for k, v in before.get("launches", {}).items() if k not in tuner.lines} | tuner.launches()
    samples = before.get("samples", {}) | {name: line.to_dict() for name, line in tuner.lines.items()}
    return {"launches": dict(sorted(launches.items())), "samples": dict(sorted(samples.items()))}


def tune(args: argparse.Namespace) -> int:
    device, operators = pick(args)
    path = args.output or launch.table_path(torch.cuda.get_device_name(device))
    probe_writable(path)
    before = json.loads(path.read_text()) if path.is_file() else {}
    tuner = Tuner(device, Budget(args.seconds, args.rounds, warmup_seconds=0.05), candidates())
    watch = machine.Watch(device)
    about = {"environment": machine.describe(device), "readings": watch.readings}
    watch.read("before")
    try:
        for name in pick_models(args.model):
            calls = recorded(name, device, operators, args.seed)
            for dtype in args.dtype:
                log(f"{name}, {dtype}: {len(calls)} calls")
                for call in (call.to(DTYPES[dtype]) for call in calls):
                    if run := triton_function(call):
                        with inference("triton"):
                            tuner.call(run, dtype, call.times)
                        # After every call: a candidate may leave the GPU in no state to go on.
                        write_json(path, merged(before, tuner) | about)
            del calls
            torch.cuda.empty_cache()
            watch.read("during")
    except KeyboardInterrupt:
        print(f"\nStopped. Finished results are in {path}.", file=sys.stderr)
        return 130
    write_json(path, merged(before, tuner) | about)
    print_summary(tuner, path)
    return 2 if tuner.wrong else 0


def print_summary(tuner: Tuner, path: Path) -> None:
    chosen = tuner.launches()
    for name, options in chosen.items():
        log(f"{name}: {options}")
    for message in tuner.wrong:
        log(f"wrong: {message}")
    log(f"{len(tuner.lines)} lines were measured, {len(chosen)} beat their default; all samples are in {path}.")


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    try:
        return tune(args)
    except Refused as refusal:
        print(f"bench/tune.py: {refusal}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
