"""What measured results say about the order in which `auto` tries the backends (hyperseg/ops/_dispatch.py).

    python bench/ops.py --model all --backward --json ops.json
    python bench/preference.py ops.json

For each operator: the time of all its calls in all measured networks, by backend. A difference that some round of the
measurement contradicts decides nothing.
Exit code: 0 the table agrees, 1 a file cannot be used, 2 the table disagrees (the lines to put there are printed).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Run as a script, the folder bench/ comes first on the path; its parent is what imports need.
_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [_ROOT, *(p for p in sys.path if p not in {_ROOT, str(Path(__file__).resolve().parent)})]

from bench import report  # noqa: E402
from bench.calls import WHOLE  # noqa: E402
from bench.harness import median  # noqa: E402
from bench.options import Parser  # noqa: E402
from hyperseg.ops import _dispatch  # noqa: E402


@dataclass(frozen=True)
class Verdict:
    """Milliseconds of an operator's calls by backend, one figure a round."""

    device: str
    dtype: str
    operator: str
    rounds: dict[str, list[float]]

    @property
    def measured(self) -> list[str]:
        """Fastest first."""
        return sorted(self.rounds, key=lambda backend: median(self.rounds[backend]))

    @property
    def taken(self) -> str | None:
        """What `auto` takes of those measured."""
        order = _dispatch.order(self.operator, self.device)
        return next((name for name in order if name in self.rounds), None)

    @property
    def agrees(self) -> bool:
        """False only where another backend was faster in every round."""
        if self.taken is None:
            return False
        pairs = zip(self.rounds[self.measured[0]], self.rounds[self.taken], strict=True)
        return not all(fastest < taken for fastest, taken in pairs)

    @property
    def line(self) -> str:
        """For EXCEPTIONS: fastest first, down to the reference, which serves everything; what is unknown before it."""
        faster = self.measured[: self.measured.index("reference")] if "reference" in self.rounds else self.measured
        unknown = [n for n in _dispatch.order(self.operator, self.device) if n not in {*self.rounds, "reference"}]
        order = [*faster, *(unknown if len(faster) >= len(self.rounds) - 1 else []), "reference"]
        names = json.dumps(order)[1:-1] + "," * (len(order) == 1)
        return f'    ("{self.device}", "{self.operator}"): ({names}),'


def verdicts(document: dict[str, Any]) -> list[Verdict]:
    """One for each operator that several backends served, from calls that all of them served."""
    device = document["environment"]["device"]["type"]
    found = []
    rows = operator_rows(document)
    for operator in dict.fromkeys(row["operator"] for _, row in rows):
        calls: dict[tuple, dict[str, list[float]]] = {}
        for name, row in rows:
            if row["operator"] == operator:
                key = (name, json.dumps([row["call"], row["arguments"]]))
                calls.setdefault(key, {})[row["backend"]] = [row["times"] * ms for ms in window_ms(row)]
        backends = list(dict.fromkeys(backend for served in calls.values() for backend in served))
        shared = [served for served in calls.values() if len(served) == len(backends)]
        if len(backends) > 1 and shared:
            totals = {b: [sum(ms) for ms in zip(*(served[b] for served in shared), strict=True)] for b in backends}
            found.append(Verdict(device, document["arguments"]["dtype"], operator, totals))
    return found


def operator_rows(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(network, row); without the decoder as a whole, which is no operator and has no order of backends."""
    rows = [(entry["name"], row) for entry in document["models"] for row in entry["rows"]]
    return [(name, row) for name, row in rows if row["operator"] not in WHOLE]


def window_ms(row: dict[str, Any]) -> list[float]:
    """Milliseconds of a call in each round."""
    return [ms / n for ms, n in zip(row["raw"]["window_ms"], row["raw"]["window_images"], strict=True)]


def read(path: Path) -> dict[str, Any]:
    """A result of bench/ops.py.

    Raises:
        ValueError: it is none; the message says so.
    """
    try:
        document = report.read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if document.get("kind") != "hyperseg-ops":
        raise ValueError(f"{path} is no result of bench/ops.py.")
    return document


def show(found: list[Verdict]) -> str:
    body = []
    for verdict in found:
        times = ", ".join(f"{name} {report.fixed(median(verdict.rounds[name]))}" for name in verdict.measured)
        agrees = "agrees" if verdict.agrees else f"DISAGREES: {verdict.measured[0]} was faster in every round"
        body.append([verdict.device, verdict.dtype, verdict.operator, times, str(verdict.taken), agrees])
    return report.table(["device", "dtype", "operator", "ms of all calls", "auto takes", "the table"], body, left=6)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="bench/preference.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="FILE", help="what bench/ops.py --json wrote")
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
        print("\nFor EXCEPTIONS in hyperseg/ops/_dispatch.py:")
        print("\n".join(dict.fromkeys(verdict.line for verdict in wrong)))
    return 2 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
