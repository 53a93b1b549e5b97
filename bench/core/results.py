"""Result files of the benchmarks: `Row` is one measurement, `Results` one file.

Version 2 is written. Version 1 is read and converted: there rates were called "fps", items "images", the least bytes of
a network "compulsory_bytes", and each command had its own names for samples.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeAlias, Union, get_args, get_origin, get_type_hints

from bench.core.parity import Parity
from bench.core.roofline import Bound, Ceilings
from bench.core.timing import Ratio, Samples, Summary, Throughput, summarise, throughput
from bench.core.turns import Pause, Usage
from hyperseg._files import atomic_write

SCHEMA_VERSION = 2
DIGITS = 7  # significant digits of samples in a file: a ratio of two of them is exact to 1e-6

Json: TypeAlias = dict[str, Any]


@dataclass
class Work:
    """Counted work of one step (bench/fps.py) or call (bench/ops.py).

    Attributes:
        flops: two per multiply-add; None where an operator has no formula or counting failed.
        least_bytes: inputs, outputs and parameters once each.
        unfused_bytes: every operator reads its inputs and writes its outputs once; None for single calls.
        operators: number of operators in the step.
        uncounted_operators: those of them without a FLOP formula.
        functions: values of SiLU and sigmoid in a single call; None for a whole step and on a GPU.
    """

    flops: int | None
    least_bytes: int
    unfused_bytes: int | None = None
    operators: int | None = None
    uncounted_operators: list[str] | None = None
    functions: int | None = None


@dataclass
class ProcessMemory:
    """Largest resident size of a process of its own in MiB: after imports, after building, while it is running."""

    idle_mib: float
    build_mib: float
    run_mib: float

    @property
    def used_mib(self) -> float:
        """What running takes, with all that was built, above the imports."""
        return self.run_mib - self.idle_mib


@dataclass
class Overhead:
    """Microseconds per call, by round: the operator as a whole, and its implementation alone."""

    whole: list[float]
    alone: list[float]

    @property
    def between(self) -> list[float]:
        """Checks, choice of a backend and dispatcher: the difference, by round."""
        return [whole - alone for whole, alone in zip(self.whole, self.alone, strict=True)]


@dataclass(kw_only=True)
class Row:
    """One measurement. Fields that a command does not use keep their defaults and are left out of the file.

    Attributes:
        mode, backend, scope: of an engine (bench/fps.py); ``backend`` also of an operator.
        operator, call: the operator and its shapes, without the batch (bench/ops.py, bench/overhead.py).
        arguments: of the call: shapes of tensors as text, other arguments as they are.
        of: the step that makes the call: ``"frame"``, ``"training"``, or ``"apart"`` for a call that no step makes.
        times: how often that step makes calls of these shapes.
        calls_in_graph: calls in the CUDA graph that was timed; None where calls were issued one by one.
        kind: of a row of bench/fps.py --peers: ``"official"``, ``"without-norms"``, ``"folded"``, ``"engine"`` or
            ``"other"``, a network of others.
        peer, about: the runtime and its version (bench/peers.py); the input pipeline (bench/data.py); the network of
            others, and its package and licence (bench/fps.py --peers, bench/train_step.py).
        parameters: of a row's network, where rows have different ones.
        tried_ms: milliseconds of a frame in the trial that chose the mode, by mode and memory format.
        latency_ms: milliseconds of one step, or of one call; of a peer, of a camera's frame (core/turns.py).
        device_ms: the same between CUDA events; None on a CPU.
        throughput: images or calls per second, of steps issued back to back; of a peer, of a stream.
        samples: raw samples of what is timed; their items are images or calls.
        samples_alone: raw samples of an operator's implementation alone (bench/overhead.py).
        overhead_us: microseconds per call (bench/overhead.py).
        parity_before, parity_after: comparison with the reference before and after timing; of a network of others, with
            its own plain module in float32.
        parity_logits: comparison of the logits of a peer.
        work, roofline: counted work, and the shortest time that it allows here.
        layout, blocks, amp: memory format, the encoder's blocks ("lean": they keep less for the backward pass) and
            autocast type of a training step (bench/train_step.py); memory format of a row of plain PyTorch
            (bench/fps.py --peers).
        percent_of_matmul, percent_of_copy: rate reached, in percent of the measured matmul and copy rates.
        peak_memory_mib: largest GPU memory above what was allocated before, in MiB.
        memory: host memory of a peer, or of a training step.
        largest_batch: that fits, a power of two times the batch of the run (bench/train_step.py --fits).
        over_reference: rate relative to the reference backend's, paired by round; of a training step, relative to plain
            PyTorch in contiguous memory; of bench/fps.py --peers, relative to the row of the official network.
        memory_over_reference: peak memory relative to the same.
        over_eager, engine_over: rate relative to eager's, and the engine's relative to this one, paired by round.
        over_eager_camera, engine_over_camera: the same of a camera's frames; the two above are of a stream.
        camera_over_stream: time of a frame of the camera over that of the stream, paired by round.
        camera_use, stream_use: CPU time, page faults and switches per frame.
        pauses: the engine's frames after different pauses (bench/peers.py --explain).
        over_official: rate relative to that of the official transforms, paired by round (bench/data.py).
    """

    mode: str = ""
    backend: str = ""
    scope: str = ""
    operator: str = ""
    call: str = ""
    arguments: list[Any] | None = None
    of: str = ""
    times: int = 1
    calls_in_graph: int | None = None
    kind: str = ""
    peer: str = ""
    about: str = ""
    parameters: int | None = None
    tried_ms: dict[str, float] | None = None
    latency_ms: Summary
    device_ms: Summary | None = None
    throughput: Throughput
    samples: Samples
    layout: str = ""
    blocks: str = ""
    amp: str = ""
    samples_alone: Samples | None = None
    overhead_us: Overhead | None = None
    parity_before: Parity | None = None
    parity_after: Parity | None = None
    parity_logits: Parity | None = None
    work: Work | None = None
    roofline: Bound | None = None
    percent_of_matmul: float | None = None
    percent_of_copy: float | None = None
    peak_memory_mib: float | None = None
    memory: ProcessMemory | None = None
    largest_batch: int | None = None
    memory_over_reference: float | None = None
    over_reference: Ratio | None = None
    over_eager: Ratio | None = None
    engine_over: Ratio | None = None
    over_eager_camera: Ratio | None = None
    engine_over_camera: Ratio | None = None
    camera_over_stream: Ratio | None = None
    camera_use: Usage | None = None
    stream_use: Usage | None = None
    pauses: list[Pause] | None = None
    over_official: Ratio | None = None

    @property
    def used_mib(self) -> float | None:
        """Memory of a training step: weights, gradients, optimiser, batches and maps; on a CPU of its own process."""
        return self.peak_memory_mib if self.memory is None else self.memory.used_mib


@dataclass(kw_only=True)
class NetworkResults:
    """Rows of one network.

    Attributes:
        name: of the network.
        resolution, published_resolution: (height, width) of the frames, and that of the paper.
        parameters: number of them.
        weights: their source.
        reference: spread of the reference's scores (`parity.check_reference`).
        sgemm_flops_per_second: rate of float32 matrix multiplication, by round, at each peer's turn (bench/peers.py).
        published: the paper's ``fps`` (None if there is none for this size) and its ``gpu``.
        rows: what was measured.
        refused: messages about what could not be measured.
    """

    name: str
    resolution: list[int] = field(default_factory=list)
    published_resolution: list[int] = field(default_factory=list)
    batch: int = 1
    dtype: str = ""
    parameters: int | None = None
    weights: Json = field(default_factory=dict)
    reference: dict[str, float] | None = None
    sgemm_flops_per_second: list[list[float]] | None = None
    published: Json | None = None
    rows: list[Row] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Results:
    """One file: what was measured, with which arguments, where.

    Attributes:
        kind: ``"hyperseg-fps"``, ``"hyperseg-ops"``, ``"hyperseg-peers"``, ``"hyperseg-overhead"``,
            ``"hyperseg-data"`` or ``"hyperseg-train-step"``.
        arguments: of the command line.
        environment, readings, summary, warnings: see `machine`.
        inputs: number and kind of the inputs, state of the caches.
        threads, pause_seconds: CPU threads of each peer, and the least pause before each frame of a camera
            (bench/peers.py); in earlier results, before each slice, whose frames followed each other at once.
        backends: `hyperseg.info.report` of this machine.
        models: one entry per network.
    """

    kind: str = ""
    arguments: Json = field(default_factory=dict)
    environment: Json = field(default_factory=dict)
    readings: list[Json] = field(default_factory=list)
    summary: Json = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    inputs: Json = field(default_factory=dict)
    threads: int | None = None
    pause_seconds: float | None = None
    backends: Json = field(default_factory=dict)
    ceilings: Ceilings | None = None
    models: list[NetworkResults] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        return [row for entry in self.models for row in entry.rows]


def write_results(path: Path, results: Results) -> None:
    write_json(path, {"schema_version": SCHEMA_VERSION, **_without_defaults(results)})


def read_results(path: Path) -> Results:
    """Read a result file of either version.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a result file of a known version.
    """
    document = read_json(path)
    try:
        if document.pop("schema_version") == 1:
            _upgrade(document)
        return _build(Results, document)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a complete result file: {type(error).__name__}: {error}") from error


def write_json(path: Path, document: Json) -> None:
    """Write atomically: a reader sees the old file or the new one, also if the program is stopped meanwhile."""
    text = json.dumps(_rounded(document), indent=1, allow_nan=False)
    text = re.sub(r"\[\n[-+.\deE,\s]+\]", lambda numbers: "".join(numbers[0].split()), text)  # samples on one line
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text + "\n")


def read_json(path: Path) -> Json:
    """Read a file of `write_json` that has a schema version.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or of an unknown version.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version not in (1, SCHEMA_VERSION):
        raise ValueError(f"{path} has schema version {version}, not 1 or {SCHEMA_VERSION}.")
    return document


