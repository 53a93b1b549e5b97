"""Run everything that needs a GPU in one command: the most valuable stages first, within a time limit, resumable.

    python bench/gpu_report.py --minutes 25
    python bench/gpu_report.py --dry-run                      # list the stages, on any machine
    python bench/gpu_report.py --stage tests ops-float16      # only these, again

It builds the extension for this GPU, runs the tests that need one, measures, tunes and profiles. After every stage it
rewrites `bench/results/<gpu>.json`: the machine, the state of each stage and its last lines of output; samples are in
the files named there. A stage that is done with the same sources is not repeated; one that failed or ran out of time
is.
Exit code: 0 every stage is done, 1 some are not (or there is no GPU), 2 a stage found a wrong output.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.core import machine
from bench.core.errors import Refused
from bench.core.machine import ROOT
from bench.core.options import Parser, positive, probe_writable
from bench.core.results import SCHEMA_VERSION, Json, read_json, write_json
from bench.core.tables import table

LAST_LINES = 40  # lines of a stage's output that are kept
GRACE = 20  # seconds that a stage has to save its results when its time is up
SOURCES = {".py", ".json", ".h", ".cpp", ".cuh", ".cu"}
LEAST = 0.5  # minutes below which no stage is begun
# Output of profilers and sanitizers that have no access to the GPU of this machine; then nothing was found out.
UNSUPPORTED = ("Device not supported", "Failed to initialize the profiler", "ERR_NVGPUCTRPERM")


@dataclass(frozen=True)
class Stage:
    """A command of the repository.

    Attributes:
        what: description for the list of stages.
        minutes: time limit.
        command: with ``{python}`` and ``{result}`` to be filled in.
        result: ending of the result file, if there is one.
        tool: program that must be installed.
        wrong: exit code that means a wrong output.
    """

    name: str
    what: str
    minutes: float
    command: str
    result: str = ""
    tool: str = ""
    wrong: int = 2


_PYTEST = "{python} -m pytest -q -p no:cacheprovider -m 'gpu and not slow'"
# These tests spend most of their time compiling Triton kernels on the CPU.
_PYTEST_PARALLEL = _PYTEST + (f" -n {min(8, os.cpu_count() or 1)}" if importlib.util.find_spec("xdist") else "")


def _parity(backend: str) -> Stage:
    return Stage(
        f"parity-{backend}",
        f"every operator of {backend} against the reference",
        6,
        f"{_PYTEST_PARALLEL} tests/ops/test_parity.py -k {backend}-cuda",
        wrong=1,
    )


def _sanitizer(tool: str) -> Stage:
    """Return the stage of one tool of compute-sanitizer.

    The tests poison fresh memory themselves, except under initcheck, which must see that nothing was written to it.
    Without PyTorch's cache every tensor is an allocation of its own, whose bounds memcheck knows.
    """
    small = "cuda-cuda and not (cityscapes or camvid or voc or bfloat16)"
    return Stage(
        tool,
        f"small cases under compute-sanitizer's {tool}",
        8,
        f"env PYTORCH_NO_CUDA_MEMORY_CACHING=1 HYPERSEG_POISON={int(tool != 'initcheck')} "
        f"compute-sanitizer --tool {tool} --kernel-regex kns=hyperseg --error-exitcode 1 "
        f"{_PYTEST} tests/ops/test_parity.py -k '{small}'",
        tool="compute-sanitizer",
        wrong=1,
    )


STAGES = (
    Stage("build", "the extension for this GPU", 6, "{python} setup.py build_ext"),
    _parity("cuda"),
    Stage(
        "fps-quick",
        "the five networks, float16, a first look",
        4,
        "{python} bench/fps.py --model hyperseg-m all --dtype float16 --quick --json {result}",
        "json",
    ),
    Stage(
        "ops-quick",
        "every operator of HyperSeg-M in CUDA C++, float16, forward and backward, a first look",
        3,
        "{python} bench/ops.py --model hyperseg-m --dtype float16 --backend cuda --backward --quick --json {result}",
        "json",
    ),
    _parity("triton"),
    Stage(
        "decoders",
        "whole decoders and levels of all networks, float16",
        4,
        "{python} bench/ops.py --model all --dtype float16 --op decoder decoder_level --json {result}",
        "json",
    ),
    Stage(
        "training",
        "operators of a training step of HyperSeg-M, 16 images, float16",
        5,
        "{python} bench/ops.py --model hyperseg-m --dtype float16 --batch 16 --backward --op decoder "
        "patch_inverted_residual_batch_norm patch_inverted_residual patch_conv2d generate_weights "
        "upsample_cross_entropy --json {result}",
        "json",
    ),
    Stage(
        "train-step",
        "training steps of HyperSeg-M, 16 images, float32 and bfloat16: time and memory against plain PyTorch",
        5,
        "{python} bench/train_step.py --model hyperseg-m --backend auto --quick --peers --json {result}",
        "json",
    ),
    Stage(
        "tests",
        "all other tests that need a GPU",
        8,
        f"{_PYTEST_PARALLEL} tests --ignore tests/ops/test_parity.py",
        wrong=1,
    ),
    _sanitizer("memcheck"),
    _sanitizer("racecheck"),
    Stage(
        "modes",
        "HyperSeg-M in every mode and backend, float16",
        8,
        "{python} bench/fps.py --model hyperseg-m --dtype float16 --mode eager compile cudagraph "
        "--backend reference triton cuda --json {result}",
        "json",
    ),
    *(
        Stage(
            f"mbconv-{launches}",
            f"the encoder's blocks in CUDA C++ with the {launches} launches, to check the cost model",
            2,
            f"env HYPERSEG_MBCONV={launches} {{python}} bench/ops.py --model hyperseg-m --dtype float16 --op mbconv "
            "--backend cuda --json {result}",
            "json",
        )
        for launches in ("fewest", "most")
    ),
    Stage(
        "overhead",
        "host overhead per call",
        2,
        "{python} bench/overhead.py --dtype float16 --backward --json {result}",
        "json",
    ),
    Stage(
        "tune",
        "launch options of the Triton kernels",
        10,
        "{python} bench/tune.py --model hyperseg-m all --dtype float16",
    ),
    *(
        Stage(
            f"ops-{dtype}",
            f"every operator of all networks, {dtype}, forward and backward",
            12,
            f"{{python}} bench/ops.py --model hyperseg-m all --dtype {dtype} --backward --json {{result}}",
            "json",
        )
        for dtype in ("float16", "float32", "bfloat16")
    ),
    Stage(
        "fps",
        "the five networks, float16, in full",
        12,
        "{python} bench/fps.py --model hyperseg-m all --dtype float16 --mode eager cudagraph --json {result}",
        "json",
    ),
    Stage(
        "train-steps",
        "training steps of the five recipes, eager and compiled, beside other networks, and which batch fits",
        20,
        "{python} bench/train_step.py --model hyperseg-m all --compile none encoder model --fits --json {result}",
        "json",
    ),
    Stage(
        "profile",
        "kernels of HyperSeg-M under Nsight Compute",
        5,
        # Leave the clocks as they are: this script does not change the settings of a GPU.
        "ncu --clock-control none --csv --log-file {result} --kernel-name-base demangled --kernel-name regex:hyperseg "
        "--launch-count 60 "
        "{python} bench/fps.py --model hyperseg-m --dtype float16 --mode eager --iterations 1 --quick",
        "csv",
        "ncu",
        0,
    ),
    _sanitizer("synccheck"),
    _sanitizer("initcheck"),
)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("bench/gpu_report.py", __doc__)
    add = parser.add_argument
    add("--minutes", type=positive(float), default=120, metavar="N", help="for all stages together (120)")
    add("--stage", nargs="+", choices=[s.name for s in STAGES], metavar="NAME", help="only these, even if done")
    add("--output", type=Path, default=ROOT / "bench/results", metavar="FOLDER", help="default: bench/results")
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


def missing(stage: Stage) -> str:
    return f"{stage.tool} is not installed" if stage.tool and not shutil.which(stage.tool) else ""


class Report:
    """Runs stages, and keeps the file with the state of each."""

    def __init__(self, device: str, folder: Path, minutes: float) -> None:
        from hyperseg.kernels.launch import table_path  # here, so that --dry-run works without Triton

        self.path = folder / table_path(device).name  # named as tuned tables are
        self.until = time.monotonic() + 60 * minutes
        probe_writable(self.path)
        before = read_json(self.path) if self.path.is_file() else {}
        self.document: Json = {
            "schema_version": SCHEMA_VERSION,
            "kind": "hyperseg-gpu-report",
            "environment": machine.describe(torch.device("cuda")),
            "stages": before.get("stages", {}),
        }
        self.sources = fingerprint()

    def left(self) -> float:
        """Return the minutes left."""
        return (self.until - time.monotonic()) / 60

    def is_done(self, stage: Stage) -> bool:
        known = self.document["stages"].get(stage.name, {})
        return known.get("state") == "done" and known.get("sources") == self.sources

    def run(self, stage: Stage) -> None:
        """Run one stage; stop it at its time limit, or when the time for all stages is up."""
        if message := missing(stage):
            self.note(stage, state="skipped", why=message)
        elif self.left() < LEAST:
            self.note(stage, state="out of time", why="no time was left to begin")
        else:
            minutes = min(stage.minutes, self.left())
            command = self.command(stage)
            print(f"\n=== {stage.name}: {stage.what}; {minutes:.1f} minutes at most\n{shlex.join(command)}", flush=True)
            began = time.monotonic()
            ended = run_bounded(command, 60 * minutes, {"TORCH_CUDA_ARCH_LIST": self.architecture()})
            if ended.refusal:
                self.note(stage, state="skipped", why=ended.refusal, command=stage.command, last_lines=ended.lines)
                return
            state = "out of time" if ended.late else "done" if ended.code == 0 else "failed"
            found: Json = {"state": state, "exit_code": ended.code, "seconds": time.monotonic() - began}
            if stage.result and (file := self.result(stage)).is_file():
                found["result"] = file.name
            self.note(stage, **found, command=stage.command, last_lines=ended.lines)

    def note(self, stage: Stage, **found: Any) -> None:
        self.document["stages"][stage.name] = {"sources": self.sources, **found}
        write_json(self.path, self.document)

    def command(self, stage: Stage) -> list[str]:
        return shlex.split(stage.command.format(python=sys.executable, result=self.result(stage)))

    def result(self, stage: Stage) -> Path:
        return self.path.with_name(f"{self.path.stem}-{stage.name}.{stage.result}")

    def architecture(self) -> str:
        return "{}.{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else ""


@dataclass(frozen=True)
class Ended:
    """Result of a command.

    Attributes:
        code: exit code.
        late: whether it was stopped at its time limit.
        lines: last lines of output.
        refusal: first line that matches UNSUPPORTED, if any.
    """

    code: int | None
    late: bool
    lines: list[str]
    refusal: str


def run_bounded(command: list[str], seconds: float, settings: dict[str, str]) -> Ended:
    """Run a command, printing its output at once."""
    lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
    refusals: list[str] = []
    process = begin(command, settings)
    assert process.stdout is not None

    def listen(output: Iterable[str]) -> None:
        for line in output:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
            if any(text in line for text in UNSUPPORTED):
                refusals.append(line.strip())

    listener = threading.Thread(target=listen, args=(process.stdout,), daemon=True)
    listener.start()
    late = False
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        stop(process)
    listener.join(5)
    return Ended(process.poll(), late, list(lines), refusals[0] if refusals else "")


def begin(command: list[str], settings: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {name: value for name, value in settings.items() if value},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        # Background jobs of a shell ignore this signal, and their children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def stop(process: subprocess.Popen[str]) -> None:
    """Stop a command and its children: first by SIGINT, on which the commands of bench/ save results, then SIGKILL."""
    for how, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, 5)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, how)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def plan() -> str:
    rows = [[s.name, s.what, f"{s.minutes:g}", missing(s) or "-"] for s in STAGES]
    return table(["stage", "what", "minutes at most", "missing here"], rows, left=2)


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
        report = Report(device, args.output, args.minutes)
    except Refused as refusal:
        print(f"bench/gpu_report.py: {refusal}", file=sys.stderr)
        return 1
    try:
        for stage in stages:
            if report.is_done(stage) and not args.stage:
                print(f"{stage.name} is done with these sources.")
            else:
                report.run(stage)
    except KeyboardInterrupt:
        print(f"\nStopped. Finished results are in {report.path}.", file=sys.stderr)
        return 130
    print("\n" + summary(report, stages) + f"\n\n{report.path}")
    found = {s.name: report.document["stages"].get(s.name, {}) for s in stages}
    if any(s.wrong and found[s.name].get("exit_code") == s.wrong for s in stages):
        return 2
    return 0 if all(entry.get("state") == "done" for entry in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
