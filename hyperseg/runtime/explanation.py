"""An engine's frame, call by call: backend, reasons against others, work, and measured time."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from hyperseg.ops._chain import block_by_block
from hyperseg.ops.backends import dispatch
from hyperseg.runtime.arguments import name_of
from hyperseg.runtime.graphs import Captured
from hyperseg.runtime.work import flops, least_bytes

if TYPE_CHECKING:
    from hyperseg.runtime.engine import Engine

# Nominal rates by a part of the GPU's name, from NVIDIA's data sheets: bytes/s, float32 without tensor cores, 16-bit
# floats with them and without sparsity. The first that fits.
_NOMINAL = {
    "H200": (4.8e12, 67e12, 989e12),
    "H100 NVL": (3.9e12, 60e12, 835e12),
    "H100 PCIe": (2.0e12, 51e12, 756e12),
    "H100": (3.35e12, 67e12, 989e12),
}
_HOLD = 40_000_000  # cycles of a GPU, about 20 ms: longer than the host takes to issue a frame


@dataclass(frozen=True)
class Rates:
    """Rates of a device, for the shortest time that a call could take.

    Attributes:
        flops_per_second: of a large matrix multiplication in the engine's dtype.
        bytes_per_second: of a large copy, bytes read plus bytes written.
        source: where they come from.
    """

    flops_per_second: float
    bytes_per_second: float
    source: str = "given"


@dataclass(frozen=True)
class ExplainedCall:
    """One call of an operator in a frame.

    Attributes:
        operator, backend: what ran.
        part: of the network, such as ``"encoder.blocks.3.0"`` or ``"decoder.level 2"``, by the weights in the call;
            ``""`` if it has none.
        passed_over: by backend that ``auto`` prefers, the reasons why it did not run the call.
        shapes: of its first tensor and of its first output, such as ``"1x24x64x64 > 1x40x32x32"``.
        dtype: of its weights or, without, of its first tensor.
        bytes: of inputs, weights and outputs, once each: the least that it reads and writes.
        flops: two per multiply-add; None if there is no formula.
        milliseconds: median over the frames.
        share: of the frame, 0 to 1.
        limit_milliseconds: the shortest time that rates allow: of the FLOPs or of the bytes, whichever is longer. None
            without rates. Data in a cache may be read faster than that.
        limited_by: ``"arithmetic"``, ``"memory"`` or ``""``.
    """

    operator: str
    part: str
    backend: str
    passed_over: dict[str, list[str]]
    shapes: str
    dtype: str
    bytes: int
    flops: int | None
    milliseconds: float
    share: float
    limit_milliseconds: float | None = None
    limited_by: str = ""


@dataclass(frozen=True)
class Explanation:
    """A frame of an engine; ``str()`` is a table, :meth:`to_dict` is for JSON.

    Attributes:
        network, size, batch, dtype, device, mode: of the engine.
        calls: in the order in which they ran.
        frame_milliseconds: median time of a frame in the engine's mode, from and to memory of the device.
        timed_milliseconds: of a frame in which the calls are timed: their medians and ``other_milliseconds``.
        other_milliseconds: median of what is in no operator: PyTorch's operators, Python and launches between.
        repeats: number of frames.
        rates: None if there are none for this device.
        notes: what a reader should know of these times.
    """

    network: str
    size: tuple[int, int]
    batch: int
    dtype: str
    device: str
    mode: str
    calls: list[ExplainedCall]
    frame_milliseconds: float
    timed_milliseconds: float
    other_milliseconds: float
    repeats: int
    rates: Rates | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return asdict(self) | {"size": list(self.size)}

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def measure_rates(device: torch.device, dtype: torch.dtype = torch.float32) -> Rates:
    """Measure rates of a device in half a second: a matrix multiplication in ``dtype`` and a copy.

    The best of several attempts, with PyTorch's present number of threads.
    """
    cuda = device.type == "cuda"
    n, size = (8192, 2**30) if cuda else (768, 2**26)
    with torch.inference_mode():
        a, b = (torch.ones(n, n, dtype=dtype, device=device) for _ in range(2))
        source = torch.ones(size, dtype=torch.uint8, device=device)
        out, target = torch.empty_like(a), torch.empty_like(source)
        multiply = min(_seconds(lambda: torch.mm(a, b, out=out), device, 12))
        copy = min(_seconds(lambda: target.copy_(source), device, 6))
    return Rates(2 * n**3 / multiply, 2 * size / copy, "measured: a matrix multiplication and a copy")


def nominal_rates(device: torch.device, dtype: torch.dtype) -> Rates | None:
    """Return the rates in the data sheet of a known GPU; None for others."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for part, (bandwidth, single, half) in _NOMINAL.items():
        if part in name:
            return Rates(single if dtype == torch.float32 else half, bandwidth, f"nominal rates of {part}")
    return None


