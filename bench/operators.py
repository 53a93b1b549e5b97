"""One run of bench/ops.py: for each call of a network compare, time the backends in alternation, compare again."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from bench import inputs, parity, report, roofline
from bench.calls import DECODER, DECODER_BACKWARD, WHOLE, Call, distinct, inference_calls, training_calls
from bench.graphs import captured
from bench.harness import Budget, Case, Samples, median, summarise
from bench.options import DTYPES, positive
from bench.parity import BadReference, Parity
from bench.run import Run, ratio, ratio_text, say, throughput
from bench.subject import Refused, load, one_line, settings
from hyperseg.ops import BACKENDS, OPERATORS, BackendError, reference
from hyperseg.ops._layout import resize_logits

# Of these operators no training step makes a call of its own.
INFERENCE = (
    "decoder_level",
    "decoder_level_argmax",
    "mbconv",
    "patch_inverted_residual",
    "stem",
    "upsample_argmax",
    DECODER,
)

# On a GPU calls are timed in a graph of about this many seconds, or of so many calls: they may take microseconds.
GRAPH_SECONDS = 2e-3
GRAPH_CALLS = 20


def add_operators(parser: argparse.ArgumentParser) -> None:
    """What a script that runs single operators is asked beside the network; the answers go to the two picks below."""
    add = parser.add_argument
    add("--op", nargs="+", default=["all"], metavar="NAME", help="operators, decoder (all levels at once), or all")
    add("--batch", type=positive(int), default=1, metavar="N", help="images in a call")
    add("--backend", nargs="+", default=["all"], metavar="NAME", help="beside the reference, which is always there")
    add("--backward", action="store_true", help="the backward operators too")


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


class OperatorRun(Run):
    """The rows of bench/ops.py: operators, calls, backends."""

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
        self.tolerance = parity.TOLERANCES[args.dtype]
        self.told: set[str] = set()
        self.inputs(1, "recorded activations")

    def introduce(self) -> None:
        say(f"settings  {self.args.dtype}, TF32 off, batch {self.args.batch}, seed {self.args.seed}")
        for name in BACKENDS:
            if name not in self.backends and (reasons := BACKENDS[name].unavailable_reasons()):
                say(f"without   {name}: {'; '.join(reasons)}")
        self.measure_ceilings(self.dtype)

    def model(self, name: str, entry: dict[str, Any]) -> None:
        network, weights = load(name, None, self.args.seed)
        size = self.args.resolution or tuple(network.config.resolution)
        entry |= {"resolution": list(size), "dtype": self.args.dtype, "weights": weights}
        say(f"\n{name}: {size[0]}x{size[1]} (height x width)")
        self.progress(f"recording the calls of {name}")
        calls = self.calls(network, size)
        for operator in self.operators:
            wanted = [call for call in calls if call.operator == operator]
            if not wanted:
                say(f"{name} makes no call of {operator}.")
            for call in wanted:
                self.attempt(call, entry)
        if entry["rows"]:
            say("\n" + self.table(entry["rows"]))

    def calls(self, network: torch.nn.Module, size: tuple[int, int]) -> list[Call]:
        network = network.to(self.device)
        frames = inputs.frames(1, self.args.batch, *size, self.args.seed)[0].to(self.device)
        calls = inference_calls(network, frames)
        if not set(self.operators) <= set(INFERENCE):
            backward = any(name.endswith("_backward") for name in self.operators)
            try:
                calls += training_calls(network, frames, backward)
            except ValueError as error:  # a batch norm of a single value
                raise Refused(f"{size[0]}x{size[1]} is too small for a training step: {error}.") from error
        return [call.to(self.dtype) for call in distinct(calls)]

    def attempt(self, call: Call, entry: dict[str, Any]) -> None:
        """One call, whose failure leaves the others to be measured."""
        try:
            self.call(call, entry)
        except BadReference as error:
            self.refuse(entry, f"{call.operator}: {error}")
        except Exception as error:
            self.refuse(entry, self.cannot(call.operator, error))

    def call(self, call: Call, entry: dict[str, Any]) -> None:
        """Time every backend that can serve this call and answers as the reference does."""
        with settings("reference"):
            expected = call.to(torch.float32)()
            answer = call()
        label = describe(call, answer)
        self.progress(f"{entry['name']}: {call.operator} {label}")
        ready: list[tuple[Case, Parity, dict[str, Any]]] = []
        for backend in self.backends:
            what = f"{call.operator} {label}, backend {backend}"
            case = Case((call.operator, backend), lambda i: call(), context=lambda backend=backend: settings(backend))
            try:
                self.pass_over(call, backend)
                about = {"peak_memory_mib": self.peak_mib(case)}
                graph = self.in_graph(case, call, what)
                about["calls_in_graph"] = graph and graph.images
                case = graph or case
                result = self.check(case, call, expected, answer)
            except Refused as refusal:
                self.tell(entry, str(refusal))
            except BackendError as error:
                self.tell(entry, f"{what}: {error}")
            except Exception as error:
                self.refuse(entry, self.cannot(what, error))
            else:
                if result.passed:
                    ready.append((case, result, about))
                else:
                    self.refuse(entry, result.refusal(what, "before timing"), wrong=True)
        least = call.least_bytes(answer)
        flops = self.flops(call)
        base: list[float] | None = None
        timed = self.time([case for case, *_ in ready])
        for (case, before, about), samples in zip(ready, timed, strict=True):
            after = self.check(case, call, expected, answer)
            if not after.passed:
                what = f"{call.operator} {label}, backend {case.name[1]}"
                self.refuse(entry, after.refusal(what, "after timing"), wrong=True)
                continue
            row = self.row(case, samples, least, flops)
            base = row["throughput"]["fps_by_window"] if case.name[1] == "reference" else base
            over = ratio(row["throughput"]["fps_by_window"], base) if base else None
            about |= {
                "call": label,
                "of": call.of,
                "times": call.times,
                "arguments": call.shapes,
                "over_reference": over,
            }
            checks = {"parity_before": before.to_dict(), "parity_after": after.to_dict()}
            entry["rows"].append({**row, **about, **checks})

    def pass_over(self, call: Call, backend: str) -> None:
        """Raise what speaks against this backend for this call; the decoder asks for each level by itself."""
        if call.operator in WHOLE:
            reasons = BACKENDS[backend].unavailable_reasons()
        else:
            reasons = BACKENDS[backend].not_supported_reasons(call.operator, tuple(call.arguments))
        if reasons:
            raise Refused(f"{backend} does not serve {call.operator} here: {'; '.join(reasons)}.")

    def in_graph(self, case: Case, call: Call, what: str) -> Case | None:
        """The same calls in a CUDA graph; None where there can be none, on a CPU or in calls that wait for the GPU."""
        if not self.cuda:
            return None
        with case.context():
            seconds = roofline.best_seconds(call, self.device, 3, 0.5)
            calls = max(1, min(GRAPH_CALLS, round(GRAPH_SECONDS / seconds)))
            try:
                step = captured(call, self.device, calls)
            except Exception as error:  # whatever a capture refuses
                say(f"{what} is timed call by call, not in a CUDA graph: {one_line(error)}")
                return None
        return replace(case, step=step, images=calls)

    def tell(self, entry: dict[str, Any], sentence: str) -> None:
        """What a backend cannot serve is no failure unless the backend was asked for by name; it is said once."""
        if sentence in self.told:
            return
        self.told.add(sentence)
        if "all" in self.args.backend:
            say(sentence.splitlines()[0])
        else:
            self.refuse(entry, sentence)

    def check(self, case: Case, call: Call, expected: Any, rounded: Any = None) -> Parity:
        """With what the reference answers in float32; ``rounded``: in the type that is timed."""
        with case.context():
            answer = case.step(0)
        if call.operator == "upsample_argmax":
            logits, height, width = call.arguments
            return parity.compare_labels(answer, resize_logits(logits.float(), height, width), self.tolerance)
        if call.operator == "decoder_level_argmax":
            arguments = call.to(torch.float32).arguments
            return parity.compare_labels(answer, reference.decoder_level(*arguments), self.tolerance)
        if call.operator == DECODER:
            return parity.compare_logits(answer, expected, self.tolerance)
        bent = call.operator.endswith("_backward") and self.dtype != torch.float32
        own = tensors(call, rounded) if bent and rounded is not None else None
        return parity.compare_tensors(tensors(call, answer), tensors(call, expected), self.tolerance, own)

    def peak_mib(self, case: Case) -> float | None:
        """What a call takes above its arguments, its answer included; a CPU does not tell."""
        if not self.cuda:
            return None
        with case.context():
            case.step(0)  # the first may also take what stays, such as workspaces of libraries
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            case.step(0)
        torch.cuda.synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def flops(self, call: Call) -> int | None:
        """By the operators' formulas; None where an operator has none, or where autograd is within the call."""
        if call.operator == DECODER_BACKWARD:
            return None
        with settings("reference"):
            work = roofline.count(call)
        return work.flops if not work.uncounted else None

    def row(self, case: Case, samples: Samples, least: int, flops: int | None) -> dict[str, Any]:
        assert self.ceilings is not None
        seconds = median([ms / n for ms, n in zip(samples.window_ms, samples.window_images, strict=True)]) / 1e3
        limit = roofline.bound(flops or 0, least, self.ceilings)
        latency, device = ([ms / case.images for ms in given] for given in (samples.latency_ms, samples.device_ms))
        matmul = None if flops is None else 100 * flops / seconds / self.ceilings.matmul_flops_per_second
        return {
            "operator": case.name[0],
            "backend": case.name[1],
            "latency_ms": summarise(latency),
            "device_ms": summarise(device) if device else None,
            "throughput": throughput(samples),
            "work": {"flops": flops, "least_bytes": least},
            "percent_of_matmul": matmul,
            "percent_of_copy": 100 * least / seconds / self.ceilings.copy_bytes_per_second,
            "roofline": {"seconds": limit.seconds, "by": limit.by, "percent": limit.percent(seconds)},
            "warmup": {"steps": samples.warmup_steps, "stable": samples.warmup_stable},
            "raw": asdict(samples),
        }

    def table(self, rows: list[dict[str, Any]]) -> str:
        return operators_table(rows)

    def close(self, rows: list[dict[str, Any]]) -> None:
        say("\n" + report.bullets(NOTES))


