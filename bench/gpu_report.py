"""Run everything that needs a GPU in one command: the most valuable stages first, within a time limit, resumable.

    python bench/gpu_report.py --minutes 5 --bound 120 --archive first.tgz    # a verdict: does it run, is it right
    python bench/gpu_report.py --minutes 25                                   # the rest, as far as that goes
    python bench/gpu_report.py --dry-run                                      # list the stages, on any machine
    python bench/gpu_report.py --stage tests ops-float16                      # only these, again

It builds the extension for this GPU, runs the tests that need one, measures, tunes and profiles. After every stage it
rewrites `<output>/<gpu>.json`: the machine, the state of each stage and its last lines of output; samples are in the
files named there, whole logs in build/gpu-report. A stage that is done with the same sources is not repeated; one that
failed or ran out of time is. HYPERSEG_EXTENSION names a build that was made elsewhere (`make sm90`): if it loads,
nothing is built here.
Exit code: 0 every stage is done, 1 some are not (or there is no GPU), 2 a stage found a wrong output.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.core import machine
from bench.core.bounded import GRACE, run_bounded, stop_all
from bench.core.errors import Refused
from bench.core.machine import ROOT
from bench.core.options import Parser, positive, probe_writable
from bench.core.results import SCHEMA_VERSION, Json, read_json, write_json
from bench.core.stages import STAGES, Stage, turns
from bench.core.tables import table

SOURCES = {".py", ".json", ".h", ".cpp", ".cuh", ".cu"}
LEAST = 15  # seconds below which no stage is begun
EXTENSION = "HYPERSEG_EXTENSION"
# Exit code 0 if the extension that HYPERSEG_EXTENSION names loads with this Python and torch, and has CUDA kernels.
LOADS = (
    "from hyperseg.ops.backends import native; module, message = native.extension(); "
    "exit(message or (None if module.cuda_architectures else 'it was built without CUDA kernels'))"
)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("bench/gpu_report.py", __doc__)
    add = parser.add_argument
    add("--minutes", type=positive(float), default=120, metavar="N", help="for all stages together (120)")
    add("--bound", type=positive(float), default=1e6, metavar="SECONDS", help="at most this for each stage")
    add("--stage", nargs="+", choices=[s.name for s in STAGES], metavar="NAME", help="only these, even if done")
    add("--output", type=Path, default=ROOT / "bench/results", metavar="FOLDER", help="default: bench/results")
    add("--archive", type=Path, metavar="FILE", help="after every stage, pack results and logs into this .tgz")
    add("--dry-run", action="store_true", help="list the stages and the tools that are missing here")
    return parser.parse_args(argv)


def device_name() -> str | None:
    """Return the GPU's name in CUDA; None if there is no GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def fingerprint() -> str:
    """Return a hash of the sources that stages depend on, without results and tuned tables. It needs no git."""
    found = hashlib.sha256()
    for folder in ("csrc", "hyperseg", "kernels", "bench", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SOURCES and not {"results", "tuned", "__pycache__"} & set(path.parts):
                found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]


