"""The memory of one peer, in a process of its own: it imports, builds, runs a few frames, and says how far it went.

python bench/memory.py PEER FOLDER THREADS
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# Run as a script, the folder bench/ comes first on the path; its parent is what imports need.
_ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [_ROOT, *(p for p in sys.path if p not in {_ROOT, str(Path(__file__).resolve().parent)})]

from bench.runtimes import RUNTIMES  # noqa: E402

STEPS = 3


def high_water_mib() -> float:
    """The largest resident size so far, of this program alone: ru_maxrss may hold the parent's from before exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM")


def forget_high_water() -> None:
    """From now on count anew, with what building left free given back: what it takes to run is another question."""
    import ctypes

    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measure(peer: str, folder: Path, threads: int) -> dict[str, float]:
    import numpy

    if peer in RUNTIMES:
        importlib.import_module(peer)
    else:
        import torch

        import hyperseg  # noqa: F401
        from bench import subject  # noqa: F401

        torch.set_num_threads(threads)
    from bench.peer import BUILDERS, FRAME

    idle = high_water_mib()
    made = BUILDERS[peer](folder, threads)
    frame = numpy.load(folder / FRAME)
    with made.context():
        made.labels(frame)  # what is made on first use belongs to building
        build = high_water_mib()
        forget_high_water()
        for _ in range(STEPS):
            made.labels(frame)
    return {"idle_mib": idle, "build_mib": build, "run_mib": high_water_mib()}


def in_a_process(peer: str, folder: Path, threads: int) -> dict[str, Any]:
    """What :func:`measure` finds in a fresh process.

    Raises:
        RuntimeError: it failed; the message is the last line it wrote.
    """
    command = [sys.executable, __file__, peer, str(folder), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was stopped"])[-1]
        raise RuntimeError(f"the memory of {peer} could not be measured: {last}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
