"""The decoder: weight generators and dynamic levels, one class for all networks (SPEC D to G).

In training, norms use batch statistics and each step is an operator of its own. Otherwise the norms are affine maps:
their scales are folded into the generators' rows, their shifts become biases, and a level is one call of
``decoder_level``. The engine runs the very same code on tensors folded once.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperseg import ops
from hyperseg.models.plan import Generator, Level, Plan
from hyperseg.ops import _layout, reference


class DynamicLevel(nn.Module):
    """The static part of a level: its norms. Its convolution weights are generated."""

    def __init__(self, level: Level, halo: str):
        super().__init__()
        self.level, self.halo = level, halo
        widths = [level.hidden, level.hidden, level.out_channels] if level.hidden else [level.out_channels]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)

    def fold(self) -> tuple[Tensor, Tensor]:
        """``(scale of each generated parameter [P], bias [2 * hidden + out])`` of the norms' running statistics."""
        level = self.level
        fan_in = [level.in_channels, 9, level.hidden] if level.hidden else [level.in_channels]
        rows, biases = [], []
        for norm, width in zip(self.norms, fan_in, strict=True):
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            rows.append(scale.repeat_interleave(width))
            biases.append(norm.bias - norm.running_mean * scale)
        return torch.cat(rows), torch.cat(biases)

    def forward(self, skip: Tensor, previous: Tensor | None, weights: Tensor) -> Tensor:
        """With batch statistics: ``weights [N, fh, fw, P]`` as generated, nothing folded."""
        level = self.level
        x = _layout.level_input(skip, previous)
        if not level.hidden:
            y = ops.patch_conv2d(x, weights, out_channels=level.out_channels)
            return F.relu(self.norms[0](y))
        if any(type(norm) is not nn.BatchNorm2d or not norm.training for norm in self.norms):
            # SyncBatchNorm and the like know best how to gather their statistics, and frozen norms have theirs.
            return reference.inverted_residual(
                x, weights, level.hidden, level.out_channels, self.halo, list(self.norms)
            )
        y, mean, variance = ops.patch_inverted_residual_batch_norm(
            x,
            weights,
            torch.cat([norm.get_parameter("weight") for norm in self.norms]),
            torch.cat([norm.get_parameter("bias") for norm in self.norms]),
            hidden=level.hidden,
            out_channels=level.out_channels,
            halo=self.halo,
            eps=self.norms[0].eps,
        )
        self._update_running_statistics(mean, variance, x, weights)
        return y

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor, x: Tensor, weights: Tensor) -> None:
        n, _, height, width = x.shape
        fh, fw = weights.shape[1:3]
        pixels = n * height * width
        # With its own halo a patch normalises the pixels around it too, as often as they occur (SPEC G).
        expanded = n * (height + 2 * fh) * (width + 2 * fw) if self.halo == "own" else pixels
        widths = [norm.num_features for norm in self.norms]
        for norm, batch_mean, batch_variance, count in zip(
            self.norms, mean.split(widths), variance.split(widths), (expanded, pixels, pixels), strict=True
        ):
            norm.num_batches_tracked += 1
            momentum = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
            norm.running_mean.lerp_(batch_mean.to(norm.running_mean.dtype), momentum)
            norm.running_var.lerp_(batch_variance.to(norm.running_var.dtype) * (count / (count - 1)), momentum)


