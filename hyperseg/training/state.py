"""The state of a run in one file: written all at once, listed by step, refused if it belongs to another run.

Samples and noise are functions of the seed and the step, so no state of a loader is needed. A state is loaded without
executing anything in it.
"""

import contextlib
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from hyperseg._files import atomic_writes, printable
from hyperseg.training.config import ConfigError

FORMAT = 1
_NAME = re.compile(r"step-(\d{8})\.pt")

# What may differ between a state and the run that continues from it: it changes no sample, and no result by more than
# rounding (batch norms apart, which see the parts of an accumulated batch one by one).
HARMLESS = {
    "data.root",
    "data.workers",
    "data.cache",
    "speed.channels_last",
    "speed.compile",
    "speed.accumulate",
    "speed.lean_blocks",
    "speed.recompute",
    "validation.every",
    "validation.pictures",
    "validation.batch",
    "run.save_every",
    "run.keep",
    "run.log_every",
    "run.deterministic",
    "data.test",
}


class StateError(ValueError):
    """The state of a run cannot be read, or belongs to another run."""


def state_files(folder: Path) -> list[Path]:
    """Return the complete states in a folder, the oldest first."""
    found = folder.iterdir() if folder.is_dir() else iter(())
    return sorted(file for file in found if _NAME.fullmatch(file.name))


def save_state(folder: Path, state: Mapping[str, Any], keep: int) -> Path:
    """Write the state of ``state["step"]`` and remove all but the newest ``keep``.

    The file appears under its name when it is complete and on the disk, so that a process that is killed, at any
    moment, leaves the states before.

    Raises:
        OSError: it cannot be written; older states are as they were.
    """
    path = folder / f"step-{state['step']:08d}.pt"
    content = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cpu(), {"format": FORMAT, **state})
    try:
        with atomic_writes([path], durable=True) as (temporary,), open(temporary, "wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # PyTorch hides an error of the system by one about the archive's end
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from None
    # A later step of a run that was set back would be taken for the newest.
    files = state_files(folder)
    for old in [file for file in files if file > path] + [file for file in files if file <= path][:-keep]:
        old.unlink(missing_ok=True)
    return path


def remove_unfinished(folder: Path) -> None:
    """Remove files that a killed process did not finish."""
    for file in folder.glob(".*.tmp.pt") if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            file.unlink()


def load_state(path: Path) -> dict[str, Any]:
    """Return a state, on the CPU. Nothing in the file is executed.

    Raises:
        StateError: it is damaged, or of another version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the unpickler raise nearly anything
        reason = next(iter(str(error).splitlines()), "")
        raise StateError(f"{printable(path)} cannot be read ({type(error).__name__}: {reason:.100})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise StateError(f"{printable(path)} is not the state of a training run of this version")
    return state


def latest_state(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest state that can be read, None if there is none, and messages about newer ones that cannot."""
    problems: list[str] = []
    for path in reversed(state_files(folder)):
        try:
            return load_state(path), problems
        except StateError as error:  # noqa: PERF203
            problems.append(str(error))
    return None, problems


def check_same_run(saved: Mapping[str, Any], current: Mapping[str, Any], folder: Path) -> None:
    """Check that a run may continue with another configuration.

    Raises:
        ConfigError: it differs in more than what is harmless; the message names the keys and both values.
    """
    old, new = _flat(saved), _flat(current)
    missing = object()
    different = [key for key in {**old, **new} if old.get(key, missing) != new.get(key, missing)]
    if wrong := [key for key in different if key not in HARMLESS]:
        listed = "; ".join(f"{key} was {old.get(key)} and is {new.get(key)}" for key in wrong[:8])
        raise ConfigError(
            f"{printable(folder)} is a run with another configuration: {listed}. Give the same values, or another "
            "--output"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping) and f"{prefix}{key}" != "data.options"
        result |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return result


def random_state() -> dict[str, Any]:
    """Return the state of the global generators, for code of others: ours seeds them before each step."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - the global one is what others use
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
        "python": [version, list(numbers), gauss],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set the global generators to :func:`random_state`."""
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