def tensors(call: Call, answer: Any) -> list[torch.Tensor]:
    """An operator's answers, each of one scale: the loss's selection has thresholds and weights beside one another."""
    leaves = tree_leaves(answer)
    if call.operator == "upsample_cross_entropy":
        return [leaves[0], *leaves[1].unbind(1)]
    return leaves


def describe(call: Call, answer: Any) -> str:
    """A call in a few words: the shapes of its first argument and of its first answer, without the batch."""
    if call.operator == DECODER:
        return "all levels"
    if call.operator == DECODER_BACKWARD:
        return f"all levels, {'batch statistics' if call.arguments[0] else 'frozen norms'}, forward and backward"
    first = next(a for a in tree_leaves(call.arguments) if isinstance(a, torch.Tensor))
    shapes = ["x".join(map(str, t.shape[1:])) or "number" for t in (first, tree_leaves(answer)[0])]
    last = first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()
    return " -> ".join(shapes) + (", channels last" if last else "")


def operators_table(rows: list[dict[str, Any]]) -> str:
    head = ["operator", "call", "backend", "p50 ms", "p90", "n", "spread", "times the reference", "GFLOP", "MB least"]
    cuda = any(row["peak_memory_mib"] is not None for row in rows)
    head += ["of matmul", "of copy", *(["peak MiB"] if cuda else []), "error"]
    body = []
    for row in rows:
        latency, work, matmul = row["latency_ms"], row["work"], row["percent_of_matmul"]
        cells = [row["operator"], row["call"], row["backend"]]
        cells += [report.number(latency, p) for p in ("p50", "p90")] + [str(latency["n"])]
        cells.append(f"{row['throughput']['spread_percent']:.1f} %")
        cells.append("-" if row["over_reference"] is None else ratio_text(row["over_reference"]))
        cells.append("-" if work["flops"] is None else report.fixed(work["flops"] / 1e9))
        cells.append(report.fixed(work["least_bytes"] / 1e6))
        cells.append("-" if matmul is None else f"{report.fixed(matmul, 3)} %")
        cells.append(f"{report.fixed(row['percent_of_copy'], 3)} %")
        cells += [report.fixed(row["peak_memory_mib"])] if cuda else []
        body.append([*cells, report.parity_cell(row)])
    return report.table(head, body, left=3)


NOTES = (
    "call: shapes of the first argument and of the first answer, without the batch; the JSON has all arguments, and "
    "how often the network makes the call.",
    "On a GPU a sample is a CUDA graph of several calls, divided by their number (calls_in_graph in the JSON), but "
    "where a sentence above says otherwise: not the launching is timed but the device; bench/overhead.py times that.",
    "p50, p90: milliseconds of a single call; backends take turns (A B A B ...) in one process. times the reference: "
    "by calls issued back to back, median of the rounds, with the least and the most; spread is (max - min) / median.",
    "GFLOP: two per multiply-add, by the operator's formula; - where it has none. MB least: each input read once and "
    "each output written once, of a signal only the channels in use.",
    "of matmul, of copy: the rate reached, relative to the measured rate of a large matrix product and of a large "
    "copy. Caches are warm: small arguments can be read faster than a large copy.",
    "error: the largest, relative to the largest value of the reference's answer in float32; labels by agreement. "
    "Worst of the checks before and after timing. Of gradients in half types only the root mean square is held to more "
    "(bench/parity.py): where rounding takes a hidden value across a bend of its activation, they jump.",
)
