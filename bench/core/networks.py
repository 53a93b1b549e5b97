"""A network to measure: seeded weights and frames, reference outputs, engines, and the cases to time."""

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
from bench.core import parity
from bench.core.errors import Refused, one_line
from bench.core.parity import Parity
from bench.core.timing import Case, synchronize
from hyperseg.models import CheckpointError, HyperSeg, synthesize_weights
from hyperseg.models.decoder import DynamicLevel
from hyperseg.models.hub import hub_folder, hub_name, is_hub_name
from hyperseg.models.released import named_network, released_path
from hyperseg.models.sizes import normalise
from hyperseg.models.storage import WEIGHTS_FILE
from hyperseg.ops._layout import resize_logits
from hyperseg.runtime.engine import Engine
from hyperseg.runtime.parity import TOLERANCES, Tolerance


@contextmanager
def inference(backend: str) -> Iterator[None]:
    """Run calls of a measured or reference network: without gradients, with this backend."""
    with torch.no_grad(), hyperseg.ops.use_backend(backend):
        yield


def synthetic_frame(height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Return a uint8 frame [H, W, 3]: smooth structure at every scale, flat regions with hard edges, sensor noise.

    As in real images, most of the variance is brightness, and colours vary less.
    """

    def random(rows: int, columns: int) -> torch.Tensor:
        brightness, colour = (torch.randn(1, n, rows, columns, generator=generator) for n in (1, 3))
        return brightness + 0.3 * colour

    image = torch.zeros(1, 3, height, width)
    for octave in range(1, 8):
        grid = random(min(height, 2**octave), min(width, 2 ** (octave + 1)))
        image += F.interpolate(grid, (height, width), mode="bilinear", align_corners=False) * 0.8**octave
    for _ in range(12):
        top, left = (int(torch.randint(0, n, (), generator=generator)) for n in (height, width))
        rows, columns = (int(torch.randint(1, max(2, n // 3), (), generator=generator)) for n in (height, width))
        patch = image[:, :, top : top + rows, left : left + columns]
        patch.mul_(0.3).add_(random(1, 1))
    image += 0.04 * torch.randn(1, 3, height, width, generator=generator)
    image = (image - image.mean()) / image.std()
    return (image[0].permute(1, 2, 0) * 50 + 118).clamp(0, 255).round().to(torch.uint8).contiguous()


def synthetic_frames(count: int, batch: int, height: int, width: int, seed: int) -> list[torch.Tensor]:
    """Return `count` different batches [N, H, W, 3] on the CPU; the same on every machine for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.stack([synthetic_frame(height, width, generator) for _ in range(batch)]) for _ in range(count)]


@torch.no_grad()
def calibrate(model: HyperSeg, images: torch.Tensor) -> None:
    """Scale synthetic weights in place until the network is as well-conditioned as a trained one.

    Random generators give weights that differ wildly from patch to patch: activations grow heavy tails, and rounding to
    bfloat16 flips every fourth label, whatever the code does. So the generated weights are made smaller, and the last
    norm is set so that every class varies by 1 around 0, which also makes most classes occur.
    """
    signals: list[torch.Tensor] = []
    hook = model.context.register_forward_hook(lambda module, args, signal: signals.append(signal))
    model(images)
    hook.remove()
    for generator in model.decoder.generators:
        generator.mul_(0.07 / signals[0].square().mean().sqrt())
    level = model.decoder.levels[-1]
    assert isinstance(level, DynamicLevel)
    last = level.norms[-1]
    assert isinstance(last, nn.BatchNorm2d)
    assert last.running_mean is not None
    last.bias.zero_()
    last.running_mean.zero_()
    scores = model(images)
    mean, std = scores.mean((0, 2, 3)), scores.std((0, 2, 3)).clamp(min=0.1 * scores.std())
    last.weight.div_(std)
    last.bias.copy_(-mean / std)