def explain(engine: Engine, frames: Tensor, repeats: int, rates: Rates | None) -> Explanation:
    """Explain a frame, see :meth:`hyperseg.runtime.Engine.explain`; ``frames`` are on the device."""
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; give a number of frames, at least 1")
    rates = rates or nominal_rates(engine.device, engine.dtype)
    stage: Callable[[Tensor], Tensor] = engine._run["frame"]
    if isinstance(stage, Captured):
        stage = stage.run
    parts = _parts(engine)
    engine(frames)  # compile and capture, and fall back where a kernel fails
    records: list[_Record] = []
    timed, plain, whole = [], [], []
    with torch.inference_mode():
        with dispatch.watch(_by_block(functools.partial(_record, records))):
            stage(frames)
        for _ in range(repeats):
            plain += _seconds(lambda: engine(frames), engine.device, 1, warm=False)
            timer = _Timer(engine.device)
            whole.append(_timed_frame(stage, frames, timer))
            timed.append(timer.milliseconds())
    rows = [[ms[i] for ms in timed] for i in range(len(records))]
    medians = [median(samples) for samples in rows]
    other = max(0.0, median(ms - sum(each) for ms, each in zip(whole, timed, strict=True)))
    frame = sum(medians) + other
    calls = []
    for record, ms in zip(records, medians, strict=True):
        limit, by = _limit(record, rates)
        calls.append(
            ExplainedCall(
                record.operator,
                ", ".join(_joined([parts[p] for p in record.pointers if p in parts])),
                record.backend,
                record.passed_over,
                record.shapes,
                record.dtype,
                record.bytes,
                record.flops,
                ms,
                ms / frame,
                limit,
                by,
            )
        )
    return Explanation(
        engine.config.name,
        engine.size,
        engine.batch,
        name_of(engine.dtype),
        str(engine.device),
        engine.mode,
        calls,
        1e3 * median(plain),
        frame,
        other,
        repeats,
        rates,
        list(_notes(engine)),
    )


def _notes(engine: Engine) -> Iterator[str]:
    if engine.mode == "cudagraph":
        yield "The calls were timed outside of the CUDA graph, kernel after kernel; the frame inside it."
    if engine.mode == "compile":
        yield "Between the calls run kernels that torch.compile generated."
    if engine.device.type == "cpu" and getattr(engine.folded.encoder.trunk, "chain", None) is not None:
        yield "The blocks of the encoder are one call of mbconv_chain; here they were called one by one."
    if engine.device.type == "cuda":
        yield "Times of calls are those of the GPU, between events; the host issued all of a frame before it began."
    if named := dispatch.named_backend():
        yield f"The backend {named} was named by the user, so no other was asked."


@dataclass
class _Record:
    operator: str
    backend: str
    passed_over: dict[str, list[str]]
    shapes: str
    dtype: str
    bytes: int
    flops: int | None
    pointers: list[int]


class _Timer:
    """Runs operators as they would without it, and times them."""

    def __init__(self, device: torch.device):
        self.device = device
        self.times: list[tuple[Any, Any]] = []

    def __call__(self, operator: str, *args: Any) -> Any:
        _, function, _ = dispatch.decide(operator, args)
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            output = function(*args)
            end.record()
            self.times.append((begin, end))
        else:
            start = time.perf_counter()
            output = function(*args)
            self.times.append((start, time.perf_counter()))
        return output

    def milliseconds(self) -> list[float]:
        """Return the times of the calls; those of a GPU are over."""
        if self.device.type == "cuda":
            return [begin.elapsed_time(end) for begin, end in self.times]
        return [1e3 * (end - start) for start, end in self.times]


def _record(records: list[_Record], operator: str, *args: Any) -> Any:
    """Run an operator and note what it does."""
    backend, function, passed_over = dispatch.decide(operator, args)
    output = function(*args)
    tensors = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
    made = next(t for t in tree_leaves(output) if isinstance(t, Tensor))
    weights = [t for t in tensors[1:] if t.is_floating_point()] or tensors
    records.append(
        _Record(
            operator,
            backend,
            passed_over,
            f"{_shape(tensors[0])} > {_shape(made)}",
            name_of(weights[-1].dtype),
            least_bytes(operator, args, output),
            flops(operator, args, output),
            [t.untyped_storage().data_ptr() for t in tensors],
        )
    )
    return output


