"""One run of a command that measures: its networks, its result file, its exit code."""

from __future__ import annotations

import argparse
import gc
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

import hyperseg
from bench.core import machine, roofline, tables
from bench.core.errors import Refused, one_line
from bench.core.options import probe_writable
from bench.core.parity import BadReference
from bench.core.results import NetworkResults, Results, Row, write_results
from bench.core.timing import Budget, Case, Samples, measure
from hyperseg import info
from hyperseg.runtime.device import is_out_of_memory


def log(text: str) -> None:
    """Print a line to stdout, past progress bars."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


class Run:
    """Base of a command's run; `measure_network` says how one network is measured.

    Attributes:
        kind: of the result file.
        wrong: number of outputs that failed the comparison;
        unable: number of things that could not be run.
    """

    kind = ""

    def __init__(self, args: argparse.Namespace, device: torch.device, models: list[str], budget: Budget) -> None:
        self.args, self.device, self.models, self.budget = args, device, models, budget
        self.cuda = device.type == "cuda"
        self.watch = machine.Watch(self.device)
        self.wrong = 0
        self.unable = 0
        self.results = Results(
            kind=self.kind,
            arguments={k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
            environment=machine.describe(self.device),
            readings=self.watch.readings,
        )

    def describe_inputs(self, rotated: int, kind: str = "synthetic frames") -> None:
        self.results.inputs = {"rotated": rotated, "caches": "warm, nothing is flushed", "kind": kind}

    def measure_network(self, entry: NetworkResults) -> None:
        """Measure the network named in ``entry``, and fill it."""
        raise NotImplementedError

    def print_settings(self) -> None:
        """Print what a reader needs before the first row."""

    def print_notes(self, rows: list[Row]) -> None:
        """Print what a reader needs after the last row."""

    def run(self) -> int:
        """Measure all networks; return the exit code."""
        first = self.watch.read("before")
        self.results.backends = info.report()
        log(tables.header(self.results.environment, first))
        self.print_settings()
        for name in self.models:
            entry = NetworkResults(name=name)
            self.results.models.append(entry)
            try:
                self.measure_network(entry)
            except (Refused, BadReference) as refusal:
                self.refuse(entry, str(refusal))
            except Exception as error:
                if is_out_of_memory(error):
                    self.refuse(entry, self.out_of_memory(name))
                else:
                    # A bug: print its traceback, and keep the results of the other networks.
                    traceback.print_exception(error, file=sys.stderr)
                    self.refuse(entry, f"{name} could not be measured ({type(error).__name__}): {one_line(error)}")
            finally:
                self.watch.read("after")
                self.save()
            self.clean()
        self.finish()
        return 2 if self.wrong else 1 if self.unable else 0

    def measure_ceilings(self, dtype: torch.dtype) -> roofline.Ceilings:
        ceilings = roofline.measure_ceilings(self.device, dtype, self.args.quick)
        self.results.ceilings = ceilings
        silu = ceilings.silu_per_second
        log(
            f"ceilings  measured now: copy {ceilings.copy_bytes_per_second / 1e9:.4g} GB/s (read + written), "
            f"matmul {ceilings.matmul_flops_per_second / 1e12:.4g} TFLOP/s in {ceilings.dtype}"
            + (f", SiLU {silu / 1e9:.4g} billion values/s in float32" if silu else "")
        )
        return ceilings

    def progress(self, text: str) -> None:
        """Show what happens now on a terminal; a log file gets nothing."""
        if sys.stderr.isatty():
            print(f"\r{text[:100]:<100}\r", end="", file=sys.stderr, flush=True)

    def clean(self) -> None:
        """Free the memory of one network before the next."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def out_of_memory(self, name: str) -> str:
        size = f" of the GPU ({torch.cuda.mem_get_info(self.device)[1] / 2**30:.0f} GiB)" if self.cuda else ""
        return (
            f"The memory{size} is not enough for {name}: try a smaller --batch or --resolution, or fewer modes at once."
        )

    def refuse(self, entry: NetworkResults, message: str, wrong: bool = False) -> None:
        entry.refused.append(message)
        self.wrong += wrong
        self.unable += not wrong
        log(f"\n{message}")

    def cannot(self, what: str, error: Exception) -> str:
        """Return why ``what`` could not be built or called; print the traceback of a bug."""
        if is_out_of_memory(error):
            return f"{what} cannot run here: {self.out_of_memory('it')}"
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

    def warnings(self) -> list[str]:
        """Return what a reader must know before trusting the numbers."""
        return self.watch.warnings()

    def save(self) -> None:
        self.results.summary = {when: self.watch.summary(when) for when in ("before", "during", "after")}
        self.results.warnings = self.warnings()
        if self.args.json is not None:
            write_results(self.args.json, self.results)

    def finish(self) -> None:
        if self.cuda:
            log("\nGPU while measuring: " + tables.gpu_state(self.watch.summary("during")))
        for warning in self.warnings():
            log(warning)
        if rows := self.results.rows:
            self.print_notes(rows)
        if self.args.json is not None:
            log(f"\nAll samples are in {self.args.json}.")


def run_command(command: str, args: argparse.Namespace, make: Callable[[], Run]) -> int:
    """Run a command and return its exit code: 0 measured, 1 something could not be run, 2 an output is wrong."""
    run = None
    try:
        if args.json is not None:
            probe_writable(args.json)
        run = make()
        return run.run()
    except Refused as refusal:
        print(f"{command}: {refusal}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = f" Finished results are in {args.json}." if run is not None and args.json else ""
        print(f"\nStopped.{kept}", file=sys.stderr)
        return 2 if run is not None and run.wrong else 130
