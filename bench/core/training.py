"""Training steps that are timed: those of `hyperseg.training`, for a setting, and those of other networks.

The memory of a step on a CPU is measured in a process of its own:

    python -m bench.core.training '{"model": "hyperseg-m-cityscapes", ...}'     # prints it as JSON
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn

from bench.core import rivals
from bench.core.errors import Refused
from bench.core.networks import load, synthetic_frames
from bench.core.peers import high_water_mib, reset_high_water
from hyperseg import ops
from hyperseg._processes import Processes
from hyperseg.models.sizes import normalise
from hyperseg.training.config import SpeedConfig, TrainingConfig, load_recipe, recipe_names
from hyperseg.training.losses import Objective, Term, weighted_pixels
from hyperseg.training.network import prepare, train_mode
from hyperseg.training.noise import seed_step
from hyperseg.training.step import Stepper, build_optimizer

IGNORE = 255
ROTATE = 2
MEMORY_STEPS = 2
KEEP_MEMORY = "HYPERSEG_KEEP_MEMORY"

Amp = Literal["none", "bf16", "fp16"]
Compile = Literal["none", "encoder", "model"]


@dataclass(frozen=True)
class Setting:
    """How a step of a network is computed.

    Attributes:
        backend: of the operators.
        channels_last, lean_blocks, recompute, compile, amp: as in `SpeedConfig`.
    """

    backend: str
    channels_last: bool = True
    lean_blocks: bool = True
    recompute: bool = False
    compile: Compile = "none"
    amp: Amp = "none"

    @property
    def layout(self) -> str:
        return "channels-last" if self.channels_last else "contiguous"

    @property
    def mode(self) -> str:
        return "eager" if self.compile == "none" else f"compile {self.compile}"

    @property
    def blocks(self) -> str:
        """The encoder's blocks: what they keep for the backward pass."""
        lean = "lean" if self.lean_blocks and self.compile == "none" else "plain"
        return f"{lean}, recomputed" if self.recompute else lean

    @property
    def speed(self) -> SpeedConfig:
        return SpeedConfig(
            amp=self.amp,
            channels_last=self.channels_last,
            compile=self.compile,
            lean_blocks=self.lean_blocks,
            recompute=self.recompute,
        )

    @property
    def base(self) -> Setting:
        """Plain PyTorch in its default memory format, with the same autocast."""
        return plain(self.amp)

    def __str__(self) -> str:
        amp = "" if self.amp == "none" else f", {self.amp}"
        return f"{self.backend}, {self.layout}, {self.blocks} blocks, {self.mode}{amp}"


def plain(amp: Amp) -> Setting:
    return Setting("reference", channels_last=False, lean_blocks=False, amp=amp)


@dataclass(frozen=True)
class Task:
    """What is trained: a network at a size and batch, or a peer in its place.

    Attributes:
        model: name of the network, whose recipe gives loss and optimiser.
        peer: another network, one of `rivals.FOR_TRAINING`, with the same classes; empty: the network.
    """

    model: str
    size: tuple[int, int]
    batch: int
    seed: int
    peer: str = ""


def recipe(name: str) -> TrainingConfig:
    """Return the published recipe of a network.

    Raises:
        Refused: it has none.
    """
    if name not in recipe_names():
        raise Refused(f"{name} has no recipe in hyperseg.training, so its training step is not defined.")
    return load_recipe(name)


@dataclass
class Batch:
    """A batch on the device: normalised float32 images, uint8 labels ``[N, H, W]``."""

    images: Tensor
    labels: Tensor


