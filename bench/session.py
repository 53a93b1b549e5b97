"""One run of bench/fps.py: for each network compare, time in alternation, compare again, print, write."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

import torch

from bench import paper, report, roofline
from bench.harness import Budget, Case, Samples, median, summarise
from bench.options import DTYPES
from bench.parity import Parity
from bench.run import Run, ratio, ratio_text, say, throughput
from bench.subject import Subject, load, one_line


@dataclass
class Prepared:
    """A case that computes the network, and the engine it belongs to, kept alive for as long as the case."""

    case: Case
    engine: Any
    parity: Parity
    peak_mib: float | None = None


def comparisons(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of one scope against its first."""
    found: dict[str, list[str]] = {}
    for scope in dict.fromkeys(row["scope"] for row in rows):
        first, *others = [row for row in rows if row["scope"] == scope]
        for row in others:
            over = ratio(row["throughput"]["fps_by_window"], first["throughput"]["fps_by_window"])
            key = f"{row['mode']} {row['backend']} over {first['mode']} {first['backend']}"
            found.setdefault(key, []).append(f"{scope} {ratio_text(over)}")
    return [f"FPS of {key}, by round: {', '.join(texts)}." for key, texts in found.items()]


class Session(Run):
    """The rows of bench/fps.py: modes and backends in nested scopes."""

    kind = "hyperseg-fps"

    def __init__(
        self, args: argparse.Namespace, device: torch.device, models: list[str], modes: list[str], budget: Budget
    ) -> None:
        super().__init__(args, device, models, budget)
        self.modes = modes
        self.backends = list(dict.fromkeys(args.backend))
        self.scopes = list(report.SCOPES) if "all" in args.scope else list(dict.fromkeys(args.scope))
        self.rotate = 4 if self.cuda else 2
        self.dtype = DTYPES[args.dtype]
        self.inputs(self.rotate)

    def introduce(self) -> None:
        say(f"settings  {self.args.dtype}, TF32 off, batch {self.args.batch}, seed {self.args.seed}")
        if "auto" in self.backends:
            say(f"backends  {report.operators(self.document['backends'], self.device.type)}")
        if not self.cuda and self.args.device == "auto":
            say("\nNo CUDA device was found: this measures the CPU, with fewer iterations.")
        if not self.cuda and self.dtype == torch.float16:
            say("float16 has no fast path on most CPUs: a frame can take minutes. float32 and bfloat16 have one.")
        if not self.args.paper:
            self.measure_ceilings(self.dtype)

    def clean(self) -> None:
        super().clean()
        if "compile" in self.modes:
            torch.compiler.reset()

    def close(self, rows: list[dict[str, Any]]) -> None:
        if self.args.paper:
            say("\n" + report.bullets(paper.NOTES))
        else:
            say("\n" + report.footnotes(rows, self.cuda, self.document["ceilings"], self.rotate))

    def model(self, name: str, entry: dict[str, Any]) -> None:
        """Prepare one network, compare, time, compare again, print."""
        network, weights = load(name, self.args.weights, self.args.seed)
        config = network.config
        size = self.args.resolution or tuple(config.resolution)
        parameters = sum(p.numel() for p in network.parameters())
        subject = Subject(name, network, size, self.args.batch, self.dtype, self.device, self.rotate, self.args.seed)
        entry |= {
            "resolution": list(size),
            "published_resolution": list(config.resolution),
            "batch": self.args.batch,
            "dtype": self.args.dtype,
            "parameters": parameters,
            "weights": weights,
        }
        note = "" if size == tuple(config.resolution) else ", not the published resolution"
        say(
            f"\n{name}: {size[0]}x{size[1]} (height x width{note}), {config.num_classes} classes, "
            f"{parameters / 1e6:.2f} M parameters, weights {weights['source']}"
        )
        self.progress(f"preparing {name}: reference")
        subject.prepare()
        entry["reference"] = subject.reference_scale
        if self.args.paper:
            paper.run(self, subject, entry)
            return
        prepared = self.cases(subject, entry)
        if not prepared:
            return
        work = self.work(subject, prepared)
        for item, samples in zip(prepared, self.time([item.case for item in prepared]), strict=True):
            # On a CPU a quick look can afford one frame for the second comparison; the first saw them all.
            only = self.rotate - 1 if self.args.quick and not self.cuda else None
            after = subject.check(item.case, only)
            if not after.passed:
                self.refuse(entry, after.sentence(item.case.name, "after timing"), wrong=True)
                continue
            entry["rows"].append(self.row(subject, item, after, samples, work.get(item.case.name[2])))
        if entry["rows"]:
            say("\n" + report.rows_table(entry["rows"], self.cuda))
            for note in self.notes(entry):
                say(note)

    def cases(self, subject: Subject, entry: dict[str, Any]) -> list[Prepared]:
        """Every row that can be run here and computes the network."""
        prepared: list[Prepared] = []
        todo = [(mode, backend) for backend in self.backends for mode in self.modes]
        for mode, backend in todo:
            self.progress(f"preparing {subject.name}: {mode} {backend}")
            base = 0
            if self.cuda:
                torch.cuda.synchronize(self.device)
                torch.cuda.reset_peak_memory_stats(self.device)
                base = torch.cuda.memory_allocated(self.device)
            found: list[Prepared] = []
            try:
                engine = subject.build(mode, backend)
                for scope in self.scopes:
                    case = subject.case(engine, mode, backend, scope)
                    result = subject.check(case)
                    if result.passed:
                        found.append(Prepared(case, engine, result))
                    else:
                        self.refuse(entry, result.sentence(case.name, "before timing"), wrong=True)
            except Exception as error:
                self.refuse(entry, self.cannot(f"Mode {mode}, backend {backend}", error))
                if mode == "compile" and ("eager", backend) not in todo:
                    say("Mode eager takes its place.")
                    todo.append(("eager", backend))
                continue
            if self.cuda:
                for item in found:
                    item.peak_mib = (torch.cuda.max_memory_allocated(self.device) - base) / 2**20
            prepared += found
        return prepared

    def work(self, subject: Subject, prepared: list[Prepared]) -> dict[str, roofline.Work | None]:
        """FLOPs and bytes of each scope, counted on an engine in eager mode: a graph shows its operators to nobody."""
        eager = {item.case.name[2]: item.case for item in reversed(prepared) if item.case.name[0] == "eager"}
        found: dict[str, roofline.Work | None] = {}
        try:
            if not eager:
                engine = subject.build("eager", self.backends[0])
                eager = {scope: subject.case(engine, "eager", self.backends[0], scope) for scope in self.scopes}
            for scope, case in eager.items():
                if scope == "host" and "frame" in eager and not self.cuda:
                    continue
                with case.context():
                    found[scope] = roofline.count(lambda case=case: case.step(0))
            if "frame" in found:
                found.setdefault("host", found["frame"])  # on a CPU they are the same
        except Exception as error:  # a count is worth less than the times it stands beside
            say(f"FLOPs and unfused bytes could not be counted ({type(error).__name__}: {one_line(error)}).")
        return found

    def row(
        self, subject: Subject, item: Prepared, after: Parity, samples: Samples, work: roofline.Work | None
    ) -> dict[str, Any]:
        mode, backend, scope = item.case.name
        steps = [n / item.case.images for n in samples.window_images]
        step_seconds = median([ms / n for ms, n in zip(samples.window_ms, steps, strict=True)]) / 1e3
        compulsory = subject.compulsory_bytes(scope)
        roof = None
        if work is not None and self.ceilings is not None:
            limit = roofline.bound(work.flops, compulsory, self.ceilings)
            roof = {"seconds": limit.seconds, "by": limit.by, "percent": limit.percent(step_seconds)}
        return {
            "mode": mode,
            "backend": backend,
            "scope": scope,
            "parity_before": item.parity.to_dict(),
            "parity_after": after.to_dict(),
            "latency_ms": summarise(samples.latency_ms),
            "device_ms": summarise(samples.device_ms) if samples.device_ms else None,
            "throughput": throughput(samples),
            "work": {
                "flops": work.flops if work else None,
                "compulsory_bytes": compulsory,
                "unfused_bytes": work.unfused_bytes if work else None,
                "operators": work.operators if work else None,
                "uncounted_operators": work.uncounted if work else None,
            },
            "roofline": roof,
            "peak_memory_mib": item.peak_mib,
            "warmup": {"steps": samples.warmup_steps, "stable": samples.warmup_stable},
            "raw": asdict(samples),
        }

    def notes(self, entry: dict[str, Any]) -> list[str]:
        """What this model's table cannot say in its columns."""
        rows = entry["rows"]
        out = [*comparisons(rows)]
        if peaks := {(r["mode"], r["backend"]): r["peak_memory_mib"] for r in rows if r["peak_memory_mib"] is not None}:
            each = ", ".join(f"{' '.join(key)} {mib:.0f} MiB" for key, mib in peaks.items())
            out.append(f"Peak GPU memory of building and running an engine, above the float32 module: {each}.")
        if restless := [f"{r['mode']} {r['backend']} {r['scope']}" for r in rows if not r["warmup"]["stable"]]:
            out.append(f"Not yet steady when the warm-up ended: {', '.join(restless)}.")
        if uncounted := {op for r in rows for op in r["work"]["uncounted_operators"] or [] if "upsample" not in op}:
            out.append(f"No FLOP formula is known for {', '.join(sorted(uncounted))}: GFLOP and roofline are too low.")
        return out
