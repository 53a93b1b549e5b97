"""Every operator at the shapes of the networks, each backend in alternation with the reference.

    python bench/ops.py --model hyperseg-m --op decoder_level decoder
    python bench/ops.py --model all --backward --json ops.json
    python bench/preference.py ops.json

Calls are recorded from the engine and from a training step, on a synthetic frame of the published size. A backend whose
output does not match the reference gets no speed.
Exit code: 0 measured, 1 something could not be run (a message gives the reason), 2 a backend failed the comparison.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.core import parity, roofline
from bench.core.calls import DECODER, DECODER_BACKWARD, WHOLE, Call, distinct, inference_calls, training_calls
from bench.core.errors import Refused, one_line
from bench.core.networks import inference, load, synthetic_frames
from bench.core.options import DTYPES, add_device, measuring_parser, pick_models, positive, prepare_torch
from bench.core.parity import BadReference, Parity
from bench.core.results import NetworkResults, Row, Work
from bench.core.run import Run, log, run_command
from bench.core.tables import bullets, fixed, parity_cell, percentiles, table
from bench.core.timing import Budget, Case, Samples, captured, median, ratio, summarise, throughput
from hyperseg.models import HyperSeg
from hyperseg.ops import BACKENDS, OPERATORS, BackendError, reference
from hyperseg.ops._layout import resize_logits
from hyperseg.runtime.parity import TOLERANCES

MOST = 40  # steps per slice: a call of microseconds needs no thousands of samples

# Operators that no training step calls itself.
INFERENCE = (
    "context_head",
    "decoder_level",
    "decoder_level_argmax",
    "mbconv",
    "mbconv_chain",
    "normalise_frames",
    "patch_inverted_residual",
    "pointwise_conv",
    "stem",
    "upsample_argmax",
    DECODER,
)

# On a GPU calls are timed in a graph of about this many seconds, or of this many calls: they may take microseconds.
GRAPH_SECONDS = 2e-3
GRAPH_CALLS = 20


def add_operators(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of commands that run single operators."""
    add = parser.add_argument
    add("--op", nargs="+", default=["all"], metavar="NAME", help="operators, decoder (all levels at once), or all")
    add("--batch", type=positive(int), default=1, metavar="N", help="images per call")
    add("--backend", nargs="+", default=["all"], metavar="NAME", help="in addition to the reference")
    add("--backward", action="store_true", help="the backward operators too")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = measuring_parser("bench/ops.py", __doc__, model="all", row="row", quick="the same calls")
    add_device(parser)
    add_operators(parser)
    return parser.parse_args(argv)


def pick_operators(names: list[str], backward: bool) -> list[str]:
    known = [*WHOLE, *OPERATORS]
    if unknown := [name for name in names if name not in {"all", *known}]:
        raise Refused(f"There is no operator {unknown[0]!r}; there are {', '.join(known)}. Or all.")
    picked = [name for name in known if name in names or ("all" in names and not name.endswith("_backward"))]
    also = [f"{name}_backward" for name in picked] if backward else []
    return list(dict.fromkeys([*picked, *(name for name in also if name in known)]))


def pick_backends(names: list[str]) -> list[str]:
    if unknown := [name for name in names if name not in {"all", *BACKENDS}]:
        raise Refused(f"There is no backend {unknown[0]!r}; there are {', '.join(BACKENDS)}. Or all.")
    here = [name for name, backend in BACKENDS.items() if not backend.unavailable_reasons()]
    return list(dict.fromkeys(["reference", *(here if "all" in names else names)]))


def pick_budget(args: argparse.Namespace, device: torch.device) -> Budget:
    cuda = device.type == "cuda"
    seconds = args.seconds or (0.2 if args.quick else 0.4 if cuda else 1.0)
    rounds = (5 if args.quick else 20) if cuda else (2 if args.quick else 5)
    if args.iterations is not None:
        rounds = min(rounds, args.iterations)
    limit = 0.1 if args.quick else 0.3 if cuda else 0.5
    return Budget(seconds, rounds, args.iterations, warmup_steps=5 if cuda else 1, warmup_seconds=limit, most=MOST)