def batches(task: Task, classes: int, mean: Any, std: Any, device: torch.device) -> list[Batch]:
    """Return `ROTATE` batches: synthetic frames, and labels in blocks of 16x16 pixels, a tenth of them ignored."""
    height, width = task.size
    generator = torch.Generator().manual_seed(task.seed)
    found = []
    for frames in synthetic_frames(ROTATE, min(task.batch, 4), height, width, task.seed):
        frames = frames[torch.arange(task.batch) % len(frames)]
        grid = (task.batch, -(-height // 16), -(-width // 16))
        labels = torch.randint(classes, grid, generator=generator)
        labels[torch.rand(grid, generator=generator) < 0.1] = IGNORE
        labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :height, :width]
        images = normalise(frames.to(device), mean, std)
        found.append(Batch(images, labels.to(torch.uint8).contiguous().to(device)))
    return found


class Trainer:
    """A network, its optimiser and its batches.

    Args:
        network: in training mode; its parameters' device is that of the steps.
        stepper: computes the steps.
        rate: learning rate.
        backend: of the operators.
    """

    def __init__(self, network: nn.Module, stepper: Stepper, rate: float, backend: str, inputs: list[Batch], seed: int):
        self.network, self.stepper, self.rate, self.backend = network, stepper, rate, backend
        self.inputs, self.seed = inputs, seed
        self.initial: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Choose the backend of the operators."""
        with ops.use_backend(self.backend):
            yield

    def step(self, i: int) -> Tensor:
        """Run a step as the loop of training does, from a batch on the device to updated weights."""
        batch = self.inputs[i % len(self.inputs)]
        train_mode(self.network, freeze_norms=False)  # type: ignore[arg-type]
        seed_step(self.seed, i)
        return self.stepper(batch.images, batch.labels, i, self.rate)

    def first_step(self) -> tuple[float, list[Tensor]]:
        """Return loss and gradients of a first step, from the initial weights and without dropout.

        Dropout draws other numbers in another memory format, so steps with it are not comparable. The first call
        comes before any other step, and makes a copy of the weights in host memory.
        """
        if not self.initial:
            state = self.network.state_dict()
            self.initial = {key: value.detach().to("cpu", copy=True) for key, value in state.items()}
        self.network.load_state_dict(self.initial)
        self.stepper.optimizer.state.clear()
        gradients: dict[int, Tensor] = {}
        parameters = list(self.network.parameters())

        def keep(i: int, parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradients[i] = parameter.grad.detach().clone()

        hooks = [p.register_post_accumulate_grad_hook(functools.partial(keep, i)) for i, p in enumerate(parameters)]
        try:
            with self.context(), without_dropout(self.network):
                loss = self.step(0)[0].item()
        finally:
            for hook in hooks:
                hook.remove()
        return loss, [gradients.get(i, torch.zeros_like(p)) for i, p in enumerate(parameters)]


@contextlib.contextmanager
def without_dropout(network: nn.Module) -> Iterator[None]:
    """Turn off dropout of values and of paths."""
    paths = [m for m in network.modules() if isinstance(m, DropPath)]
    values = [m for m in network.modules() if isinstance(m, nn.Dropout)]
    before = [m.drop_prob for m in paths], [m.p for m in values]
    try:
        for path in paths:
            path.drop_prob = 0.0
        for value in values:
            value.p = 0.0
        yield
    finally:
        for path, rate in zip(paths, before[0], strict=True):
            path.drop_prob = rate
        for value, rate in zip(values, before[1], strict=True):
            value.p = rate


def build(task: Task, setting: Setting, device: torch.device) -> Trainer:
    """Return the trainer of a task, as `hyperseg.training` builds it for these settings."""
    if task.peer:
        return build_peer(task, setting, device)
    config = recipe(task.model)
    network, _ = load(task.model, None, task.seed)
    network.to(device)
    train_mode(network, freeze_norms=False)
    module = prepare(network, setting.speed)
    objective = Objective(config.loss, config.steps, None, IGNORE)
    stepper = make_stepper(module, build_optimizer(network, config.optimizer), objective, setting, config, device)
    inputs = batches(task, network.config.num_classes, network.config.mean, network.config.std, device)
    return Trainer(network, stepper, config.optimizer.lr, setting.backend, in_layout(inputs, setting), task.seed)


def make_stepper(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Any,
    setting: Setting,
    config: TrainingConfig,
    device: torch.device,
) -> Stepper:
    return Stepper(module, optimizer, objective, setting.speed, config.optimizer.clip, Processes(), device)


def in_layout(inputs: list[Batch], setting: Setting) -> list[Batch]:
    """Return batches in the memory format that the step wants: the loader's work is not timed."""
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    return [Batch(batch.images.contiguous(memory_format=layout), batch.labels) for batch in inputs]


# Other networks


class FullSizeLoss:
    """The loss of other networks: cross-entropy of scores at label size, as their own scripts compute it."""

    ignore_index = IGNORE

    def terms(self, step: int) -> list[Term]:
        return [Term(1.0, self.loss, lambda labels: weighted_pixels(labels, None, IGNORE))]

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scores.float(), labels.long(), ignore_index=IGNORE)


