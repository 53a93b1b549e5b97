"""Write the tables and plots of the documentation from measured results.

    python bench/figures.py                 # writes them
    python bench/figures.py --check         # only lists those that are out of date

README.md and bench/results/README.md contain blocks

    <!-- figures: peers xeon-amx-2vcpu-peers.json -->
    <!-- end of figures -->

Between the two lines this writes the table of a file in bench/results/: `peers` and `fps` of results of bench/peers.py
and bench/fps.py, `networks` of bench/fps.py --peers, `ops` (operators per frame) and `decoders` (all levels at once) of
bench/ops.py, `steps` of bench/train_step.py. Plots go to docs/figures/; each contains the hash of its result file.
Exit code: 0 all is up to date, 1 a block or a file cannot be used, 2 (--check) something is out of date.
"""

from __future__ import annotations

import hashlib
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.core import plots, rivals
from bench.core.calls import DECODER, WHOLE
from bench.core.errors import Refused
from bench.core.frame_peers import KINDS as WAYS
from bench.core.machine import ROOT
from bench.core.options import Parser
from bench.core.results import NetworkResults, Results, Row, read_results
from bench.core.roofline import Bound
from bench.core.tables import fixed
from bench.core.timing import Ratio, Summary
from hyperseg.models.variants import PUBLISHED

