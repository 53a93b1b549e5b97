"""A run on disk and in memory: it is opened, saved, validated and finished here; ``loop.py`` says when.

RUN/config.yaml, versions.json, data.json       the configuration, and what it ran with
RUN/log.jsonl, validation.jsonl                 a line per step, and per validation
RUN/states/step-*.pt                            what a run continues from
RUN/best, RUN/final                             networks for hyperseg.load
RUN/pictures/*.jpg, evaluation-*.json           pictures of validations, scores of the final network
"""

import json
import math
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hyperseg
from hyperseg._files import atomic_write, printable
from hyperseg._processes import Processes
from hyperseg.data.dataset import Dataset
from hyperseg.evaluation import Evaluation
from hyperseg.info import report
from hyperseg.models import HyperSeg
from hyperseg.models.state import not_finite
from hyperseg.training import pictures
from hyperseg.training.config import ConfigError, TrainingConfig
from hyperseg.training.data import Sets
from hyperseg.training.ema import AveragedNetwork
from hyperseg.training.final import final_scores
from hyperseg.training.guard import FiniteGuard, Guard, NonFiniteError
from hyperseg.training.log import Console, Meter, RunLog, progress_line
from hyperseg.training.state import latest_state, random_state, remove_unfinished, save_state
from hyperseg.training.step import Stepper
from hyperseg.training.validation import Validation, evenly_spaced, validate

STATES, CONFIG, DATA, BEST, FINAL = "states", "config.yaml", "data.json", "best", "final"
_PRESENT = (CONFIG, STATES, FINAL, "log.jsonl")


class Stopped(Exception):
    """A signal asked for the end of the run."""


