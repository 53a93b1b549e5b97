"""Child processes for the verification: how one is started, watched and, when it crashes or hangs, replaced.

A slow machine must not make a kernel look wrong: the patience is many times what a case takes, a case that exceeds it
is tried once more, and a process that is killed from outside says nothing about the kernel.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from hyperseg.ops.backends.verdicts import UNKNOWN, WRONG, Verdict

# The child finds modules where this process does, whether that is a script, a notebook or `python -c`.
CODE = "import json, sys; sys.path[:] = json.loads(sys.argv[1])['path']; from hyperseg.verify.child import main; main()"
START_PATIENCE = 180.0  # seconds until a child is ready: it imports torch, perhaps from a slow disk
CASE_PATIENCE = (
    40.0  # seconds per case, which takes milliseconds, and compiling it with Triton; twice as many at a second try
)
MOST_FAULTS = 3  # crashes or hangs, after which the rest is left unverified
FAULTS = {getattr(signal, name, None) for name in ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE", "SIGTRAP")}


class Unavailable(RuntimeError):
    """No child process can verify kernels here; the message says why."""


class Item(NamedTuple):
    """A kernel in one dtype."""

    operator: str
    backend: str
    dtype: str

    def verdict(self, outcome: str, reason: str) -> Verdict:
        return Verdict(*self, outcome, reason)


@dataclass
class Session:
    """What one child process did.

    Attributes:
        ready: whether it could use the device.
        verdicts: in the order of its items.
        case: the case that ran when it ended before its time; None if none did.
        ended: whether it ended by itself, after all items or at the end of its time.
        hung: whether it was killed because it reported nothing for too long.
        code: exit status; negative: the number of the signal that ended it.
        seconds: from ready to the last report.
        errors: last lines of its standard error.
    """

    ready: bool = False
    verdicts: list[Verdict] = field(default_factory=list)
    case: str | None = None
    ended: bool = False
    hung: bool = False
    code: int | None = None
    seconds: float = 0.0
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=20))

    @property
    def last_error(self) -> str:
        return next((line for line in reversed(self.errors) if line.strip()), "").strip()[:300]


def verify(items: Sequence[Item], device: torch.device, seconds: float | None) -> tuple[list[Verdict], float | None]:
    """Verify kernels in child processes.

    Args:
        seconds: after so many no further kernel is started; None: no limit. Crashes and hangs do not count.

    Returns:
        The verdicts, and the seconds that are left. There is none on the other dtypes of a kernel that crashed or hung.

    Raises:
        Unavailable: no child process can be started, or it cannot use the device.
    """
    # Triton's compiler takes seconds per kernel, on one core.
    compiles = any(item.backend == "triton" for item in items)
    shares = _shares(items, min(4, max(1, _cores() // 2)) if compiles else 1)
    if len(shares) == 1:
        return _verify_share(items, device, seconds, threading.Event())
    stop = threading.Event()
    with ThreadPoolExecutor(len(shares)) as pool:
        try:
            parts = list(pool.map(lambda share: _verify_share(share, device, seconds, stop), shares))
        except BaseException:  # such as an interrupt: threads that the pool waits for must not start more children
            stop.set()
            raise
    left = None if seconds is None else min(left for _, left in parts if left is not None)
    return [verdict for found, _ in parts for verdict in found], left


def _verify_share(
    items: Sequence[Item], device: torch.device, seconds: float | None, stop: threading.Event
) -> tuple[list[Verdict], float | None]:
    pending, verdicts, faults, ready = list(items), [], 0, False
    why = "it was not reached within the time limit"
    while pending and (seconds is None or seconds > 0) and not stop.is_set():
        session = run_child(pending, device, seconds, CASE_PATIENCE)
        if not session.ready:
            why = f"a child process could not use {device}: {_ending(session)}"
            if not ready:
                raise Unavailable(why)
            break
        ready = True
        verdicts += session.verdicts
        pending = pending[len(session.verdicts) :]
        seconds = None if seconds is None else seconds - session.seconds
        if session.ended or not pending:
            break
        if session.case is not None:
            verdicts.append(_try_again(pending[0], device) if session.hung else pending[0].verdict(*_blame(session)))
        # Else it ended itself after its last verdict, because the device was unusable.
        if verdicts and verdicts[-1].outcome == WRONG:
            pending = [item for item in pending if item[:2] != verdicts[-1].kernel]
        else:
            pending = pending[1:]
        faults += 1
        if faults == MOST_FAULTS:
            why = f"the verification ended after {faults} crashes or hangs of other kernels"
            break
    return verdicts + [item.verdict(UNKNOWN, why) for item in pending], seconds


def _try_again(item: Item, device: torch.device) -> Verdict:
    """Return the verdict on a kernel that hung, alone and with more patience: perhaps the machine was slow."""
    try:
        session = run_child([item], device, None, 2 * CASE_PATIENCE)
    except Unavailable as error:
        return item.verdict(UNKNOWN, str(error))
    if session.verdicts:
        return session.verdicts[0]
    if not session.ready:
        return item.verdict(UNKNOWN, f"it hung, and then {device} could not be used: {_ending(session)}")
    return item.verdict(*_blame(session))


def _blame(session: Session) -> tuple[str, str]:
    """Return the outcome and the reason for the kernel whose case ran when the process ended."""
    where = f"case {session.case}: " if session.case else ""
    if session.hung:
        return WRONG, f"{where}it did not finish within {2 * CASE_PATIENCE:.0f} s"
    if session.code is not None and session.code < 0 and -session.code not in FAULTS:
        return UNKNOWN, f"{where}its process was killed ({_ending(session)}), perhaps for lack of memory"
    return WRONG, f"{where}it ended the process ({_ending(session)})"


def _ending(session: Session) -> str:
    if session.hung:
        return f"no sign of life for {START_PATIENCE:.0f} s"
    if session.code is not None and session.code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-session.code).name
    return f"exit status {session.code}" + (f": {session.last_error}" if session.last_error else "")


def run_child(items: Sequence[Item], device: torch.device, seconds: float | None, patience: float) -> Session:
    """Verify kernels in one child process, until all are done, it ends, or it reports nothing for too long.

    Raises:
        Unavailable: it cannot be started.
    """
    path = [os.path.abspath(entry) for entry in sys.path]
    request = json.dumps({"device": str(device), "items": items, "seconds": seconds, "path": path})
    environment = {name: value for name, value in os.environ.items() if name != "HYPERSEG_BACKEND"}
    try:
        process = subprocess.Popen(
            [_interpreter(), "-c", CODE, request],
            env=environment | {"HYPERSEG_VERIFY": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except (OSError, ValueError) as error:
        raise Unavailable(f"no child process can be started: {error}") from None
    session = Session()
    try:
        _watch(process, session, patience)
    finally:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a process may be stuck in the driver for good
            process.wait(timeout=10)
    return session


def _watch(process: subprocess.Popen, session: Session, patience: float) -> None:
    """Read the reports of a child into ``session``."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    readers = [
        threading.Thread(target=_read, args=(process.stdout, lines.put, lines.put), daemon=True),
        threading.Thread(target=_read, args=(process.stderr, session.errors.append, None), daemon=True),
    ]
    for reader in readers:
        reader.start()
    began = time.monotonic()
    while True:
        try:
            line = lines.get(timeout=patience if session.ready else START_PATIENCE)
        except queue.Empty:
            session.hung = True
            return
        if line is None:
            break
        event = _event(line)
        if event.get("ready"):
            session.ready, began = True, time.monotonic()
        elif "case" in event:
            session.case = event["case"]
        elif "verdict" in event:
            session.verdicts.append(Verdict(**event["verdict"]))
            session.case = None
        elif event.get("end"):
            session.ended = True
        session.seconds = time.monotonic() - began
    with contextlib.suppress(subprocess.TimeoutExpired):
        session.code = process.wait(timeout=10)
    readers[1].join(timeout=1)  # its last lines


def _event(line: str) -> dict[str, Any]:
    """Return a report; an incomplete line, written by a process that ended meanwhile, is none."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _read(stream: IO[str], put: Callable[[str], None], at_end: Callable[[None], None] | None) -> None:
    with stream, contextlib.suppress(ValueError):
        for line in stream:
            put(line)
    if at_end is not None:
        at_end(None)


def _interpreter() -> str:
    """Return the Python interpreter of this process.

    Raises:
        Unavailable: Python is part of another program, which must not be started a second time.
    """
    program = sys.executable
    if not program or getattr(sys, "frozen", False) or "python" not in Path(program).name.lower():
        raise Unavailable(f"no child process can be started: {program or 'this program'} is no Python interpreter")
    return program


def _shares(items: Sequence[Item], most: int) -> list[list[Item]]:
    """Divide items between processes, all of an operator in one: dtypes of a kernel often fail alike."""
    operators = list(dict.fromkeys(item.operator for item in items))
    count = max(1, min(most, len(operators)))
    shares = [[item for item in items if operators.index(item.operator) % count == i] for i in range(count)]
    return shares


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