@dataclass
class Ready:
    """A case that passed the comparison."""

    case: Case
    parity: Parity
    peak_mib: float | None
    calls_in_graph: int | None

    @property
    def backend(self) -> str:
        return self.case.name[1]


@dataclass(frozen=True)
class Expected:
    """The reference's outputs of a call: in float32, and in the dtype that is timed."""

    exact: Any
    rounded: Any


class OperatorRun(Run):
    """Rows: operators, calls, backends."""

    kind = "hyperseg-ops"

    def __init__(
        self,
        args: argparse.Namespace,
        device: torch.device,
        models: list[str],
        operators: list[str],
        backends: list[str],
        budget: Budget,
    ) -> None:
        super().__init__(args, device, models, budget)
        self.operators, self.backends = operators, backends
        self.dtype = DTYPES[args.dtype]
        self.tolerance = TOLERANCES[self.dtype]
        self.reported: set[str] = set()
        self.describe_inputs(1, "recorded activations")

    def print_settings(self) -> None:
        log(f"settings  {self.args.dtype}, TF32 off, batch {self.args.batch}, seed {self.args.seed}")
        for name in BACKENDS:
            if name not in self.backends and (reasons := BACKENDS[name].unavailable_reasons()):
                log(f"without   {name}: {'; '.join(reasons)}")
        self.measure_ceilings(self.dtype)

    def print_notes(self, rows: list[Row]) -> None:
        log("\n" + bullets(NOTES))

    def measure_network(self, entry: NetworkResults) -> None:
        network, entry.weights = load(entry.name, None, self.args.seed)
        size = self.args.resolution or (network.config.resolution[0], network.config.resolution[1])
        entry.resolution, entry.batch, entry.dtype = [*size], self.args.batch, self.args.dtype
        log(f"\n{entry.name}: {size[0]}x{size[1]} (height x width)")
        self.progress(f"recording the calls of {entry.name}")
        calls = self.calls(network, size)
        for operator in self.operators:
            found = [call for call in calls if call.operator == operator]
            if not found:
                log(f"{entry.name} does not call {operator}.")
            for call in found:
                self.try_call(call, entry)
        if entry.rows:
            log("\n" + self.table(entry.rows))
            if self.results.ceilings is not None:  # bench/overhead.py measures none
                for line in frame_lines(entry.rows, self.results.ceilings):
                    log(line)

    def try_call(self, call: Call, entry: NetworkResults) -> None:
        """Measure one call; if it fails, the others are still measured."""
        try:
            self.measure_call(call, entry)
        except BadReference as error:
            self.refuse(entry, f"{call.operator}: {error}")
        except Exception as error:
            self.refuse(entry, self.cannot(call.operator, error))

    def calls(self, network: HyperSeg, size: tuple[int, int]) -> list[Call]:
        network = network.to(self.device)
        frames = synthetic_frames(1, self.args.batch, *size, self.args.seed)[0].to(self.device)
        calls = inference_calls(network, frames)
        if not set(self.operators) <= set(INFERENCE):
            backward = any(name.endswith("_backward") for name in self.operators)
            try:
                calls += training_calls(network, frames, backward)
            except ValueError as error:  # a batch norm of a single value
                raise Refused(f"{size[0]}x{size[1]} is too small for a training step: {error}.") from error
        return [call.to(self.dtype) for call in distinct(calls)]

    def expected(self, call: Call) -> Expected:
        with inference("reference"):
            return Expected(exact=call.to(torch.float32)(), rounded=call())

    def measure_call(self, call: Call, entry: NetworkResults) -> None:
        """Time every backend that supports this call and matches the reference."""
        expected = self.expected(call)
        label = describe(call, expected.rounded)
        self.progress(f"{entry.name}: {call.operator} {label}")
        ready = self.ready(call, label, expected, entry)
        least = call.least_bytes(expected.rounded)
        work = self.work(call, least)
        base: list[float] | None = None
        for item, samples in zip(ready, self.time([item.case for item in ready]), strict=True):
            after = self.check(item.case, call, expected)
            if not after.passed:
                what = f"{call.operator} {label}, backend {item.backend}"
                self.refuse(entry, after.message(what, "after timing"), wrong=True)
                continue
            row = self.row(item, after, call, label, samples, work)
            base = row.throughput.by_window if item.backend == "reference" else base
            row.over_reference = ratio(row.throughput.by_window, base) if base else None
            entry.rows.append(row)

    def ready(self, call: Call, label: str, expected: Expected, entry: NetworkResults) -> list[Ready]:
        ready: list[Ready] = []
        for backend in self.backends:
            what = f"{call.operator} {label}, backend {backend}"
            case = operator_case(call, backend)
            try:
                self.require_support(call, backend)
                peak = self.peak_mib(case)
                graph = self.in_graph(case, call, what)
                item = Ready(graph or case, Parity(False), peak, graph.items if graph else None)
                item.parity = self.check(item.case, call, expected)
            except Refused as refusal:
                self.report_unsupported(entry, str(refusal))
            except BackendError as error:
                self.report_unsupported(entry, f"{what}: {error}")
            except Exception as error:
                self.refuse(entry, self.cannot(what, error))
            else:
                if item.parity.passed:
                    ready.append(item)
                else:
                    self.refuse(entry, item.parity.message(what, "before timing"), wrong=True)
        return ready

    def require_support(self, call: Call, backend: str) -> None:
        """Raise Refused with the reasons if a backend does not support a call; a decoder's levels choose one each."""
        if call.operator in WHOLE:
            reasons = BACKENDS[backend].unavailable_reasons()
        else:
            reasons = BACKENDS[backend].not_supported_reasons(call.operator, tuple(call.arguments))
        if reasons:
            raise Refused(f"{backend} does not support {call.operator} here: {'; '.join(reasons)}.")

    def in_graph(self, case: Case, call: Call, what: str) -> Case | None:
        """Return the same calls in a CUDA graph; None on a CPU, or if capture fails, as for calls that synchronise."""
        if not self.cuda:
            return None
        with case.context():
            seconds = roofline.best_seconds(call, self.device, 3, 0.5)
            calls = max(1, min(GRAPH_CALLS, round(GRAPH_SECONDS / seconds)))
            try:
                step = captured(call, self.device, calls)
            except Exception as error:  # any reason that a capture may have
                log(f"{what} is timed call by call, not in a CUDA graph: {one_line(error)}")
                return None
        return replace(case, step=step, items=calls)

    def report_unsupported(self, entry: NetworkResults, message: str) -> None:
        """Report once that a backend does not support a call; it is an error only if the user named the backend."""
        if message in self.reported:
            return
        self.reported.add(message)
        if "all" in self.args.backend:
            log(message.splitlines()[0])
        else:
            self.refuse(entry, message)

    def check(self, case: Case, call: Call, expected: Expected) -> Parity:
        with case.context():
            output: Any = case.step(0)
        if call.operator == "upsample_argmax":
            logits, height, width = call.arguments
            return parity.compare_labels(output, resize_logits(logits.float(), height, width), self.tolerance)
        if call.operator == "decoder_level_argmax":
            arguments = call.to(torch.float32).arguments
            return parity.compare_labels(output, reference.decoder_level(*arguments), self.tolerance)
        if call.operator == DECODER:
            return parity.compare_logits(output, expected.exact, self.tolerance)
        gradients = call.operator.endswith("_backward") and self.dtype != torch.float32
        rounded = tensors(call, expected.rounded) if gradients else None
        return parity.compare_tensors(tensors(call, output), tensors(call, expected.exact), self.tolerance, rounded)

    def peak_mib(self, case: Case) -> float | None:
        """Return the GPU memory that a call takes above its arguments, its output included; None on a CPU."""
        if not self.cuda:
            return None
        with case.context():
            case.step(0)  # the first call may also allocate what stays, such as workspaces of libraries
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            case.step(0)
        torch.cuda.synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def work(self, call: Call, least: int) -> Work:
        """Count a call's work; FLOPs by the operators' formulas, None if one has none or if autograd is in the call."""
        if call.operator == DECODER_BACKWARD:
            return Work(None, least)
        with inference("reference"):
            counts = roofline.count(call)
            functions = None if self.cuda else roofline.count_functions(call)  # a GPU has no limit for them
            return Work(None if counts.uncounted else counts.flops, least, functions=functions)

    def row(self, item: Ready, after: Parity, call: Call, label: str, samples: Samples, work: Work) -> Row:
        case, ceilings = item.case, self.results.ceilings
        assert ceilings is not None
        seconds = median(samples.ms_per_item()) / 1e3
        latency, device = ([ms / case.items for ms in given] for given in (samples.latency_ms, samples.device_ms))
        matmul = None if work.flops is None else 100 * work.flops / seconds / ceilings.matmul_flops_per_second
        return Row(
            operator=call.operator,
            backend=item.backend,
            call=label,
            of=call.of,
            times=call.times,
            arguments=call.shapes,
            latency_ms=summarise(latency),
            device_ms=summarise(device) if device else None,
            throughput=throughput(samples),
            work=work,
            percent_of_matmul=matmul,
            percent_of_copy=100 * work.least_bytes / seconds / ceilings.copy_bytes_per_second,
            roofline=roofline.bound(work.flops or 0, work.least_bytes, ceilings, seconds, work.functions or 0),
            calls_in_graph=item.calls_in_graph,
            peak_memory_mib=item.peak_mib,
            parity_before=item.parity,
            parity_after=after,
            samples=samples,
        )

    def table(self, rows: Sequence[Row]) -> str:
        return operators_table(rows)