def check_folder(folder: Path, resume: bool) -> None:
    """Check that a new run would overwrite nothing, and that one to continue is there.

    Raises:
        ConfigError: otherwise.
    """
    found = [name for name in _PRESENT if (folder / name).exists()]
    if found and not resume:
        raise ConfigError(
            f"{printable(folder)} has a run already ({', '.join(found)}); give --resume to continue it, or another "
            "--output"
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{printable(folder)} is a file; give a folder")


def open_state(folder: Path, console: Console) -> dict[str, Any] | None:
    """Return the newest complete state of a run, None if there is none."""
    remove_unfinished(folder / STATES)
    state, problems = latest_state(folder / STATES)
    for problem in problems:
        console.say(f"{problem}; an older state is taken")
    return state


def write_text(path: Path, text: str) -> None:
    """Write a file all at once."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def versions() -> dict[str, Any]:
    """Return what a run records about the software and the machine."""
    found = report()
    return {key: found[key] for key in ("versions", "devices", "instruction_sets", "extension", "named_backend")}


@dataclass
class Run:
    """A run between two steps. ``step`` is the number of completed ones."""

    config: TrainingConfig
    folder: Path
    device: torch.device
    processes: Processes
    guard: Guard
    console: Console
    sets: Sets
    network: HyperSeg
    stepper: Stepper
    ema: AveragedNetwork | None
    log: RunLog
    finite: FiniteGuard
    step: int = 0
    validated: int = -1
    best: dict[str, Any] | None = None
    unlabelled: int = 0
    meter: Meter = field(default_factory=Meter)
    _warned: int = 1  # steps without a labelled pixel, of which the next message tells
    _unreported: list[dict[str, Any]] = field(default_factory=list)
    _pending: deque[tuple[int, Tensor, float, tuple[str, ...]]] = field(default_factory=deque)

    @property
    def result(self) -> HyperSeg:
        """The network that is validated and saved: the average, if there is one."""
        return self.network if self.ema is None else self.ema.network

    def note(self, figures: Tensor, rate: float, names: tuple[str, ...]) -> None:
        """Keep what a step returned until :meth:`read`."""
        self._pending.append((self.step, figures, rate, names))

    def read(self) -> None:
        """Read the figures of the steps since the last time: this waits for the device.

        Raises:
            NonFiniteError: the run has to end.
        """
        if not self._pending:
            return
        figures = torch.stack([each[1] for each in self._pending])
        figures[:, 0] = self.processes.total(figures[:, 0].clone())
        speed = self.meter.read(self.device, "log")
        records = []
        for (step, _, rate, names), (loss, norm, labelled) in zip(self._pending, figures.tolist(), strict=True):
            records.append(
                {"step": step, "loss": loss, "lr": rate, "grad_norm": norm, "labelled": int(labelled), **speed}
            )
            self.unlabelled += labelled == 0
            bad = not (math.isfinite(loss) and math.isfinite(norm))
            everyone = sum(self.processes.collect(names), ()) if bad else names
            self.finite.check(step, loss, norm, everyone)
        self._pending.clear()
        self.log.steps(records)
        self._unreported += records

    def report(self) -> None:
        """Show the progress line: the mean loss of the labelled steps since the last one, and the speed."""
        self.read()
        losses = [record["loss"] for record in self._unreported if record["labelled"]]
        line = {
            **self._unreported[-1],
            "loss": sum(losses) / len(losses) if losses else None,
            **self.meter.read(self.device, "console"),
        }
        self._unreported.clear()
        left = self.meter.left(self.config.steps - self.step)
        self.console.progress(progress_line(line, self.config.steps, left))
        if self.unlabelled >= self._warned:
            self._warned = 2 * self.unlabelled
            self.console.say(
                f"{self.unlabelled} of {self.step} steps had no labelled pixel and changed nothing; larger crops or "
                "a smaller augmentation.scale help"
            )

    def save(self) -> None:
        """Write the state of this step, unless the network has diverged.

        Raises:
            NonFiniteError: it has; the states before are as they were. OSError: the file cannot be written.
        """
        self.read()
        if problems := not_finite(self.network.state_dict()):
            raise NonFiniteError(
                f"the network is not finite after step {self.step} ({problems[0]}); lower optimizer.lr, set "
                "optimizer.clip, or use speed.amp=none"
            )
        if self.processes.first:
            self.log.flush()
            save_state(self.folder / STATES, self._state(), self.config.run.keep)
        self.processes.wait()

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "config": self.config.to_dict(),
            "network": self.network.state_dict(),
            "optimizer": self.stepper.optimizer.state_dict(),
            "scaler": self.stepper.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "validated": self.validated,
            "best": self.best,
            "unlabelled": self.unlabelled,
            "random": random_state(),
            "processes": self.processes.world,
        }

    def validate(self, images: int | None) -> None:
        """Score the network on the validation set; keep it if it is the best so far.

        Raises:
            Stopped: a signal came; nothing is changed.
        """
        assert self.sets.val is not None
        self._agree()
        found = self._score(self.result, evenly_spaced(self.sets.val, images))
        self.validated = self.step
        self._record(found)
        if self._is_better(found.miou):
            self.best = {"step": self.step, "miou": float(found.miou or 0)}
            if self.processes.first:
                hyperseg.save(self.result, self.folder / BEST)

    def _agree(self) -> None:
        """Give all processes the running statistics of process 0, which differ without synchronised norms."""
        if self.processes.world > 1 and not self.config.speed.sync_norms:
            for buffer in self.result.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def _score(self, network: HyperSeg, dataset: Dataset) -> Validation:
        found = validate(network, dataset, self.config.validation, self.processes, self.device, lambda: self.guard.stop)
        if found is None:
            raise Stopped
        return found

    def _is_better(self, miou: float | None) -> bool:
        return miou is not None and math.isfinite(miou) and (self.best is None or miou > self.best["miou"])

    def _record(self, found: Validation) -> None:
        assert self.sets.val is not None
        self.log.validation({"step": self.step, **found.scores})
        score = "no labelled pixel" if found.miou is None else f"mIoU {100 * found.miou:.2f} (standard)"
        self.console.say(f"validation at step {self.step}: {score}")
        if found.pictures:
            path = self.folder / "pictures" / f"step-{self.step:08d}.jpg"
            pictures.save_pictures(found.pictures, self.sets.val.label_set, path)

    def finish(self) -> dict[str, Evaluation]:
        """Choose the final network and write it to ``final``; score it on the validation and test set.

        Raises:
            Stopped: a signal came.
        """
        self._agree()
        network = self._choose()
        if self.processes.first:
            hyperseg.save(network, self.folder / FINAL)
        if self.unlabelled:
            self.console.say(f"{self.unlabelled} of {self.step} steps had no labelled pixel and changed nothing")
        self.processes.wait()
        found = {}
        for dataset in (self.sets.val, self.sets.test):
            if dataset is not None and dataset.has_labels:
                found[dataset.split] = final_scores(
                    network, dataset, self.config, self.folder, self.step, self.processes, self.device, self._check_stop
                )
        return found

    def _check_stop(self) -> None:
        if self.guard.stop and self.processes.world == 1:  # of several processes none may leave before the others
            raise Stopped

    def _choose(self) -> HyperSeg:
        """Return the last network or the best, which are compared on the whole validation set."""
        if self.config.run.final == "last" or self.best is None or self.sets.val is None:
            return self.result
        if self.best["step"] == self.step:
            return self.result
        best = hyperseg.load(self.folder / BEST, self.device) if self.processes.first else None
        best = self.processes.share(best) if self.processes.world > 1 else best
        assert best is not None
        if self.config.validation.images is None or self.config.validation.images >= len(self.sets.val):
            return best  # both were scored on all images
        scores = [self._score(each, self.sets.val).miou for each in (best, self.result)]
        return self.result if (scores[1] or 0) > (scores[0] or 0) else best


def write_records(folder: Path, config: TrainingConfig, data: dict[str, Any]) -> None:
    """Write the configuration, the versions and what is known about the data."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / CONFIG, config.to_yaml())
    write_text(folder / "versions.json", json.dumps(versions(), indent=2, default=str) + "\n")
    write_text(folder / DATA, json.dumps(data, indent=1) + "\n")


def read_data(folder: Path) -> dict[str, Any] | None:
    """Return what :func:`write_records` wrote about the data; None if there is nothing."""
    try:
        return json.loads((folder / DATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
