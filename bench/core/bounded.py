"""Commands with a time limit: their output is printed and kept, and neither they nor their children outlive it."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.core.machine import ROOT

LAST_LINES = 40  # lines of a command's output that are kept
GRACE = 8  # seconds that a command has to save its results when its time is up
LOST = 5  # seconds after which a killed process is left to itself: one that the GPU's driver holds may never end
# Output of profilers and sanitizers that have no access to the GPU of this machine; then nothing was found out.
UNSUPPORTED = ("Device not supported", "Failed to initialize the profiler", "ERR_NVGPUCTRPERM")

_running: set[subprocess.Popen[str]] = set()


@dataclass(frozen=True)
class Ended:
    """Result of a command.

    Attributes:
        code: exit code; None if it could not be ended.
        late: whether it was stopped at its time limit.
        lines: last lines of output.
        refusal: first line that matches UNSUPPORTED, if any.
    """

    code: int | None
    late: bool
    lines: list[str]
    refusal: str


def run_bounded(command: list[str], seconds: float, settings: dict[str, str], log: Path, prefix: str = "") -> Ended:
    """Run a command, printing its output at once, and write all of it to ``log``."""
    lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
    refusals: list[str] = []
    process = begin(command, settings)
    _running.add(process)
    assert process.stdout is not None

    def listen(output: Iterable[str]) -> None:
        with log.open("w") as file:
            for line in output:
                print(prefix + line, end="", flush=True)
                file.write(line)
                file.flush()
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
        _running.discard(process)
    listener.join(LOST)
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
    for how, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, LOST)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, how)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def stop_all() -> None:
    """Stop what `run_bounded` runs in other threads."""
    for process in list(_running):
        stop(process)