def _by_block(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``run(operator, *args)``, but for chains that run block by block: it is called for each block."""
    mbconv_chain = block_by_block(functools.partial(run, "mbconv"))

    def run_blocks(operator: str, *args: Any) -> Any:
        if operator == "mbconv_chain" and args[0].device.type == "cpu":
            return mbconv_chain(*args)
        return run(operator, *args)

    return run_blocks


def _shape(t: Tensor) -> str:
    return "x".join(map(str, t.shape))


def _timed_frame(stage: Callable[[Tensor], Tensor], frames: Tensor, timer: _Timer) -> float:
    """Run a frame whose calls are timed; return its milliseconds."""
    with dispatch.watch(_by_block(timer)):
        if timer.device.type != "cuda":
            start = time.perf_counter()
            stage(frames)
            return 1e3 * (time.perf_counter() - start)
        with torch.cuda.device(timer.device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(_HOLD)  # so that no kernel waits for the host
            begin.record()
            stage(frames)
            end.record()
            torch.cuda.synchronize(timer.device)
            return begin.elapsed_time(end)


def _seconds(run: Callable[[], object], device: torch.device, repeats: int, warm: bool = True) -> list[float]:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    if warm:
        run()
    found = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        run()
        wait()
        found.append(time.perf_counter() - start)
    return found


def _limit(record: _Record, rates: Rates | None) -> tuple[float | None, str]:
    if rates is None:
        return None, ""
    arithmetic = 1e3 * (record.flops or 0) / rates.flops_per_second
    memory = 1e3 * record.bytes / rates.bytes_per_second
    return max(arithmetic, memory), "arithmetic" if arithmetic > memory else "memory"


def _parts(engine: Engine) -> dict[int, str]:
    """Return the part of the network that each weight belongs to, by the address of its memory."""
    plan = engine.folded.decoder.plan
    named: dict[int, str] = {}
    for name, parameter in engine.folded.named_parameters():
        words = name.removeprefix("encoder.trunk.").split(".")
        if words[0] == "generators":
            part = ", ".join(f"decoder.level {i + 1}" for i in plan.generators[int(words[1])].levels)
        elif words[0] == "biases":
            part = f"decoder.level {int(words[1]) + 1}"
        elif words[0] == "blocks":
            part = ".".join(("encoder", *words[:3]))
        elif words[0] in ("conv_stem", "conv_head"):
            part = f"encoder.{words[0].removeprefix('conv_')}"
        else:
            part = ".".join(words[: 3 if words[0] == "encoder" else 1])
        named[parameter.untyped_storage().data_ptr()] = part
    return named


def _joined(parts: list[str]) -> list[str]:
    """Return distinct parts in order; of more than two the first and the last."""
    distinct = list(dict.fromkeys(parts))
    return distinct if len(distinct) <= 2 else [f"{distinct[0]} .. {distinct[-1]}"]


def _lines(e: Explanation) -> Iterator[str]:
    frames = "" if e.batch == 1 else f", {e.batch} frames per call"
    size = f"{e.size[0]}x{e.size[1]}"
    yield f"{e.network}, {size}, {e.dtype} on {e.device}, mode {e.mode}{frames}; medians of {e.repeats}"
    yield ""
    head = ["part", "operator", "backend", "shapes", "MB", "GFLOP", "ms", "%"]
    rows = [
        [
            call.part,
            call.operator,
            call.backend + ("*" if call.passed_over else ""),
            call.shapes,
            f"{call.bytes / 1e6:.2f}",
            "-" if call.flops is None else f"{call.flops / 1e9:.3f}",
            f"{call.milliseconds:.3f}",
            f"{100 * call.share:.1f}",
        ]
        for call in e.calls
    ]
    total = sum(call.milliseconds for call in e.calls)

    def percent(milliseconds: float) -> str:
        return f"{100 * milliseconds / e.timed_milliseconds:.1f}"

    sums = [
        ["all operators", "", "", "", f"{sum(c.bytes for c in e.calls) / 1e6:.2f}"]
        + [
            f"{sum(c.flops or 0 for c in e.calls) / 1e9:.3f}",
            f"{total:.3f}",
            percent(total),
        ],
        ["in no operator", "", "", "", "", "", f"{e.other_milliseconds:.3f}", percent(e.other_milliseconds)],
        ["frame", "", "", "", "", "", f"{e.timed_milliseconds:.3f}", "100.0"],
    ]
    if e.rates is not None:
        head += ["limit ms", "by", "of it"]
        for row, call in zip(rows, e.calls, strict=True):
            limit = call.limit_milliseconds or 0.0
            row += [f"{limit:.3f}", call.limited_by, f"{100 * limit / max(call.milliseconds, 1e-9):.0f} %"]
        limit = sum(call.limit_milliseconds or 0.0 for call in e.calls)
        sums[0] += [f"{limit:.3f}", "", f"{100 * limit / max(total, 1e-9):.0f} %"]
    table = [head, *rows, *sums]
    width = [max(len(row[i]) for row in table if i < len(row)) for i in range(len(head))]
    left = {"part", "operator", "backend", "shapes", "by"}
    for number, row in enumerate(table):
        if number == len(rows) + 1:
            yield "-" * (sum(width) + 2 * (len(width) - 1))
        cells = [cell.ljust(width[i]) if head[i] in left else cell.rjust(width[i]) for i, cell in enumerate(row)]
        yield "  ".join(cells).rstrip()
    yield ""
    yield f"A frame whose calls are not timed takes {e.frame_milliseconds:.3f} ms in this mode."
    if e.rates is not None:
        yield (
            f"limit: the longer of FLOPs at {e.rates.flops_per_second / 1e9:,.0f} GFLOP/s and bytes at "
            f"{e.rates.bytes_per_second / 1e9:,.1f} GB/s ({e.rates.source}). What is in a cache may take less."
        )
    yield from e.notes
    passed_over = dict.fromkeys(
        f"* {backend} did not run {call.operator}: {'; '.join(reasons)}"
        for call in e.calls
        for backend, reasons in call.passed_over.items()
    )
    yield from passed_over
