"""The tables and pictures of the documentation, from measured results.

    python bench/figures.py                 # writes them anew
    python bench/figures.py --check         # only says which are not what the results say

In README.md and bench/NOTES.md stand blocks

    <!-- figures: peers xeon-2.5ghz-2vcpu-peers.json -->
    <!-- end of figures -->

Between the two lines goes what a file of bench/results/ has to say: `peers` and `fps` are for what bench/peers.py and
bench/fps.py wrote, `ops` (the operators of a frame) and `decoders` (all levels at once) for bench/ops.py. Pictures go
to docs/figures/; each carries the hash of its result.
Exit code: 0 all is as the results say, 1 a block or a file cannot be used, 2 (--check) something is out of date.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Run as a script, the folder bench/ comes first on the path; its parent is what imports need.
_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [_ROOT, *(p for p in sys.path if p not in {_ROOT, str(Path(__file__).resolve().parent)})]

from bench import plots  # noqa: E402
from bench.calls import DECODER, WHOLE  # noqa: E402
from bench.options import Parser  # noqa: E402
from bench.report import fixed, read_json  # noqa: E402
from bench.subject import Refused  # noqa: E402

DOCUMENTS = ("README.md", "bench/NOTES.md")
RESULTS = "bench/results"
PICTURES = "docs/figures"
BLOCK = re.compile(
    r"(?P<begin>^<!-- figures: (?P<kind>\S+) (?P<file>\S+) -->\n).*?(?P<end>^<!-- end of figures -->$)",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Result:
    """A file of bench/results/."""

    stem: str
    document: dict[str, Any]
    fingerprint: str

    @property
    def path(self) -> str:
        return f"`{RESULTS}/{self.stem}.json`"

    @property
    def where(self) -> str:
        """The machine and the software, in half a sentence."""
        environment = self.document["environment"]
        device, cpu, software = (environment[key] for key in ("device", "cpu", "software"))
        threads = f", {cpu['threads']} threads" if device["type"] == "cpu" else ""
        versions = [f"hyperseg {str(environment['git']['commit'])[:12]}", f"torch {software['torch']}"]
        if device["type"] == "cuda":
            versions += [f"triton {software['triton']}", f"CUDA {software['cuda']}"]
        return f"{device['name']}{threads}; {', '.join(versions)}; {environment['time'][:10]}"

    @property
    def dtype(self) -> str:
        return " and ".join(dict.fromkeys(entry["dtype"] for entry in self.networks))

    @property
    def timed(self) -> str:
        """How the operators were."""
        rows = [row for entry in self.networks for row in entry["rows"]]
        launched = [row for row in rows if not row.get("calls_in_graph")]
        if len(launched) == len(rows):
            return "medians of calls issued back to back"
        apart = ", ".join(dict.fromkeys(f"{row['operator']} of {row['backend']}" for row in launched))
        return "medians of calls in CUDA graphs" + (f" (but {apart}, launched one by one)" if apart else "")

    @property
    def batch(self) -> int:
        return self.document.get("arguments", {}).get("batch", 1)

    @property
    def networks(self) -> list[dict[str, Any]]:
        return [entry for entry in self.document["models"] if entry["rows"]]


@dataclass(frozen=True)
class Picture:
    """``draw(path, fingerprint)`` writes it; ``what`` is for those who cannot see it."""

    name: str
    what: str
    draw: Callable[[Path, str], None]


@dataclass(frozen=True)
class Figures:
    """What one block shows: pictures, a table, a line of text."""

    samples: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    pictures: Sequence[Picture]

    def markdown(self, pictures_from: str) -> str:
        lines = [f"![{p.what}]({pictures_from}/{p.name})\n" for p in self.pictures]
        lines += ["| " + " | ".join(self.header) + " |", "| --- " * len(self.header) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        caption = textwrap.fill(f"{self.caption} Samples: {self.samples}.", 120, break_on_hyphens=False)
        return "\n".join(["", *lines, "", caption, ""])


def spread(summary: dict[str, float]) -> str:
    """A median, with the least and the most."""
    return f"{fixed(summary['p50'], 3)} ({fixed(summary['min'], 3)} to {fixed(summary['max'], 3)})"


def times(ratio: dict[str, float] | None) -> str:
    return "-" if ratio is None else f"{fixed(ratio['median'], 3)}x"


def size(entry: dict[str, Any]) -> str:
    return "x".join(map(str, entry["resolution"]))


def peers(result: Result) -> Figures:
    """The engine beside other runtimes, from frame to labels."""
    rows, bars = [], []
    for entry in result.networks:
        for row in sorted(entry["rows"], key=lambda row: row["latency_ms"]["p50"]):
            cells = [spread(row["latency_ms"]), fixed(row["throughput"]["fps"], 3), times(row["over_eager"])]
            rows.append([f"`{entry['name']}` {size(entry)}", f"{row['peer']}: {row['about']}", *cells])
            bars.append(plots.Bar(entry["name"], row["peer"], row["latency_ms"]))
    caption = f"From a uint8 frame to labels, {result.dtype}, batch 1, random weights; {result.where}."
    header = ["network", "runs in", "ms: median (least to most)", "images/s", "of eager's speed"]
    what = "Bars: milliseconds from frame to labels, by runtime"
    return Figures(
        result.path, caption, header, rows, [picture(result, "", what, plots.bars, bars, "ms from frame to labels")]
    )


def fps(result: Result) -> Figures:
    """The networks in every mode and backend."""
    rows, bars = [], []
    for entry in result.networks:
        for mode, backend in dict.fromkeys((row["mode"], row["backend"]) for row in entry["rows"]):
            found = {r["scope"]: r for r in entry["rows"] if (r["mode"], r["backend"]) == (mode, backend)}
            scopes = [found.get(scope) for scope in ("network", "labels", "frame", "host")]
            cells = ["-" if row is None else fixed(row["latency_ms"]["p50"], 3) for row in scopes]
            last = next(row for row in reversed(scopes) if row is not None)
            rows.append(
                [f"`{entry['name']}` {size(entry)}", mode, backend, *cells, fixed(last["throughput"]["fps"], 3)]
            )
            bars.append(plots.Bar(entry["name"], f"{mode}, {backend}", last["latency_ms"]))
    caption = (
        f"Milliseconds, {result.dtype}, batch 1, medians; scopes as bench/fps.py explains them, images/s of the last; "
        f"{result.where}."
    )
    header = ["network", "mode", "backend", "network", "to labels", "from frame", "host to host", "images/s"]
    what = "Bars: milliseconds a frame, by mode and backend"
    return Figures(result.path, caption, header, rows, [picture(result, "", what, plots.bars, bars, "ms a frame")])


def ops(result: Result) -> Figures:
    """What the operators of a frame take together, and how close each call comes to the machine's limits."""
    rows, parts, dots = [], [], []
    for entry in result.networks:
        frame = [row for row in entry["rows"] if row["of"] == "frame"]
        for backend in dict.fromkeys(row["backend"] for row in frame):
            mine = [row for row in frame if row["backend"] == backend]
            total: dict[str, float] = {}
            for row in mine:
                total[row["operator"]] = total.get(row["operator"], 0) + row["times"] * per_call(row)
            if {row["operator"] for row in frame} == set(total):
                parts.append(plots.Stack(entry["name"], backend, total))
            dots += [plots.Dot(row["operator"], backend, per_call(row), row["roofline"]["percent"]) for row in mine]
            for operator, ms in total.items():
                calls = [row for row in mine if row["operator"] == operator]
                limit = sum(row["times"] * 1e3 * row["roofline"]["seconds"] for row in calls)
                count = str(sum(row["times"] for row in calls))
                cells = [fixed(ms, 3), fixed(limit, 3), f"{100 * limit / ms:.0f} %"]
                rows.append([f"`{entry['name']}` {size(entry)}", operator, backend, count, *cells])
    caption = (
        f"Milliseconds of all calls of a frame, {result.dtype}, batch {result.batch}, {result.timed}; least: what "
        f"bytes and operations take at this machine's measured rates; {result.where}."
    )
    header = ["network", "operator", "backend", "calls", "ms", "least", "of that limit"]
    pictures = [
        picture(result, "-parts", "Stacked bars: what the operators of a frame take", plots.stacks, parts),
        picture(result, "-roofline", "Dots: how close each call comes to the machine's limits", plots.roofline, dots),
    ]
    return Figures(result.path, caption, header, rows, pictures)