class Decoder(nn.Module):
    """``(signal, features fine to coarse, image)`` -> logits at the resolution of the last level."""

    def __init__(self, plan: Plan, halo: str):
        super().__init__()
        self.plan, self.halo = plan, halo
        self.generators = nn.ParameterList(
            nn.Parameter(torch.empty(g.rows, g.channels // g.groups)) for g in plan.generators
        )
        self.levels = nn.ModuleList(DynamicLevel(level, halo) for level in plan.levels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The generators as PyTorch initialises a convolution."""
        for generator in self.generators:
            nn.init.kaiming_uniform_(generator, a=5**0.5)

    def fold(self) -> tuple[list[Tensor], list[Tensor]]:
        """Generators with the norms' scales in their rows, and the levels' biases."""
        scales, biases = zip(*(level.fold() for level in self.levels), strict=True)
        folded = []
        for spec, generator in zip(self.plan.generators, self.generators, strict=True):
            rows = torch.cat([scales[i] for i in spec.levels])
            padding = rows.new_ones(spec.rows - spec.size)
            folded.append(generator * torch.cat([rows, padding])[:, None])
        return folded, list(biases)

    def forward(self, signal: Tensor, features: Sequence[Tensor], images: Tensor) -> Tensor:
        # Under autocast the signal comes in a half type, images and parameters in float32.
        skips = [skip.to(signal.dtype) for skip in skip_features(features, images)[: len(self.levels)]]
        if not any(norm.training for level in self.levels for norm in level.norms):
            generators, biases = ([t.to(signal.dtype) for t in folded] for folded in self.fold())
            return decode(self.plan, self.halo, generators, biases, signal, skips)
        x: Tensor | None = None
        for spec, generator in zip(self.plan.generators, self.generators, strict=True):
            weights = _generate(spec, generator.to(signal.dtype), signal)
            sizes = [self.plan.levels[i].parameters for i in spec.levels]
            for i, part in zip(spec.levels, weights.split(sizes, -1), strict=True):
                x = self.levels[i](skips[i], x, part)
        assert x is not None
        return x


def skip_features(features: Sequence[Tensor], images: Tensor | None) -> list[Tensor]:
    """In the order that levels take them: coarse to fine, then the image, which only a sixth level reads."""
    return [*reversed(features), *([] if images is None else [images])]


def decode(
    plan: Plan,
    halo: str,
    generators: Sequence[Tensor],
    biases: Sequence[Tensor],
    signal: Tensor,
    skips: list[Tensor],
    labels: bool = False,
) -> Tensor:
    """All levels with folded norms; ``labels``: the best classes of the last, uint8 ``[N, H, W]``, not its scores."""
    x: Tensor | None = None
    ahead: dict[int, Tensor] = {}
    for spec, generator in zip(plan.generators, generators, strict=True):
        if not ahead and _is_ahead(plan, spec, has_costly_launches(signal.device)):
            ahead = generate_ahead(plan, generators, signal, has_costly_launches(signal.device))
        for i in spec.levels:
            last = labels and i == len(plan.levels) - 1
            x = (ops.decoder_level_argmax if last else ops.decoder_level)(
                skips[i],
                x,
                signal=None if i in ahead else signal,
                generator=None if i in ahead else generator,
                weights=ahead.get(i),
                bias=biases[i],
                offset=0 if i in ahead else spec.offset,
                groups=1 if i in ahead else spec.groups,
                out_channels=plan.levels[i].out_channels,
                hidden=plan.levels[i].hidden,
                halo=halo,
            )
    assert x is not None
    return x


def has_costly_launches(device: torch.device) -> bool:
    """Whether starting a kernel costs about as much as making the weights of a level; on a CPU it does not."""
    return device.type != "cpu"


def generate_ahead(plan: Plan, generators: Sequence[Tensor], signal: Tensor, one_launch: bool) -> dict[int, Tensor]:
    """The weights of the levels that do not generate their own, all by one call of the operator.

    Those are the levels that share a generator and, for ``one_launch``, inverted residuals. Otherwise a level makes its
    weights just before it uses them, while they are in the cache.
    """
    found = [(s, g) for s, g in zip(plan.generators, generators, strict=True) if _is_ahead(plan, s, one_launch)]
    weights = ops.generate_weights(
        signal,
        [generator for _, generator in found],
        offsets=[spec.offset for spec, _ in found],
        groups=[spec.groups for spec, _ in found],
        sizes=[spec.size for spec, _ in found],
    )
    levels = [i for spec, _ in found for i in spec.levels]
    return dict(zip(levels, weights.split([plan.levels[i].parameters for i in levels], -1), strict=True))


def _is_ahead(plan: Plan, spec: Generator, one_launch: bool) -> bool:
    return len(spec.levels) > 1 or (one_launch and plan.levels[spec.levels[0]].hidden > 0)


def _generate(spec: Generator, generator: Tensor, signal: Tensor) -> Tensor:
    return ops.generate_weights(signal, generator, offsets=spec.offset, groups=spec.groups, sizes=spec.size)