def load(name: str, weights: Path | None, seed: int) -> tuple[HyperSeg, dict[str, Any]]:
    """Return the network in float32 and eval mode on the CPU, and the source of its weights for the results.

    Raises:
        Refused: the weights cannot be read or are of another network.
    """
    if weights is None:
        model = synthesize_weights(hyperseg.create_model(name).eval(), seed)
        frames = torch.cat(synthetic_frames(2, 1, 128, 256, seed + 1))
        with inference("reference"):
            calibrate(model, normalise(frames, model.config.mean, model.config.std).contiguous())
        return model, {"source": "synthetic", "seed": seed}
    try:
        model = hyperseg.load(weights, name=name)
    except (CheckpointError, OSError, ValueError) as error:
        raise Refused(one_line(error)) from error
    if is_hub_name(str(weights)):
        return model, {"source": str(weights), "sha256": sha256(hub_folder(hub_name(str(weights))) / WEIGHTS_FILE)}
    network = None if weights.exists() else named_network(str(weights))
    file = released_path(network) if network else weights / WEIGHTS_FILE if weights.is_dir() else weights
    return model, {"source": weights.name, "sha256": sha256(file)}


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@dataclass
class Subject:
    """One network at one size, dtype and device, with its inputs and the reference's outputs for them.

    Attributes:
        rotate: number of different inputs that timed steps alternate between.
        hosts: uint8 frames [N, H, W, 3] in (pinned) host memory.
        frames: the same on the device.
        images: normalised [N, 3, H, W] on the device, channels last, in ``dtype``.
        references: float32 scores [N, C, H, W] of each input.
        reference_scale: see `parity.check_reference`.
        output_bytes: by scope, once `check` has run.
    """

    name: str
    model: HyperSeg
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
    output_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def tolerance(self) -> Tolerance:
        return TOLERANCES[self.dtype]

    def prepare(self) -> None:
        """Make the inputs and compute the reference's outputs.

        Raises:
            BadReference: a comparison with them would prove nothing.
        """
        config = self.model.config
        self.model.eval().to(self.device)
        self.hosts = synthetic_frames(self.rotate, self.batch, *self.size, self.seed)
        if self.device.type == "cuda":
            self.hosts = [host.pin_memory() for host in self.hosts]
        self.frames = [host.to(self.device) for host in self.hosts]
        with inference("reference"):
            for frames in self.frames:
                images = normalise(frames, config.mean, config.std).contiguous()
                self.references.append(self.model(images).float())
                # In the memory format of the engine's own normalisation.
                self.images.append(images.to(self.dtype, memory_format=torch.channels_last))
        scales = [parity.check_reference(reference) for reference in self.references]
        self.reference_scale = {key: min(scale[key] for scale in scales) for key in scales[0]}

    def build(self, mode: str, backend: str) -> Engine:
        """Build the engine whose entry points are timed."""
        with inference(backend):
            return hyperseg.build_engine(
                self.model, size=self.size, dtype=self.dtype, device=self.device, mode=mode, batch=self.batch
            )

    def case(self, engine: Engine, mode: str, backend: str, scope: str) -> Case:
        entries: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], list[torch.Tensor]]] = {
            "network": (engine.network, self.images),
            "labels": (engine.labels, self.images),
            "frame": (engine, self.frames),
            "host": (engine.from_host, self.hosts),
        }
        call, rotated = entries[scope]

        def step(i: int) -> torch.Tensor:
            return call(rotated[i % len(rotated)])

        return Case((mode, backend, scope), step, items=self.batch, context=lambda: inference(backend))

    def check(self, case: Case, only: int | None = None) -> Parity:
        """Compare the timed callable itself with the reference, on every input or only on one."""
        scope = case.name[-1]
        results = []
        with case.context():
            for i, reference in enumerate(self.references):
                if only not in {None, i}:
                    continue
                # A graph writes to the same memory at every step: copy the output before the next one.
                output = case.step(i)
                assert isinstance(output, torch.Tensor)
                output = output.clone()
                synchronize(self.device)
                self.output_bytes[scope] = output.nbytes
                if scope in {"network", "paper"}:
                    output = output if scope == "paper" else self.full_size(output)
                    results.append(parity.compare_logits(output, reference, self.tolerance))
                else:
                    results.append(parity.compare_labels(output, reference, self.tolerance))
        return parity.worst(results)

    def full_size(self, scores: torch.Tensor) -> torch.Tensor:
        """Do the network's last step: resize scores at its output stride, of the padded image, to image size."""
        height, width = self.size
        return resize_logits(scores, *self.model.config.padded_size(self.size))[:, :, :height, :width]

    def normalised_hosts(self) -> list[torch.Tensor]:
        """Return the inputs as the official script has them: normalised float32 in (pinned) host memory."""
        config = self.model.config
        hosts = [normalise(frames, config.mean, config.std).contiguous() for frames in self.hosts]
        return [host.pin_memory() for host in hosts] if self.device.type == "cuda" else hosts

    def least_bytes(self, scope: str) -> int:
        """Return the bytes of parameters, input and output, once each, in their dtypes."""
        parameters = sum(p.numel() for p in self.model.parameters()) * self.dtype.itemsize
        read = (self.images if scope in {"network", "labels"} else self.frames)[0]
        return parameters + read.nbytes + self.output_bytes[scope]