def build_peer(task: Task, setting: Setting, device: torch.device) -> Trainer:
    """Return a trainer of another network: same classes, sizes, optimiser, steps and memory format."""
    from hyperseg.models import model_config

    config, ours = recipe(task.model), model_config(task.model)
    made = rivals.build(task.peer, ours.num_classes, ours.encoder, task.seed)
    network = rivals.Scores(made, rivals.RIVALS[task.peer].scores).to(device).train()
    if setting.channels_last:
        network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.optimizer.lr, fused=True)
    for group in optimizer.param_groups:
        group["factor"] = 1.0
    if setting.compile != "none":
        network.compile(dynamic=False)
    stepper = make_stepper(network, optimizer, FullSizeLoss(), setting, config, device)
    inputs = batches(task, ours.num_classes, ours.mean, ours.std, device)
    return Trainer(network, stepper, config.optimizer.lr, "reference", in_layout(inputs, setting), task.seed)


# Memory


def memory_in_process(task: Task, setting: Setting, threads: int) -> dict[str, float]:
    """Return the memory of steps in a fresh process, as `measure_memory` does.

    Only HyperSeg's own steps change malloc, as `hyperseg train` does; the reference and other networks do not.

    Raises:
        RuntimeError: the process failed; the message has the last line that it printed.
    """
    spec = json.dumps({"task": asdict(task), "setting": asdict(setting), "threads": threads})
    own = not task.peer and setting.backend != "reference"
    environment = os.environ | ({} if own else {KEEP_MEMORY: "0"})
    # With -m the working directory comes first on the import path.
    done = subprocess.run(
        [sys.executable, "-m", "bench.core.training", spec],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=environment,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was stopped"])[-1]
        raise RuntimeError(f"the memory of {task.peer or setting} could not be measured: {last}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_memory(task: Task, setting: Setting, threads: int) -> dict[str, float]:
    """Return the largest resident sizes of this process in MiB: before the network is built, after, and in steps."""
    torch.set_num_threads(threads)
    warm_up_libraries()
    reset_high_water()
    idle = high_water_mib()
    trainer = build(task, setting, torch.device("cpu"))
    build_peak = high_water_mib()
    with trainer.context():
        trainer.step(0)  # the optimiser makes its averages
        reset_high_water()
        for i in range(MEMORY_STEPS):
            trainer.step(i)
    return {"idle_mib": idle, "build_mib": build_peak, "run_mib": high_water_mib()}


def warm_up_libraries() -> None:
    """Run a convolution forward and backward, so that code and threads of the libraries count as idle memory."""
    x = torch.randn(2, 8, 8, 8, requires_grad=True)
    nn.Conv2d(8, 8, 3)(x).sum().backward()


def main(spec: str) -> None:
    values = json.loads(spec)
    task = Task(**values["task"])
    task = replace(task, size=(task.size[0], task.size[1]))
    print(json.dumps(measure_memory(task, Setting(**values["setting"]), values["threads"])))


if __name__ == "__main__":
    main(sys.argv[1])