DOCUMENTS = ("README.md", "bench/results/README.md")
RESULTS = "bench/results"
PLOTS = "docs/figures"
BLOCK = re.compile(
    r"(?P<begin>^<!-- figures: (?P<kind>\S+) (?P<file>\S+) -->\n).*?(?P<end>^<!-- end of figures -->$)",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class File:
    """A file of bench/results/: name without ending, contents, and hash."""

    stem: str
    results: Results
    fingerprint: str

    @property
    def path(self) -> str:
        return f"`{RESULTS}/{self.stem}.json`"

    @property
    def where(self) -> str:
        """The machine and the software versions."""
        environment = self.results.environment
        device, cpu, software = (environment[key] for key in ("device", "cpu", "software"))
        threads = f", {cpu['threads']} threads" if device["type"] == "cpu" else ""
        if "HYPERSEG_CPUID" in environment.get("variables", {}):
            threads += ", AVX-512 and AMX hidden"
        versions = [f"hyperseg {str(environment['git']['commit'])[:12]}", f"torch {software['torch']}"]
        if device["type"] == "cuda":
            versions += [f"triton {software['triton']}", f"CUDA {software['cuda']}"]
        return f"{device['name']}{threads}; {', '.join(versions)}; {environment['time'][:10]}"

    @property
    def dtype(self) -> str:
        return " and ".join(dict.fromkeys(entry.dtype for entry in self.networks))

    @property
    def timed(self) -> str:
        """How the operators were timed."""
        rows = self.results.rows
        launched = [row for row in rows if not row.calls_in_graph]
        if len(launched) == len(rows):
            return "medians of calls issued back to back"
        others = ", ".join(dict.fromkeys(f"{row.operator} of {row.backend}" for row in launched))
        return "medians of calls in CUDA graphs" + (f" (but {others}, launched one by one)" if others else "")

    @property
    def batch(self) -> int:
        batch: int = self.results.arguments.get("batch", 1)
        return batch

    @property
    def networks(self) -> list[NetworkResults]:
        return [entry for entry in self.results.models if entry.rows]


@dataclass(frozen=True)
class Plot:
    """``draw(path, fingerprint)`` writes it; ``text`` is for readers who cannot see it."""

    name: str
    text: str
    draw: Callable[[Path, str], None]


@dataclass(frozen=True)
class Figures:
    """Contents of one block: plots, a table, a caption."""

    samples: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    plots: Sequence[Plot]

    def markdown(self, plots_from: str) -> str:
        lines = [f"![{p.text}]({plots_from}/{p.name})\n" for p in self.plots]
        lines += ["| " + " | ".join(self.header) + " |", "| --- " * len(self.header) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        caption = textwrap.fill(f"{self.caption} Samples: {self.samples}.", 120, break_on_hyphens=False)
        return "\n".join(["", *lines, "", caption, ""])


def spread(summary: Summary) -> str:
    return f"{fixed(summary.p50, 3)} ({fixed(summary.min, 3)} to {fixed(summary.max, 3)})"


def times(ratio: Ratio | None) -> str:
    return "-" if ratio is None else f"{fixed(ratio.median, 3)}x"


def network(entry: NetworkResults) -> str:
    return f"`{entry.name}` {'x'.join(map(str, entry.resolution))}"


def peers(file: File) -> Figures:
    """From frame to labels in each runtime."""
    rows, bars = [], []
    # Earlier results have no camera: their single frames followed each other at once.
    camera = any(row.camera_over_stream is not None for row in file.results.rows)
    for entry in file.networks:
        for row in sorted(entry.rows, key=lambda row: row.latency_ms.p50):
            cells = [spread(row.latency_ms), fixed(row.throughput.rate, 3), times(row.over_eager)]
            if camera:
                sgemm = row.percent_of_matmul
                cells = [cells[0], times(row.over_eager_camera), *cells[1:]]
                cells.append("-" if sgemm is None else f"{fixed(sgemm, 3)} %")
            rows.append([network(entry), f"{row.peer}: {row.about}", *cells])
            bars.append(plots.Bar(entry.name, row.peer, row.latency_ms))
    other = " (bf16: bfloat16)" if any(row.peer.endswith("-bf16") for row in file.results.rows) else ""
    caption = f"From a uint8 frame to labels, {file.dtype}{other}, batch 1, random weights; {file.where}."
    header = ["network", "runs in", "ms: median (least to most)", "images/s", "of eager's speed"]
    if camera:
        caption = (
            "Camera: single frames, all threads asleep before each; stream: frames back to back; of sgemm: FLOPs of "
            f"the plain network per second, in percent of the rate of sgemm at the same time. {caption}"
        )
        header = [*header[:2], f"camera, {header[2]}", header[4], f"stream, {header[3]}", header[4], "of sgemm"]
    text = "Bars: milliseconds from frame to labels, by runtime"
    found = plot(file, "", text, lambda path, mark: plots.bars(path, mark, bars, "ms from frame to labels"))
    return Figures(file.path, caption, header, rows, [found])


def fps(file: File) -> Figures:
    """Each network in every mode and backend."""
    rows, bars = [], []
    for entry in file.networks:
        for mode, backend in dict.fromkeys((row.mode, row.backend) for row in entry.rows):
            found = {r.scope: r for r in entry.rows if (r.mode, r.backend) == (mode, backend)}
            scopes = [found.get(scope) for scope in ("network", "labels", "frame", "host")]
            cells = ["-" if row is None else fixed(row.latency_ms.p50, 3) for row in scopes]
            last = next(row for row in reversed(scopes) if row is not None)
            rows.append([network(entry), mode, backend, *cells, fixed(last.throughput.rate, 3)])
            bars.append(plots.Bar(entry.name, f"{mode}, {backend}", last.latency_ms))
    caption = (
        f"Milliseconds, {file.dtype}, batch 1, medians; scopes as bench/fps.py explains them, images/s of the last; "
        f"{file.where}."
    )
    header = ["network", "mode", "backend", "network", "to labels", "from frame", "host to host", "images/s"]
    text = "Bars: milliseconds per frame, by mode and backend"
    return Figures(
        file.path,
        caption,
        header,
        rows,
        [plot(file, "", text, lambda path, mark: plots.bars(path, mark, bars, "ms per frame"))],
    )


def networks(file: File) -> Figures:
    """A network by several ways, and networks of others, from frame to labels."""
    rows, bars = [], []
    for entry in file.networks:
        for row in sorted(entry.rows, key=lambda row: row.latency_ms.p50):
            name = row.peer or f"{entry.name}, {WAYS[row.kind]}"
            way = row.mode + (f", {row.layout}" if row.layout else "")
            published = rivals.RIVALS[row.peer].published if row.peer else own_miou(entry.name, row.kind)
            gflop = row.work.flops if row.work else None
            cells = [spread(row.latency_ms), fixed(row.throughput.rate, 3), times(row.over_reference)]
            cells += ["-" if gflop is None else fixed(gflop / 1e9, 3), published or "-"]
            rows.append([name, "x".join(map(str, entry.resolution)), way, *cells])
            bars.append(plots.Bar("", name if row.peer else f"{name}, {row.mode}", row.latency_ms))
    caption = (
        f"From uint8 frames to labels, {file.dtype}, batch {file.batch}, random weights, all rows alternating in one "
        "process; each network of others in the way that was fastest in a short trial. mIoU is what the authors "
        f"publish, at their size and with their weights; {file.where}."
    )
    header = ["network", "size", "runs", "ms: median (least to most)", "images/s", "of the official network's speed"]
    text = "Bars: milliseconds from frame to labels, by network"
    return Figures(
        file.path,
        caption,
        [*header, "GFLOP", "mIoU"],
        rows,
        [plot(file, "", text, lambda path, mark: plots.bars(path, mark, bars, "ms from frame to labels"))],
    )


def own_miou(name: str, kind: str) -> str:
    """Return the published mIoU of a network of ours; nothing without its norms, which is another network."""
    known = PUBLISHED.get(name)
    if known is None or known.miou_val is None or kind == "without-norms":
        return ""
    data = {"cityscapes": "Cityscapes", "voc": "VOC 2012"}[name.rsplit("-", 1)[1]]
    return f"{known.miou_val} % ({data} val)"


def ops(file: File) -> Figures:
    """Time per frame of each operator, and how close each call comes to the machine's limits."""
    rows, parts, dots = [], [], []
    ceilings = file.results.ceilings
    silu = ceilings is not None and ceilings.silu_per_second is not None  # older results have no such rate
    for entry in file.networks:
        frame = [row for row in entry.rows if row.of == "frame"]
        for backend in dict.fromkeys(row.backend for row in frame):
            mine = [row for row in frame if row.backend == backend]
            total: dict[str, float] = {}
            for row in mine:
                total[row.operator] = total.get(row.operator, 0) + row.times * ms_per_call(row)
            if {row.operator for row in frame} == set(total):
                parts.append(plots.Stack(entry.name, backend, total))
            limits = [(row, row.roofline) for row in mine if row.roofline is not None]
            dots += [plots.Dot(row.operator, backend, ms_per_call(row), limit.percent) for row, limit in limits]
            for operator, ms in total.items():
                least = sum(row.times * 1e3 * limit.seconds for row, limit in limits if row.operator == operator)
                count = sum(row.times for row in mine if row.operator == operator)
                cells = [fixed(ms, 3), fixed(least, 3), f"{100 * least / ms:.0f} %"]
                cells += [bounds([(row, limit) for row, limit in limits if row.operator == operator])] * silu
                rows.append([network(entry), operator, backend, str(count), *cells])
    what = "bytes, FLOPs or SiLU, whichever is slowest in a call, take" if silu else "bytes and FLOPs take"
    caption = (
        f"Milliseconds of all calls per frame, {file.dtype}, batch {file.batch}, {file.timed}; least: the time that "
        f"{what} at this machine's measured rates; {file.where}."
    )
    header = ["network", "operator", "backend", "calls", "ms", "least", "of that limit", *["bound by"] * silu]
    found = [
        plot(
            file,
            "-parts",
            "Stacked bars: milliseconds per frame, by operator",
            lambda path, mark: plots.stacks(path, mark, parts),
        ),
        plot(
            file,
            "-roofline",
            "Dots: how close each call comes to the machine's limits",
            lambda path, mark: plots.roofline(path, mark, dots),
        ),
    ]
    return Figures(file.path, caption, header, rows, found)


def bounds(limits: Sequence[tuple[Row, Bound]]) -> str:
    """Return what sets the least time, with its share of it if different calls have different limits."""
    seconds: dict[str, float] = {}
    for row, limit in limits:
        seconds[limit.by] = seconds.get(limit.by, 0) + row.times * limit.seconds
    ordered = sorted(seconds, key=lambda by: -seconds[by])
    if len(ordered) < 2:
        return "".join(ordered) or "-"
    return ", ".join(f"{by} {100 * seconds[by] / sum(seconds.values()):.0f} %" for by in ordered)


def decoders(file: File) -> Figures:
    """All levels at once, of a frame and of a training step, compared with the reference."""
    rows = []
    for entry in file.networks:
        for row in entry.rows:
            if row.operator in WHOLE:
                what = "forward" if row.operator == DECODER else row.call.removeprefix("all levels, ")
                cells = [row.backend, fixed(ms_per_call(row), 3), times(row.over_reference)]
                rows.append([network(entry), what, *cells])
    caption = f"Milliseconds of a whole decoder, {file.dtype}, batch {file.batch}, {file.timed}; {file.where}."
    return Figures(file.path, caption, ["network", "what", "backend", "ms", "speed of the reference"], rows, [])


def steps(file: File) -> Figures:
    """Training steps: time and memory of each setting and of other networks, compared with plain PyTorch."""
    rows, bars = [], []
    for entry in file.networks:
        for row in entry.rows:
            what = row.peer if row.peer else f"{row.backend}, {row.layout}, {row.blocks} blocks, {row.mode}"
            what += "" if row.amp == "none" else f", {row.amp}"
            used, share = row.used_mib, row.memory_over_reference
            cells = [spread(row.latency_ms), fixed(row.throughput.rate, 3), times(row.over_reference)]
            cells += ["-" if used is None else f"{used:.0f}", "-" if share is None else f"{share:.2f}x"]
            cells += [str(row.largest_batch or "-")]
            rows.append([f"{entry.batch} x {network(entry)}", what, *cells])
            bars.append(plots.Bar(entry.name, what, row.latency_ms))
    caption = (
        "A training step, from a batch on the device to updated weights: milliseconds (median, least to most), images "
        "per second, speed and memory relative to plain PyTorch in contiguous memory and the same autocast type; "
        f"{file.where}."
    )
    header = ["images", "step", "ms", "images/s", "speed", "MiB", "memory", "batch that fits"]
    if not any(row.largest_batch for row in file.results.rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    found = plot(
        file,
        "",
        "Bars: milliseconds per training step",
        lambda path, mark: plots.bars(path, mark, bars, "ms per training step"),
    )
    return Figures(file.path, caption, header, rows, [found])


def ms_per_call(row: Row) -> float:
    return 1e3 / row.throughput.rate


def plot(file: File, suffix: str, text: str, draw: Callable[[Path, str], None]) -> Plot:
    return Plot(f"{file.stem}{suffix}.svg", text, draw)


# Kinds of blocks: the kind of result that each takes, and its contents.
KINDS: dict[str, tuple[str, Callable[[File], Figures]]] = {
    "peers": ("hyperseg-peers", peers),
    "fps": ("hyperseg-fps", fps),
    "networks": ("hyperseg-fps", networks),
    "ops": ("hyperseg-ops", ops),
    "decoders": ("hyperseg-ops", decoders),
    "steps": ("hyperseg-train-step", steps),
}


def load(root: Path, name: str) -> File:
    path = root / RESULTS / name
    try:
        return File(path.stem, read_results(path), hashlib.sha256(path.read_bytes()).hexdigest()[:16])
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be used: {error}") from error


def update(root: Path, check: bool) -> list[str]:
    """Write the files that are out of date, unless ``check``; return their names."""
    stale = []
    for document in (root / name for name in DOCUMENTS if (root / name).is_file()):
        text = document.read_text(encoding="utf-8")

        def fill(block: re.Match[str], document: Path = document) -> str:
            if block["kind"] not in KINDS:
                raise Refused(f"{document}: there are no figures {block['kind']!r}; there are {', '.join(KINDS)}.")
            file = load(root, block["file"])
            kind, contents = KINDS[block["kind"]]
            if file.results.kind != kind:
                raise Refused(f"{block['file']} is of kind {file.results.kind!r}, not {kind!r}.")
            figures = contents(file)
            for one in figures.plots:
                path = root / PLOTS / one.name
                if not path.is_file() or file.fingerprint not in path.read_text(encoding="utf-8"):
                    stale.append(str(path.relative_to(root)))
                    if not check:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        one.draw(path, file.fingerprint)
            depth = len(document.relative_to(root).parts) - 1
            return block["begin"] + figures.markdown("../" * depth + PLOTS) + block["end"]

        new = BLOCK.sub(fill, text)
        if new != text:
            stale.append(str(document.relative_to(root)))
            if not check:
                document.write_text(new, encoding="utf-8")
    return stale


def main(argv: list[str] | None = None) -> int:
    parser = Parser("bench/figures.py", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--root", type=Path, default=ROOT, metavar="FOLDER", help="another checkout")
    args = parser.parse_args(argv)
    try:
        stale = update(args.root, args.check)
    except Refused as refusal:
        print(f"bench/figures.py: {refusal}", file=sys.stderr)
        return 1
    print("\n".join(stale) or "All figures are up to date.")
    return 2 if stale and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