class Report:
    """Runs stages, and keeps the file with the state of each."""

    def __init__(self, device: str, args: argparse.Namespace) -> None:
        from hyperseg.kernels.launch import table_path  # here, so that --dry-run works without Triton

        self.path = args.output / table_path(device).name  # named as tuned tables are
        self.until = time.monotonic() + 60 * args.minutes
        self.bound = args.bound
        self.archive: Path | None = args.archive
        self.logs = ROOT / "build/gpu-report"
        self.logs.mkdir(parents=True, exist_ok=True)
        probe_writable(self.path)
        if self.archive:
            probe_writable(self.archive)
        before = read_json(self.path) if self.path.is_file() else {}
        self.document: Json = {
            "schema_version": SCHEMA_VERSION,
            "kind": "hyperseg-gpu-report",
            "environment": machine.describe(torch.device("cuda")),
            "stages": before.get("stages", {}),
        }
        self.sources = fingerprint()
        self.settings = {"TORCH_CUDA_ARCH_LIST": self.architecture()}
        self.writing = threading.Lock()  # stages of one turn end in their own threads

    def left(self) -> float:
        """Return the seconds left for stages, without those that the last one may take to save its results."""
        return self.until - time.monotonic() - GRACE

    def is_done(self, stage: Stage) -> bool:
        known = self.document["stages"].get(stage.name, {})
        return known.get("state") == "done" and known.get("sources") == self.sources

    def run_turn(self, stages: list[Stage]) -> None:
        """Run stages at the same time."""
        threads = [threading.Thread(target=self.run, args=(stage, len(stages) > 1), daemon=True) for stage in stages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def run(self, stage: Stage, named: bool = False) -> None:
        """Run one stage; stop it at its time limit, or when the time for all stages is up.

        Args:
            named: begin each line of its output with its name.
        """
        if message := stage.missing():
            self.note(stage, state="skipped", why=message)
        elif self.left() < LEAST:
            self.note(stage, state="out of time", why="no time was left to begin")
        elif stage.name == "build" and (extension := self.carried()):
            self.note(stage, state="done", exit_code=0, seconds=0.0, why=f"{EXTENSION}={extension} loads")
        else:
            seconds = min(stage.seconds, self.bound, self.left())
            command = self.command(stage)
            print(f"\n=== {stage.name}: {stage.what}; {seconds:.0f} s at most\n{shlex.join(command)}", flush=True)
            began = time.monotonic()
            prefix = f"{stage.name}: " if named else ""
            ended = run_bounded(command, seconds, self.settings, self.log(stage), prefix)
            if ended.refusal:
                self.note(stage, state="skipped", why=ended.refusal, command=stage.command, last_lines=ended.lines)
                return
            state = "out of time" if ended.late else "done" if ended.code == 0 else "failed"
            found: Json = {"state": state, "exit_code": ended.code, "seconds": time.monotonic() - began}
            if stage.result and (file := self.result(stage)).is_file():
                found["result"] = file.name
            self.note(stage, **found, command=stage.command, last_lines=ended.lines)

    def carried(self) -> str:
        """Return the extension that HYPERSEG_EXTENSION names; an empty string if that is unset or does not load."""
        if not (extension := os.environ.get(EXTENSION)):
            return ""
        tried = subprocess.run([sys.executable, "-c", LOADS], cwd=ROOT, capture_output=True, text=True, timeout=120)
        if tried.returncode == 0:
            return extension
        print(f"{EXTENSION} is not used: {tried.stderr.strip()}", flush=True)
        del os.environ[EXTENSION]  # the stages take what is built here
        return ""

    def note(self, stage: Stage, **found: Any) -> None:
        with self.writing:
            self.document["stages"][stage.name] = {"sources": self.sources, **found}
            write_json(self.path, self.document)
            if self.archive:
                self.pack(self.archive)

    def pack(self, archive: Path) -> None:
        """Write results and logs of this GPU to ``archive``, complete at any time."""
        part = archive.with_name(archive.name + ".part")
        with tarfile.open(part, "w:gz") as tar:
            for file in sorted(self.path.parent.glob(f"{self.path.stem}*")):
                if file.name not in (part.name, archive.name):
                    tar.add(file, f"results/{file.name}")
            tar.add(self.logs, "logs")
        part.replace(archive)

    def command(self, stage: Stage) -> list[str]:
        scratch = Path(tempfile.gettempdir()) / f"hyperseg-{stage.name}"
        filled = stage.command.format(python=sys.executable, result=self.result(stage), scratch=scratch)
        return shlex.split(filled)

    def result(self, stage: Stage) -> Path:
        return self.path.with_name(f"{self.path.stem}-{stage.name}.{stage.result}")

    def log(self, stage: Stage) -> Path:
        return self.logs / f"{stage.name}.log"

    def architecture(self) -> str:
        return "{}.{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else ""


def plan() -> str:
    rows = [[s.name, s.what, f"{s.seconds:g}", s.missing() or "-"] for s in STAGES]
    return table(["stage", "what", "seconds at most", "missing here"], rows, left=2)


def summary(report: Report, stages: list[Stage]) -> str:
    rows = []
    for stage in stages:
        found = report.document["stages"].get(stage.name, {"state": "not begun"})
        last = found.get("why") or next((line for line in reversed(found.get("last_lines", [])) if line.strip()), "")
        rows.append([stage.name, found["state"], f"{found.get('seconds', 0):.0f}", last[:100]])
    return table(["stage", "state", "seconds", "last line"], rows, left=2)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    device = device_name()
    if args.dry_run or device is None:
        print(plan())
        if device is None:
            what = "no stage could run" if args.dry_run else "nothing was run"
            print(f"\nbench/gpu_report.py: PyTorch sees no CUDA device here; {what}.", file=sys.stderr)
        return 0 if args.dry_run else 1
    stages = [s for s in STAGES if not args.stage or s.name in args.stage]
    try:
        report = Report(device, args)
    except Refused as refusal:
        print(f"bench/gpu_report.py: {refusal}", file=sys.stderr)
        return 1
    try:
        for turn in turns(stages):
            due = [stage for stage in turn if args.stage or not report.is_done(stage)]
            for stage in turn:
                if stage not in due:
                    print(f"{stage.name} is done with these sources.")
            report.run_turn(due)
    except KeyboardInterrupt:
        stop_all()
        print(f"\nStopped. Finished results are in {report.path}.", file=sys.stderr)
        return 130
    print("\n" + summary(report, stages) + f"\n\n{report.path}")
    found = {s.name: report.document["stages"].get(s.name, {}) for s in stages}
    if any(s.wrong and found[s.name].get("exit_code") == s.wrong for s in stages):
        return 2
    return 0 if all(entry.get("state") == "done" for entry in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
