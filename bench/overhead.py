"""Overhead per call: each operator on maps so small that little is left to compute.

    python bench/overhead.py
    python bench/overhead.py --device cuda --dtype float16 --json overhead.json

Calls are issued back to back and synchronised at the end, so on a GPU this is the host's time per call, launches
included: the time that a CUDA graph saves. ``whole`` is the operator as users call it, ``alone`` its implementation
without checks, the choice of a backend and PyTorch's dispatcher, which together are the difference.
Exit code: 0 measured, 1 something could not be run (a message gives the reason), 2 a backend failed the comparison.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.core.calls import WHOLE, Call
from bench.core.errors import Refused
from bench.core.networks import inference
from bench.core.options import add_device, measuring_parser, pick_models, prepare_torch
from bench.core.parity import Parity
from bench.core.results import NetworkResults, Overhead, Row
from bench.core.run import log, run_command
from bench.core.tables import bullets, table
from bench.core.timing import Budget, Case, Samples, median, summarise, throughput
from bench.ops import OperatorRun, add_operators, describe, operator_case, pick_backends, pick_operators
from hyperseg.models import HyperSeg
from hyperseg.ops import BACKENDS, BackendError

SMALL = (128, 128)  # (height, width) of the frame whose calls are recorded


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = measuring_parser("bench/overhead.py", __doc__, model="hyperseg-s", row="row", quick="the same calls")
    add_device(parser)
    add_operators(parser)
    parser.set_defaults(resolution=SMALL)
    return parser.parse_args(argv)


class OverheadRun(OperatorRun):
    """Rows: microseconds per call of each operator and backend, and of the implementation alone."""

    kind = "hyperseg-overhead"

    def print_settings(self) -> None:
        log(f"settings  {self.args.dtype}, TF32 off, batch {self.args.batch}, seed {self.args.seed}")

    def print_notes(self, rows: list[Row]) -> None:
        log("\n" + bullets(NOTES))

    def calls(self, network: HyperSeg, size: tuple[int, int]) -> list[Call]:
        """Return the call of each operator with the fewest bytes."""
        smallest: dict[str, tuple[int, Call]] = {}
        for call in super().calls(network, size):
            with inference("reference"):
                found = call.least_bytes(call()), call
            known = smallest.setdefault(call.operator, found)
            smallest[call.operator] = min(known, found, key=lambda pair: pair[0])
        return [call for _, call in smallest.values()]

    def measure_call(self, call: Call, entry: NetworkResults) -> None:
        expected = self.expected(call)
        label = describe(call, expected.rounded)
        self.progress(f"{entry.name}: {call.operator} {label}")
        cases: list[Case] = []
        checks: list[Parity] = []
        for backend in self.backends:
            whole = operator_case(call, backend)
            try:
                self.require_support(call, backend)
                result = self.check(whole, call, expected)
            except (Refused, BackendError) as refusal:
                self.report_unsupported(entry, str(refusal))
                continue
            if not result.passed:
                what = f"{call.operator} {label}, backend {backend}"
                self.refuse(entry, result.message(what, "before timing"), wrong=True)
                continue
            cases += [whole, self.alone(whole, call, backend)]
            checks.append(result)
        samples = self.time(cases)
        for case, check, whole_samples, alone in zip(cases[::2], checks, samples[::2], samples[1::2], strict=True):
            entry.rows.append(
                Row(
                    operator=case.name[0],
                    backend=case.name[1],
                    call=label,
                    parity_before=check,
                    latency_ms=summarise(whole_samples.latency_ms),
                    throughput=throughput(whole_samples),
                    overhead_us=overhead(whole_samples, alone),
                    samples=whole_samples,
                    samples_alone=alone,
                )
            )

    def alone(self, whole: Case, call: Call, backend: str) -> Case:
        """Return the case of the backend's function, called directly."""
        function = BACKENDS[backend].supported[call.operator]
        return Case(whole.name, lambda i: function(*call.arguments), context=whole.context)

    def table(self, rows: Sequence[Row]) -> str:
        head = ["operator", "call", "backend", "whole us", "alone us", "between us"]
        body = []
        for row in rows:
            found = row.overhead_us
            times = [] if found is None else [spread(us) for us in (found.whole, found.alone, found.between)]
            body.append([row.operator, row.call, row.backend, *times])
        return table(head, body, left=3)


def overhead(whole: Samples, alone: Samples) -> Overhead:
    whole_us, alone_us = ([1e3 * ms for ms in samples.ms_per_item()] for samples in (whole, alone))
    return Overhead(whole_us, alone_us)


def spread(times: list[float]) -> str:
    return f"{median(times):.1f} ({min(times):.1f} to {max(times):.1f})"


NOTES = (
    "whole: a call of the operator; alone: of the backend's function. They alternate in one process; medians of the "
    "rounds, with minimum and maximum. between: their difference, round by round.",
    f"The calls are those of the network on a frame of {SMALL[0]}x{SMALL[1]}, the smallest of each operator.",
)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)

    def make() -> OverheadRun:
        device = prepare_torch(args.device, args.threads)
        if {*WHOLE} & {*args.op}:
            raise Refused("A whole decoder is not a single call; bench/ops.py times it.")
        operators = [name for name in pick_operators(args.op, args.backward) if name not in WHOLE]
        seconds, rounds = args.seconds or (0.2 if args.quick else 1.0), 2 if args.quick else 10
        budget = Budget(seconds, rounds, args.iterations, warmup_seconds=0.3)
        return OverheadRun(args, device, pick_models(args.model), operators, pick_backends(args.backend), budget)

    return run_command("bench/overhead.py", args, make)


if __name__ == "__main__":
    sys.exit(main())
