"""One run of a script: what every script of bench/ does around its own measuring, whatever it measures."""

from __future__ import annotations

import argparse
import gc
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench import environment, report, roofline
from bench.harness import Budget, Case, Samples, measure, median
from bench.options import probe_writable
from bench.parity import BadReference
from bench.subject import Refused, one_line
from hyperseg.runtime.device import is_out_of_memory


def say(*parts: object) -> None:
    tqdm.write(" ".join(str(p) for p in parts), file=sys.stdout)
    sys.stdout.flush()


def throughput(samples: Samples) -> dict[str, Any]:
    fps = samples.fps()
    middle = median(fps)
    spread = 100 * (max(fps) - min(fps)) / middle
    return {"fps": middle, "min": min(fps), "max": max(fps), "spread_percent": spread, "fps_by_window": fps}


def ratio(fps: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """One row's FPS over another's, round by round: a drift of the machine divides out."""
    ratios = sorted(a / b for a, b in zip(fps, base, strict=True))
    return {"median": median(ratios), "min": ratios[0], "max": ratios[-1]}


def ratio_text(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})"


class Run:
    """What is measured with, what was found. A script says in ``model`` how it measures one network.

    Attributes:
        kind: of the JSON document.
        wrong: how many things computed something else; unable: how many could not be run.
    """

    kind = ""

    def __init__(self, args: argparse.Namespace, device: torch.device, models: list[str], budget: Budget) -> None:
        self.args, self.device, self.models, self.budget = args, device, models, budget
        self.cuda = device.type == "cuda"
        self.watch = environment.Watch(self.device)
        self.wrong = 0
        self.unable = 0
        self.ceilings: roofline.Ceilings | None = None
        self.document: dict[str, Any] = {
            "schema_version": report.SCHEMA_VERSION,
            "kind": self.kind,
            "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
            "environment": environment.describe(self.device),
            "readings": self.watch.readings,
            "ceilings": None,
            "models": [],
        }

    def inputs(self, rotated: int, kind: str = "synthetic photographs") -> None:
        """Note what is measured on."""
        self.document["inputs"] = {"rotated": rotated, "caches": "warm, nothing is flushed", "kind": kind}

    def model(self, name: str, entry: dict[str, Any]) -> None:
        """Measure one network into its entry of the document."""
        raise NotImplementedError

    def introduce(self) -> None:
        """What a reader should know before the first number."""

    def close(self, rows: list[dict[str, Any]]) -> None:
        """What a reader should know after the last one."""

    def run(self) -> int:
        from hyperseg import info

        first = self.watch.read("before")
        self.document["backends"] = info.report()
        say(report.header(self.document["environment"], first))
        self.introduce()
        for name in self.models:
            entry: dict[str, Any] = {"name": name, "rows": [], "refused": []}
            self.document["models"].append(entry)
            try:
                self.model(name, entry)
            except (Refused, BadReference) as refusal:
                self.refuse(entry, str(refusal))
            except Exception as error:
                if is_out_of_memory(error):
                    self.refuse(entry, self.memory_sentence(name))
                else:
                    # A fault of ours: leave its traceback, and keep what the other models give.
                    traceback.print_exception(error, file=sys.stderr)
                    self.refuse(entry, f"{name} could not be measured ({type(error).__name__}): {one_line(error)}")
            finally:
                self.watch.read("after")
                self.save()
            self.clean()
        self.finish()
        return 2 if self.wrong else 1 if self.unable else 0

    def measure_ceilings(self, dtype: torch.dtype) -> None:
        self.ceilings = roofline.measure_ceilings(self.device, dtype, self.args.quick)
        self.document["ceilings"] = self.ceilings.to_dict()
        say(
            f"ceilings  measured now: copy {self.ceilings.copy_bytes_per_second / 1e9:.4g} GB/s (read + written), "
            f"matmul {self.ceilings.matmul_flops_per_second / 1e12:.4g} TFLOP/s in {self.ceilings.dtype}"
        )

    def progress(self, text: str) -> None:
        """A passing word for someone who watches; a log gets none."""
        if sys.stderr.isatty():
            print(f"\r{text[:100]:<100}\r", end="", file=sys.stderr, flush=True)

    def clean(self) -> None:
        """Nothing of one model may weigh on the next."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def memory_sentence(self, name: str) -> str:
        size = f" of the GPU ({torch.cuda.mem_get_info(self.device)[1] / 2**30:.0f} GiB)" if self.cuda else ""
        return (
            f"The memory{size} is not enough for {name}: try a smaller --batch or --resolution, or fewer modes at once."
        )

    def refuse(self, entry: dict[str, Any], sentence: str, wrong: bool = False) -> None:
        entry["refused"].append(sentence)
        self.wrong += wrong
        self.unable += not wrong
        say(f"\n{sentence}")

    def cannot(self, what: str, error: Exception) -> str:
        """Why something could not be built or called; what is not the user's doing also leaves its traceback."""
        import hyperseg

        if is_out_of_memory(error):
            return f"{what} cannot run here: {self.memory_sentence('it')}"
        if isinstance(error, (hyperseg.ops.BackendError, Refused, ValueError, NotImplementedError)):
            return f"{what} cannot run here: {one_line(error)}"
        traceback.print_exception(error, file=sys.stderr)
        return f"{what} cannot run here ({type(error).__name__}): {one_line(error)}"

    def time(self, cases: list[Case]) -> list[Samples]:
        total = len(cases) * self.budget.rounds
        with tqdm(total=total, desc="timing", unit="slice", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

            def on_slice(case: Case) -> None:
                bar.set_postfix_str(" ".join(case.name), refresh=False)
                bar.update()

            def on_round(done: int) -> None:
                self.watch.read_if_quick("during")

            return measure(cases, self.device, self.budget, on_slice, on_round)

    def save(self) -> None:
        self.document["summary"] = {when: self.watch.summary(when) for when in ("before", "during", "after")}
        self.document["warnings"] = self.watch.warnings()
        if self.args.json is not None:
            report.write_json(self.args.json, self.document)

    def finish(self) -> None:
        if self.cuda:
            say("\nGPU while measuring: " + report.gpu_state(self.watch.summary("during")))
        for warning in self.watch.warnings():
            say(warning)
        rows = [row for entry in self.document["models"] for row in entry["rows"]]
        if rows:
            self.close(rows)
        if self.args.json is not None:
            say(f"\nEvery sample is in {self.args.json}.")


def run_script(prog: str, args: argparse.Namespace, make: Callable[[], Run]) -> int:
    """The exit code: 0 measured, 1 something could not be run, 2 something computes what it should not."""
    run = None
    try:
        if args.json is not None:
            probe_writable(args.json)
        run = make()
        return run.run()
    except Refused as refusal:
        print(f"{prog}: {refusal}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = f" What was finished is in {args.json}." if run is not None and args.json else ""
        print(f"\nStopped.{kept}", file=sys.stderr)
        return 2 if run is not None and run.wrong else 130
