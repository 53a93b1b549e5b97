"""Processes of a run, as torchrun starts them: forks of the test, which have imported everything already."""

import faulthandler
import json
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

import torch

from hyperseg.training import run as running
from hyperseg.training.loop import train
from tests.training.runs import small


def start(folder: Path, world: int, **settings) -> list:
    """Start the processes of a run; ``settings`` are those of :func:`main`. Their stderr goes to ``folder``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
        arguments = (folder / f"stderr.{rank}", {**variables, "MASTER_ADDR": "127.0.0.1"}, settings)
        process = multiprocessing.get_context("fork").Process(target=_child, args=arguments)
        process.start()
        processes.append(process)
    return processes


def finish(folder: Path, processes: list, timeout: float = 300) -> tuple[list[int], str]:
    """Wait for processes; return their exit codes and what they wrote to stderr, with the place where one hangs."""
    for process in processes:
        process.join(timeout)
        if process.is_alive():
            os.kill(process.pid, signal.SIGUSR1)
            process.join(1)
            process.kill()
            process.join()
    text = "".join((folder / f"stderr.{rank}").read_text() for rank in range(len(processes)))
    return [process.exitcode for process in processes], text


def _child(errors: Path, variables: dict, settings: dict) -> None:
    sys.stderr = open(errors, "w", buffering=1)  # noqa: SIM115 - until the process ends
    os.dup2(sys.stderr.fileno(), 2)
    faulthandler.register(signal.SIGUSR1, sys.stderr)
    if settings.get("group"):
        os.setpgrp()
    os.environ |= {key: str(value) for key, value in variables.items()}
    main(settings)


def main(settings: dict) -> None:
    """Train a run of :mod:`tests.training.runs`, and write the names of the images of each step beside it.

    settings: root, run, changes, resume, double (float64), group (a process group of its own).
    """
    torch.set_num_threads(1)
    note, seen = running.Run.note, []

    def noted(self, figures, rate, names):
        seen.append([Path(name).name for name in names])
        note(self, figures, rate, names)

    running.Run.note = noted
    dtype = torch.float64 if settings.get("double") else torch.float32
    config = small(Path(settings["root"]), *settings["changes"])
    train(config, settings["run"], "cpu", settings.get("resume", False), dtype)
    Path(f"{settings['run']}.{os.environ['RANK']}.json").write_text(json.dumps(seen))