def operator_case(call: Call, backend: str) -> Case:
    return Case((call.operator, backend), lambda i: call(), context=lambda: inference(backend))


def tensors(call: Call, output: Any) -> list[torch.Tensor]:
    """Return an operator's outputs, each of one scale: the loss returns thresholds and weights in one tensor."""
    leaves: list[torch.Tensor] = tree_leaves(output)
    if call.operator == "upsample_cross_entropy":
        return [leaves[0], *leaves[1].unbind(1)]
    return leaves


def describe(call: Call, output: Any) -> str:
    """Return the shapes of a call's first argument and first output, without the batch."""
    if call.operator == DECODER:
        return "all levels"
    if call.operator == DECODER_BACKWARD:
        return f"all levels, {'batch statistics' if call.arguments[0] else 'frozen norms'}, forward and backward"
    first = next(a for a in tree_leaves(call.arguments) if isinstance(a, torch.Tensor))
    shapes = ["x".join(map(str, t.shape[1:])) or "number" for t in (first, tree_leaves(output)[0])]
    last = first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
    return " -> ".join(shapes) + (", channels last" if last else "")


def operators_table(rows: Sequence[Row]) -> str:
    head = ["operator", "call", "backend", "p50 ms", "p90", "n", "spread", "times the reference", "GFLOP"]
    cuda = any(row.peak_memory_mib is not None for row in rows)
    head += ["M SiLU", "MB least", "limit ms", "bound by", "of limit", *(["peak MiB"] if cuda else []), "error"]
    body = []
    for row in rows:
        work, limit, peak = row.work, row.roofline, row.peak_memory_mib
        cells = [row.operator, row.call, row.backend, *percentiles(row.latency_ms, "p50", "p90"), str(row.latency_ms.n)]
        cells.append(f"{row.throughput.spread_percent:.1f} %")
        cells.append("-" if row.over_reference is None else str(row.over_reference))
        cells.append("-" if work is None or work.flops is None else fixed(work.flops / 1e9))
        cells.append("-" if work is None or not work.functions else fixed(work.functions / 1e6))
        cells.append("-" if work is None else fixed(work.least_bytes / 1e6))
        cells += (
            ["-"] * 3 if limit is None else [fixed(1e3 * limit.seconds, 3), limit.by, f"{fixed(limit.percent, 3)} %"]
        )
        cells += ["-" if peak is None else fixed(peak)] if cuda else []
        body.append([*cells, parity_cell(row)])
    return table(head, body, left=3)


