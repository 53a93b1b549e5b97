"""One optimiser step: forward and backward passes of the parts of a batch, the norm of the gradients, the update.

Nothing here waits for the device. Without a labelled pixel in the batch, or with gradients that are not finite, the
update is skipped on the device: weights and the optimiser's averages stay as they were.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hyperseg._processes import Processes
from hyperseg.models import HyperSeg
from hyperseg.training.config import OptimizerConfig, SpeedConfig
from hyperseg.training.losses import Objective, Term, weighted_pixels

_AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_optimizer(network: HyperSeg, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimiser: groups for the encoder and the rest, with and without weight decay.

    The encoder's group is its timm model, which may have pretrained weights; biases and norms have no weight decay.
    """
    trunk = {id(parameter) for parameter in network.encoder.trunk.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in network.parameters():
        factor = config.encoder_lr if id(parameter) in trunk else 1.0
        decay = config.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    given = [{"params": ps, "factor": factor, "weight_decay": decay} for (factor, decay), ps in groups.items()]
    # Fused: one launch per group, and it can skip an update without the host knowing.
    if config.name == "sgd":
        return torch.optim.SGD(given, lr=config.lr, momentum=config.momentum, fused=True)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(given, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state; tensors get the memory format of their parameters, which fused updates rely on."""
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim():
                values[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class Stepper:
    """Computes steps.

    Args:
        module: what training runs, possibly in DistributedDataParallel.
        optimizer: of :func:`build_optimizer`.
        objective: the loss.
        speed, clip: of the configuration.
        processes: of the run.
        device: of the module.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        speed: SpeedConfig,
        clip: float | None,
        processes: Processes,
        device: torch.device,
    ):
        self.module, self.optimizer, self.objective = module, optimizer, objective
        self.parts, self.clip, self.processes, self.device = speed.accumulate, clip, processes, device
        self.amp = _AMP[speed.amp]
        self.format = torch.channels_last if speed.channels_last else torch.contiguous_format
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp == torch.float16)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, images: Tensor, labels: Tensor, step: int, rate: float) -> Tensor:
        """Compute the step after ``step`` completed ones.

        Args:
            images: ``[n, 3, H, W]`` of this process, normalised.
            labels: uint8 ``[n, H, W]``.
            rate: the learning rate.

        Returns:
            Float64 ``[3]`` on the device: this process's share of the loss (the sum over processes is that of the
            batch), the norm of the gradients of the batch, and its number of labelled pixels.
        """
        images = images.contiguous(memory_format=self.format)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        terms = self.objective.terms(step)
        chunks = list(zip(images.tensor_split(self.parts), labels.tensor_split(self.parts), strict=True))
        labelled = weighted_pixels(labels, None, self.objective.ignore_index)
        counts = torch.stack([torch.stack([term.count(part) for term in terms]) for _, part in chunks])
        totals = self.processes.total(torch.cat([counts.sum(0), labelled[None]]))
        portions = counts / totals[:-1].clamp(min=torch.finfo(torch.float32).tiny)
        loss = torch.zeros((), device=self.device, dtype=torch.float64)
        for i, ((x, y), shares) in enumerate(zip(chunks, portions.unbind(), strict=True)):
            with self._synchronised(last=i == len(chunks) - 1):
                part = self._loss(terms, shares, x, y)
                # DistributedDataParallel takes the mean over processes.
                self.scaler.scale(part * self.processes.world).backward()
            loss += part.detach()
        norm = self._update(totals[-1])
        return torch.stack([loss, norm.double(), totals[-1]])

    def _loss(self, terms: Sequence[Term], shares: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            logits = self.module(images)
        parts = [
            _weighted(term, term.function(logits, labels), share) for term, share in zip(terms, shares, strict=True)
        ]
        return torch.stack(parts).sum()

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        if last or not isinstance(self.module, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.module.no_sync()

    def _update(self, labelled: Tensor) -> Tensor:
        """Update the weights, or skip that on the device; return the norm of the gradients before clipping."""
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        # As GradScaler.step does it: fused optimisers skip the update where this is 1.
        self.optimizer.found_inf = (~norm.isfinite() | (labelled == 0)).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm


def _weighted(term: Term, loss: Tensor, share: Tensor) -> Tensor:
    return term.factor * loss * share.to(loss.dtype)