def decoders(result: Result) -> Figures:
    """All levels at once, beside the reference: a frame's, and those of a training step."""
    rows = []
    for entry in result.networks:
        for row in entry["rows"]:
            if row["operator"] in WHOLE:
                what = "forward" if row["operator"] == DECODER else row["call"].removeprefix("all levels, ")
                cells = [row["backend"], fixed(per_call(row), 3), times(row["over_reference"])]
                rows.append([f"`{entry['name']}` {size(entry)}", what, *cells])
    caption = f"Milliseconds of a whole decoder, {result.dtype}, batch {result.batch}, {result.timed}; {result.where}."
    return Figures(result.path, caption, ["network", "what", "backend", "ms", "speed of the reference"], rows, [])


def per_call(row: dict[str, Any]) -> float:
    """Milliseconds."""
    return 1e3 / row["throughput"]["fps"]


def picture(result: Result, suffix: str, what: str, draw: Callable, *data: Any) -> Picture:
    return Picture(f"{result.stem}{suffix}.svg", what, lambda path, mark: draw(path, mark, *data))


# What a block may show, and of which kind the result has to be.
KINDS: dict[str, tuple[str, Callable[[Result], Figures]]] = {
    "peers": ("hyperseg-peers", peers),
    "fps": ("hyperseg-fps", fps),
    "ops": ("hyperseg-ops", ops),
    "decoders": ("hyperseg-ops", decoders),
}


