"""What a run leaves to read: a JSON line per step, one per validation, a progress line, TensorBoard if installed."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from hyperseg._files import atomic_write, printable

STEPS, VALIDATIONS = "log.jsonl", "validation.jsonl"
_SETTLED = 50  # steps after which the share of waiting says something


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON lines file; a last line that was cut off is left out."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


class RunLog:
    """Writes the log of a run.

    Args:
        folder: of the run.
        step: completed steps; records of later ones, of a process that was killed, are removed.
        active: whether this process writes.
    """

    def __init__(self, folder: Path, step: int, active: bool):
        self._files: dict[str, Any] = {}
        self._board: Any = None
        if not active:
            return
        for name in (STEPS, VALIDATIONS):
            path = folder / name
            records = read_lines(path)
            kept = [record for record in records if record["step"] <= step]
            if path.exists():
                with atomic_write(path) as temporary:
                    temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
            self._files[name] = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._board = _tensorboard(folder, step)

    def steps(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Add a line per step; they reach the file by :meth:`flush`."""
        for record in records:
            self._write(STEPS, record, ("loss", "lr", "grad_norm", "images_per_s", "wait"), "train")

    def validation(self, record: Mapping[str, Any]) -> None:
        """Add the line of a validation."""
        self._write(VALIDATIONS, record, ("miou", "pixel_accuracy"), "val")
        self.flush()

    def _write(self, name: str, record: Mapping[str, Any], scalars: Iterable[str], group: str) -> None:
        if name not in self._files:
            return
        self._files[name].write(_line(record))
        for key in scalars if self._board is not None else ():
            if record.get(key) is not None:
                self._board.add_scalar(f"{group}/{key}", record[key], record["step"])

    def flush(self) -> None:
        """Write to the files what was added."""
        for file in self._files.values():
            file.flush()

    def close(self) -> None:
        """Flush and close."""
        for file in self._files.values():
            file.close()
        if self._board is not None:
            self._board.close()


def _line(record: Mapping[str, Any]) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


class Meter:
    """Speed of steps: images per second, and the share of the time that they waited for data.

    Call ``arrived`` when a batch is there, ``asked`` when the next one is asked for.
    """

    def __init__(self) -> None:
        self.done, self.seconds = 0, 0.0  # of all steps
        # Images, seconds waited and seconds since a reader read last.
        self._windows: dict[str, list[float]] = {reader: [0.0, 0.0, 0.0] for reader in ("log", "console")}
        self.restart()

    def restart(self) -> None:
        """Count from now on: what was before, such as a validation, is no part of a step."""
        self._last = self._asked = time.perf_counter()

    def asked(self) -> None:
        """The next batch is asked for."""
        self._asked = time.perf_counter()

    def arrived(self, images: int) -> None:
        """A batch is there, of so many images of all processes."""
        self._add(images, time.perf_counter() - self._asked)
        self.done += 1

    def _add(self, images: int = 0, waited: float = 0.0) -> None:
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        self.seconds += passed
        for window in self._windows.values():
            window[:] = window[0] + images, window[1] + waited, window[2] + passed

    def read(self, device: torch.device, reader: str) -> dict[str, float]:
        """Return the figures since ``reader`` called last."""
        self._add()
        images, waited, seconds = self._windows[reader]
        self._windows[reader] = [0.0, 0.0, 0.0]
        seconds = max(seconds, 1e-9)
        return {
            "images_per_s": round(images / seconds, 3),
            "wait": round(waited / seconds, 4),
            "memory_gb": round(memory(device) / 1e9, 3),
        }

    def left(self, steps: int) -> float:
        """Return the seconds that so many steps take at the mean speed so far, without validations."""
        return self.seconds / max(self.done, 1) * steps


def memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of PyTorch on a GPU, of the process on a CPU (0 if unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def progress_line(record: Mapping[str, Any], steps: int, seconds_left: float) -> str:
    """Return the line of a step: loss, rate, speed, share of time waiting for data, memory, time left."""
    loss = "-" if record["loss"] is None else f"{record['loss']:.4f}"
    hint = (
        " (more data.workers, or hyperseg data cache)" if record["wait"] > 0.05 and record["step"] >= _SETTLED else ""
    )
    return (
        f"step {record['step']}/{steps}  loss {loss}  lr {record['lr']:.2e}  "
        f"{record['images_per_s']:.1f} images/s  data {100 * record['wait']:.0f} %{hint}  "
        f"memory {record['memory_gb']:.1f} GB  left {_duration(seconds_left)}"
    )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Console:
    """Prints progress on stderr: one line that is overwritten on a terminal, a line each time elsewhere."""

    def __init__(self, active: bool):
        self.active, self.terminal = active, sys.stderr.isatty()
        self._open = False

    def progress(self, text: str) -> None:
        """Show the progress line."""
        if not self.active:
            return
        if self.terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            sys.stderr.write(f"\r\x1b[K{text[: width - 1]}")
            self._open = True
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def say(self, text: str) -> None:
        """Print a message on a line of its own."""
        if not self.active:
            return
        line = "\n" if self._open else ""
        sys.stderr.write(f"{line}hyperseg train: {printable(text)}\n")
        sys.stderr.flush()
        self._open = False
