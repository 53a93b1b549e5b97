"""A network made ready to be measured: weights, inputs, reference answers, engines, and the cases to time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import hyperseg
from bench import inputs, parity
from bench.harness import Case, synchronize
from bench.parity import Parity
from hyperseg.models import CheckpointError, synthesize_weights
from hyperseg.models.storage import WEIGHTS_FILE


class Refused(Exception):
    """Something that cannot be measured, in a sentence for the user."""


def one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def settings(backend: str) -> Iterator[None]:
    """What every call to a measured or reference network runs under."""
    with torch.no_grad(), hyperseg.ops.use_backend(backend):
        yield


def load(name: str, weights: Path | None, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """The network in float32 eval mode on the CPU, and where its weights come from."""
    if weights is None:
        model = synthesize_weights(hyperseg.create_model(name).eval(), seed)
        frames = torch.cat(inputs.frames(2, 1, 128, 256, seed + 1))
        with settings("reference"):
            inputs.temper(model, inputs.normalise(frames, model.config.mean, model.config.std))
        return model, {"source": "synthetic", "seed": seed}
    try:
        official = weights.suffix in {".pth", ".pt"}
        model = (hyperseg.load_official(weights, name) if official else hyperseg.load(weights)).eval()
    except (CheckpointError, OSError, ValueError) as error:
        raise Refused(f"The weights {weights} cannot be read: {one_line(error)}") from error
    if model.config.name != name:
        raise Refused(f"The weights {weights} are of {model.config.name}, not of {name}.")
    file = weights / WEIGHTS_FILE if weights.is_dir() else weights
    return model, {"source": weights.name, "sha256": sha256(file)}


@dataclass
class Subject:
    """One network at one size, type and device, with its inputs and the reference's answers to them."""

    name: str
    model: nn.Module
    size: tuple[int, int]
    batch: int
    dtype: torch.dtype
    device: torch.device
    rotate: int
    seed: int
    hosts: list[torch.Tensor] = field(default_factory=list)
    frames: list[torch.Tensor] = field(default_factory=list)
    images: list[torch.Tensor] = field(default_factory=list)
    references: list[torch.Tensor] = field(default_factory=list)
    reference_scale: dict[str, float] = field(default_factory=dict)
    answer_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def tolerance(self) -> parity.Tolerance:
        return parity.TOLERANCES[str(self.dtype).removeprefix("torch.")]

    def prepare(self) -> None:
        """Make the inputs and ask the reference; raises BadReference where a comparison would prove nothing."""
        config = self.model.config
        self.model.eval().to(self.device)
        self.hosts = inputs.frames(self.rotate, self.batch, *self.size, self.seed)
        if self.device.type == "cuda":
            self.hosts = [host.pin_memory() for host in self.hosts]
        self.frames = [host.to(self.device) for host in self.hosts]
        with settings("reference"):
            for frames in self.frames:
                images = inputs.normalise(frames, config.mean, config.std)
                self.references.append(self.model(images).float())
                # As the engine's own normalisation gives them.
                self.images.append(images.to(self.dtype, memory_format=torch.channels_last))
        scales = [parity.check_reference(reference) for reference in self.references]
        self.reference_scale = {key: min(scale[key] for scale in scales) for key in scales[0]}

    def build(self, mode: str, backend: str) -> Any:
        """The engine whose nested callables are timed."""
        with settings(backend):
            return hyperseg.build_engine(
                self.model, size=self.size, dtype=self.dtype, device=self.device, mode=mode, batch=self.batch
            )

    def case(self, engine: Any, mode: str, backend: str, scope: str) -> Case:
        call: Callable[[torch.Tensor], torch.Tensor]
        call, rotated = {
            "network": (engine.network, self.images),
            "labels": (engine.labels, self.images),
            "frame": (engine, self.frames),
            "host": (getattr(engine, "from_host", None), self.hosts),
        }[scope]

        def step(i: int) -> torch.Tensor:
            return call(rotated[i % len(rotated)])

        return Case((mode, backend, scope), step, images=self.batch, context=lambda: settings(backend))

    def check(self, case: Case, only: int | None = None) -> Parity:
        """Compare the very callable that is timed with the reference, on every rotated input or only on one."""
        scope = case.name[-1]
        results = []
        with case.context():
            for i, reference in enumerate(self.references):
                if only not in {None, i}:
                    continue
                # A graph answers into the same memory every time: take the answer out before the next step.
                answer = case.step(i).clone()
                synchronize(self.device)
                self.answer_bytes[scope] = answer.nbytes
                if scope in {"network", "paper"}:
                    answer = answer if scope == "paper" else self.full_size(answer)
                    results.append(parity.compare_logits(answer, reference, self.tolerance))
                else:
                    results.append(parity.compare_labels(answer, reference, self.tolerance))
        return parity.worst(results)

    def full_size(self, scores: torch.Tensor) -> torch.Tensor:
        """The network's own last step: scores at its output stride, of the padded image, to image size."""
        height, width = self.size
        padded = self.model.config.padded_size(self.size)
        if tuple(scores.shape[2:]) != padded:
            scores = F.interpolate(scores, padded, mode="bilinear", align_corners=False)
        return scores[:, :, :height, :width]

    def float_hosts(self, mean: tuple[float, ...], std: tuple[float, ...]) -> list[torch.Tensor]:
        """The inputs as the official script has them: normalised float32 in (pinned) host memory."""
        hosts = [inputs.normalise(frames, mean, std) for frames in self.hosts]
        return [host.pin_memory() for host in hosts] if self.device.type == "cuda" else hosts

    def compulsory_bytes(self, scope: str) -> int:
        """Parameters, input and output once each, in the types they have."""
        parameters = sum(p.numel() for p in self.model.parameters()) * self.dtype.itemsize
        read = (self.images if scope in {"network", "labels"} else self.frames)[0]
        return parameters + read.nbytes + self.answer_bytes[scope]