def load(root: Path, name: str) -> Result:
    path = root / RESULTS / name
    try:
        document = read_json(path)
        return Result(path.stem, document, hashlib.sha256(path.read_bytes()).hexdigest()[:16])
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be used: {error}") from error


def update(root: Path, check: bool) -> list[str]:
    """Write what is not as the results say, or only look for it; returns what that is."""
    stale = []
    for document in (root / name for name in DOCUMENTS if (root / name).is_file()):
        text = document.read_text(encoding="utf-8")

        def fill(block: re.Match, document: Path = document) -> str:
            if block["kind"] not in KINDS:
                raise Refused(f"{document}: there are no figures {block['kind']!r}; there are {', '.join(KINDS)}.")
            result = load(root, block["file"])
            wanted, draw = KINDS[block["kind"]]
            if result.document["kind"] != wanted:
                raise Refused(f"{block['file']} is of kind {result.document['kind']!r}, not {wanted!r}.")
            figures = draw(result)
            for one in figures.pictures:
                path = root / PICTURES / one.name
                if not path.is_file() or result.fingerprint not in path.read_text(encoding="utf-8"):
                    stale.append(str(path.relative_to(root)))
                    if not check:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        one.draw(path, result.fingerprint)
            depth = len(document.relative_to(root).parts) - 1
            return block["begin"] + figures.markdown("../" * depth + PICTURES) + block["end"]

        new = BLOCK.sub(fill, text)
        if new != text:
            stale.append(str(document.relative_to(root)))
            if not check:
                document.write_text(new, encoding="utf-8")
    return stale


def main(argv: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="bench/figures.py", description=__doc__, formatter_class=form)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--root", type=Path, default=Path(_ROOT), metavar="FOLDER", help="another checkout")
    args = parser.parse_args(argv)
    try:
        stale = update(args.root, args.check)
    except Refused as refusal:
        print(f"bench/figures.py: {refusal}", file=sys.stderr)
        return 1
    print("\n".join(stale) or "All figures are as the results say.")
    return 2 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
