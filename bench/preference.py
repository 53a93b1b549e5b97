"""Compare the order in which `auto` tries the backends (hyperseg/ops/backends/dispatch.py) with measured results.

    python bench/ops.py --model all --backward --json ops.json
    python bench/preference.py ops.json

For each operator this adds up the time of all its calls in all measured networks, by backend. A backend counts as
faster only if it was faster in every round.
Exit code: 0 the table agrees, 1 a file cannot be used, 2 the table disagrees (the lines to put there are printed).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.core.calls import WHOLE
from bench.core.options import Parser
from bench.core.results import Results, Row, read_results
from bench.core.tables import fixed, table
from bench.core.timing import median
from hyperseg.ops.backends import dispatch


@dataclass(frozen=True)
class Verdict:
    """Milliseconds of all calls of an operator, by backend and round."""

    device: str
    dtype: str
    operator: str
    rounds: dict[str, list[float]]

    @property
    def measured(self) -> list[str]:
        """Backends, the fastest first."""
        return sorted(self.rounds, key=lambda backend: median(self.rounds[backend]))

    @property
    def chosen(self) -> str | None:
        """The measured backend that `auto` chooses."""
        order = dispatch.order(self.operator, self.device)
        return next((name for name in order if name in self.rounds), None)

    @property
    def agrees(self) -> bool:
        """False only if another backend was faster in every round."""
        if self.chosen is None:
            return False
        pairs = zip(self.rounds[self.measured[0]], self.rounds[self.chosen], strict=True)
        return not all(fastest < chosen for fastest, chosen in pairs)

    @property
    def line(self) -> str:
        """The line for EXCEPTIONS: fastest first, then unmeasured backends, then the reference, which supports all."""
        faster = self.measured[: self.measured.index("reference")] if "reference" in self.rounds else self.measured
        unknown = [n for n in dispatch.order(self.operator, self.device) if n not in {*self.rounds, "reference"}]
        order = [*faster, *(unknown if len(faster) >= len(self.rounds) - 1 else []), "reference"]
        names = json.dumps(order)[1:-1] + "," * (len(order) == 1)
        return f'    ("{self.device}", "{self.operator}"): ({names}),'


def verdicts(results: Results) -> list[Verdict]:
    """Return one verdict per operator that several backends ran, from the calls that all of them ran."""
    device = results.environment["device"]["type"]
    found = []
    rows = operator_rows(results)
    for operator in dict.fromkeys(row.operator for _, row in rows):
        calls: dict[tuple[str, str], dict[str, list[float]]] = {}
        for name, row in rows:
            if row.operator == operator:
                key = (name, json.dumps([row.call, row.arguments]))
                calls.setdefault(key, {})[row.backend] = [row.times * ms for ms in row.samples.ms_per_item()]
        backends = list(dict.fromkeys(backend for by_backend in calls.values() for backend in by_backend))
        shared = [by_backend for by_backend in calls.values() if len(by_backend) == len(backends)]
        if len(backends) > 1 and shared:
            totals = {b: [sum(ms) for ms in zip(*(each[b] for each in shared), strict=True)] for b in backends}
            found.append(Verdict(device, results.arguments["dtype"], operator, totals))
    return found


def operator_rows(results: Results) -> list[tuple[str, Row]]:
    """Return (network, row) without whole decoders, which are not operators and have no order of backends."""
    rows = [(entry.name, row) for entry in results.models for row in entry.rows]
    return [(name, row) for name, row in rows if row.operator not in WHOLE]


def read(path: Path) -> Results:
    """Read a result of bench/ops.py.

    Raises:
        ValueError: it cannot be read, or is another result.
    """
    try:
        results = read_results(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if results.kind != "hyperseg-ops":
        raise ValueError(f"{path} is not a result of bench/ops.py.")
    return results


def show(found: list[Verdict]) -> str:
    body = []
    for verdict in found:
        times = ", ".join(f"{name} {fixed(median(verdict.rounds[name]))}" for name in verdict.measured)
        agrees = "agrees" if verdict.agrees else f"DISAGREES: {verdict.measured[0]} was faster in every round"
        body.append([verdict.device, verdict.dtype, verdict.operator, times, str(verdict.chosen), agrees])
    return table(["device", "dtype", "operator", "ms of all calls", "auto chooses", "the table"], body, left=6)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("bench/preference.py", __doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="FILE", help="written by bench/ops.py --json")
    args = parser.parse_args(argv)
    try:
        found = [verdict for path in args.results for verdict in verdicts(read(path))]
    except ValueError as error:
        print(f"bench/preference.py: {error}", file=sys.stderr)
        return 1
    if not found:
        print("No operator was measured with more than one backend: nothing to compare.")
        return 1
    print(show(found))
    wrong = [verdict for verdict in found if not verdict.agrees]
    if wrong:
        print("\nFor EXCEPTIONS in hyperseg/ops/backends/dispatch.py:")
        print("\n".join(dict.fromkeys(verdict.line for verdict in wrong)))
    return 2 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
