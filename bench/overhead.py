"""What a call costs beside its computation: each operator on maps so small that little is left to compute.

    python bench/overhead.py
    python bench/overhead.py --device cuda --dtype float16 --json overhead.json

Calls are issued back to back and waited for at the end, so on a GPU this is the host's time of a call, launches
included: what a CUDA graph saves. ``whole`` is the operator as its users call it; ``alone`` its implementation called
past checks, the choice of a backend and torch's dispatcher, which together are the difference.
Exit code: 0 measured, 1 something could not be run (a sentence says what), 2 a backend failed the comparison.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Run as a script, the folder bench/ comes first on the path; its parent is what imports need.
_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [_ROOT, *(p for p in sys.path if p not in {_ROOT, str(Path(__file__).resolve().parent)})]

import torch  # noqa: E402

from bench import report  # noqa: E402
from bench.calls import WHOLE, Call  # noqa: E402
from bench.harness import Budget, Case, Samples, median  # noqa: E402
from bench.operators import OperatorRun, add_operators, describe, pick_backends, pick_operators  # noqa: E402
from bench.options import add_device, measuring_parser, pick_models, prepare_torch  # noqa: E402
from bench.run import run_script, say  # noqa: E402
from bench.subject import Refused, settings  # noqa: E402
from hyperseg.ops import BACKENDS, BackendError  # noqa: E402

SMALL = (128, 128)  # the frame whose calls are recorded


class OverheadRun(OperatorRun):
    """A row for each operator and backend: microseconds a call of the operator, and of its implementation alone."""

    kind = "hyperseg-overhead"

    def introduce(self) -> None:
        say(f"settings  {self.args.dtype}, TF32 off, batch {self.args.batch}, seed {self.args.seed}")

    def calls(self, network: torch.nn.Module, size: tuple[int, int]) -> list[Call]:
        """Of each operator the call with the least to do."""
        smallest: dict[str, Call] = {}
        for call in super().calls(network, size):
            with settings("reference"):
                call.times = call.least_bytes(call())
            known = smallest.setdefault(call.operator, call)
            smallest[call.operator] = min(known, call, key=lambda c: c.times)
        return list(smallest.values())

    def call(self, call: Call, entry: dict[str, Any]) -> None:
        with settings("reference"):
            expected, answer = call.to(torch.float32)(), call()
        label = describe(call, answer)
        self.progress(f"{entry['name']}: {call.operator} {label}")
        cases = []
        for backend in self.backends:
            what = f"{call.operator} {label}, backend {backend}"
            whole = Case((call.operator, backend), lambda i: call(), context=lambda backend=backend: settings(backend))
            try:
                self.pass_over(call, backend)
                result = self.check(whole, call, expected, answer)
            except (Refused, BackendError) as refusal:
                self.tell(entry, str(refusal))
                continue
            if not result.passed:
                self.refuse(entry, result.refusal(what, "before timing"), wrong=True)
                continue
            function = BACKENDS[backend].supported[call.operator]
            alone = Case(whole.name, lambda i, function=function: function(*call.arguments), context=whole.context)
            cases += [whole, alone]
        samples = self.time(cases)
        for case, whole_samples, alone_samples in zip(cases[::2], samples[::2], samples[1::2], strict=True):
            times = {"whole": microseconds(whole_samples), "alone": microseconds(alone_samples)}
            between = [w - a for w, a in zip(times["whole"], times["alone"], strict=True)]
            entry["rows"].append(
                {
                    "operator": case.name[0],
                    "backend": case.name[1],
                    "call": label,
                    "microseconds": times | {"between": between},
                    "raw": {"whole": asdict(whole_samples), "alone": asdict(alone_samples)},
                }
            )

    def table(self, rows: list[dict[str, Any]]) -> str:
        head = ["operator", "call", "backend", "whole us", "alone us", "between us"]
        body = [
            [row["operator"], row["call"], row["backend"], *(spread(times) for times in row["microseconds"].values())]
            for row in rows
        ]
        return report.table(head, body, left=3)

    def close(self, rows: list[dict[str, Any]]) -> None:
        say("\n" + report.bullets(NOTES))


def microseconds(samples: Samples) -> list[float]:
    """Of a call, round by round."""
    return [1e3 * ms / n for ms, n in zip(samples.window_ms, samples.window_images, strict=True)]


def spread(times: list[float]) -> str:
    return f"{median(times):.1f} ({min(times):.1f} to {max(times):.1f})"


NOTES = (
    "whole: a call of the operator; alone: of the backend's function. They take turns in one process; medians of the "
    "rounds, with the least and the most. between: their difference, round by round.",
    f"The calls are those of the network on a frame of {SMALL[0]}x{SMALL[1]}, of each operator the smallest.",
)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = measuring_parser("bench/overhead.py", __doc__, model="hyperseg-s", row="row", quick="the same calls")
    add_device(parser)
    add_operators(parser)
    parser.set_defaults(resolution=SMALL)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)

    def make() -> OverheadRun:
        device = prepare_torch(args)
        if {*WHOLE} & {*args.op}:
            raise Refused("A whole decoder is no single call; bench/ops.py times it.")
        operators = [name for name in pick_operators(args.op, args.backward) if name not in WHOLE]
        budget = Budget(
            args.seconds or (0.2 if args.quick else 1.0), 2 if args.quick else 10, args.iterations, warmup_seconds=0.3
        )
        return OverheadRun(args, device, pick_models(args.model), operators, pick_backends(args.backend), budget)

    return run_script("bench/overhead.py", args, make)


if __name__ == "__main__":
    sys.exit(main())