def frame_lines(rows: Sequence[Row], ceilings: roofline.Ceilings) -> list[str]:
    """Say for each backend what the calls of a frame take, and what their limits add up to."""
    found = [row for row in rows if row.of == "frame" and row.operator not in WHOLE]
    lines = []
    for backend in dict.fromkeys(row.backend for row in found):
        calls = [row for row in found if row.backend == backend]
        took, least, in_turn = 0.0, 0.0, 0.0
        for row in calls:
            work, limit = row.work, row.roofline
            assert work is not None
            assert limit is not None
            took += row.times * 1e3 / row.throughput.rate
            least += row.times * 1e3 * limit.seconds
            seconds = roofline.seconds_in_turn(work.flops or 0, work.least_bytes, ceilings, work.functions or 0)
            in_turn += row.times * 1e3 * seconds
        line = (
            f"{sum(row.times for row in calls)} calls of a frame by {backend}: {fixed(took)} ms, limits {fixed(least)}"
        )
        if ceilings.silu_per_second:
            line += f", {fixed(in_turn)} with SiLU after the FLOPs"
        lines.append(line + ".")
    return lines


NOTES = (
    "call: shapes of the first argument and of the first output, without the batch; the JSON has all arguments, and "
    "how often the network makes the call.",
    "On a GPU a sample is a CUDA graph of several calls, divided by their number (calls_in_graph in the JSON), unless "
    "a message above says otherwise: it times the device, not the launches; bench/overhead.py times those.",
    "p50, p90: milliseconds of a single call; backends alternate (A B A B ...) in one process. times the reference: "
    "by calls issued back to back, median of the rounds, with minimum and maximum; spread is (max - min) / median.",
    "GFLOP: two per multiply-add, by the operator's formula; - where it has none. MB least: each input read once and "
    "each output written once, of a signal only the channels in use.",
    "M SiLU: millions of values of SiLU and sigmoid, an exponential and a division each, counted in the operator's "
    "definition in plain PyTorch.",
    "limit: the largest of three times: GFLOP at the measured rate of a large matrix multiplication (arithmetic), M "
    "SiLU at the measured rate of SiLU on values in the cache (SiLU; on a CPU only), MB least at the measured rate of "
    "a large copy (memory). bound by: which of the three. of limit: that time in percent of the measured one. A CPU "
    "computes FLOPs and SiLU with the same vector units: where the two times are close, their sum is nearer to the "
    "truth; the lines below the table have both for all calls of a frame. Caches are warm: small arguments can be read "
    "faster than a large copy, so more than 100 % is possible. The JSON has the rates reached (percent_of_matmul, "
    "percent_of_copy).",
    "error: the largest, relative to the largest value of the reference's output in float32; labels by agreement. "
    "Worst of the checks before and after timing. Gradients in 16-bit floats are held to their root mean square error "
    "only (bench/core/parity.py): where rounding moves a hidden value across a kink of its activation, they jump.",
)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)

    def make() -> OperatorRun:
        device = prepare_torch(args.device, args.threads)
        operators = pick_operators(args.op, args.backward)
        backends = pick_backends(args.backend)
        return OperatorRun(args, device, pick_models(args.model), operators, backends, pick_budget(args, device))

    return run_command("bench/ops.py", args, make)


if __name__ == "__main__":
    sys.exit(main())