def _rounded(value: Any) -> Any:
    """Return the value for JSON: floats in lists with `DIGITS` significant digits, None for what is not finite."""
    if isinstance(value, dict):
        return {str(k): _rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [float(f"{v:.{DIGITS}g}") if isinstance(v, float) and math.isfinite(v) else _rounded(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _without_defaults(value: Any) -> Any:
    """Return a dataclass as a dictionary without the optional fields that were not set, also inside of it."""
    if isinstance(value, list):
        return [_without_defaults(v) for v in value]
    if not isinstance(value, Results | NetworkResults | Row):
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    given = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) not in (None, "")}
    return {name: _without_defaults(v) for name, v in given.items()}


def _build(kind: Any, value: Any) -> Any:
    """Make the dataclass ``kind``, or a list or optional of one, of JSON values."""
    if value is None:
        return None
    if get_origin(kind) in (Union, UnionType):
        return _build(get_args(kind)[0], value)
    if get_origin(kind) is list:
        return [_build(get_args(kind)[0], v) for v in value]
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return value
    hints = get_type_hints(kind)
    if unknown := value.keys() - hints.keys():
        raise KeyError(f"unknown {', '.join(sorted(unknown))}")
    return kind(**{name: _build(hints[name], v) for name, v in value.items()})


def _upgrade(document: Json) -> None:
    """Convert a document of version 1 in place."""
    for entry in document.get("models", []):
        entry["rows"] = [_upgraded_row(row) for row in entry["rows"]]


def _upgraded_row(row: Json) -> Json:
    raw, row = row["raw"], {name: value for name, value in row.items() if name not in {"raw", "warmup"}}
    if "whole" in raw:  # bench/overhead.py: its rows had no statistics
        times = row.pop("microseconds")
        row["overhead_us"] = {part: times[part] for part in ("whole", "alone")}
        row["samples"], row["samples_alone"] = (_upgraded_samples(raw[part]) for part in ("whole", "alone"))
        samples = Samples(**row["samples"])
        row["latency_ms"], row["throughput"] = asdict(summarise(samples.latency_ms)), asdict(throughput(samples))
    elif "window_ms" in raw:
        found = row["throughput"]
        row["throughput"] = {name: found[name] for name in ("min", "max", "spread_percent")}
        row["throughput"] |= {"rate": found["fps"], "by_window": found["fps_by_window"]}
        row["samples"] = _upgraded_samples(raw)
    else:  # bench/fps.py --paper: all steps were one window
        total, rate = math.fsum(raw["latency_ms"]), row.pop("fps")
        row["throughput"] = {"rate": rate, "min": rate, "max": rate, "spread_percent": 0.0, "by_window": [rate]}
        row["samples"] = {**raw, "window_items": [round(rate * total / 1e3)], "window_ms": [total]}
    if "work" in row:
        row["work"] = {{"compulsory_bytes": "least_bytes"}.get(name, name): v for name, v in row["work"].items()}
    return row


def _upgraded_samples(raw: Json) -> Json:
    return {{"window_images": "window_items"}.get(name, name): value for name, value in raw.items()}
