"""The decoder: weight generators and dynamic levels, for all networks (SPEC D to G).

In training, batch norms use batch statistics, of all processes if they are synchronised, and each inverted residual is
one operator call; norms with settings that the operator does not have are called one by one. A level whose norms are
frozen folds them into its weights. If all levels are frozen, as in eval mode, the norms are folded: their scales into
the generators' rows, their shifts into biases, and a level is one call of ``decoder_level``. The module folds in every
forward pass, an engine once; both run :class:`FoldedDecoder`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperseg import ops
from hyperseg._distributed import all_reduce
from hyperseg.models.norms import SyncBatchNorm2d, fold_affine, group_of, is_foldable, update_running_statistics
from hyperseg.models.plan import DecoderPlan, GeneratorPlan, LevelPlan
from hyperseg.ops import _layout, reference

logger = logging.getLogger("hyperseg.models")


class DynamicLevel(nn.Module):
    """The stored part of a level: its batch norms. Its convolution weights are generated."""

    _logged = False

    def __init__(self, level: LevelPlan, halo: str):
        super().__init__()
        self.level, self.halo = level, halo
        widths = [level.hidden, level.hidden, level.out_channels] if level.hidden else [level.out_channels]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)

    def fold(self, name: str = "level") -> tuple[Tensor, Tensor]:
        """Return the batch norms as ``scale [P]`` of each generated parameter and ``bias [2 * hidden + out]``.

        ``name`` is the level's, for messages.

        Raises:
            ValueError: one of them is no batch norm, or has no running statistics.
        """
        level = self.level
        fan_in = [level.in_channels, 9, level.hidden] if level.hidden else [level.in_channels]
        rows, biases = [], []
        for i, (norm, width) in enumerate(zip(self.norms, fan_in, strict=True)):
            scale, bias = fold_affine(norm, f"{name}.norms.{i}")
            rows.append(scale.repeat_interleave(width))
            biases.append(bias)
        return torch.cat(rows), torch.cat(biases)

    def forward(self, skip: Tensor, previous: Tensor | None, weights: Tensor) -> Tensor:
        """Run the level on generated ``weights [N, fh, fw, P]`` with its batch norms not folded, as in training."""
        level = self.level
        x = _layout.level_input(skip, previous)
        if not level.hidden:
            y = ops.patch_conv2d(x, weights, out_channels=level.out_channels)
            return F.relu(self.norms[0](y))
        if all(is_foldable(norm) for norm in self.norms):
            return self._frozen(x, weights)
        group = self._fused_group()
        if group is None:
            self._log_once()
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
            group=group,
        )
        self._update_running_statistics(mean, variance, x, weights, group)
        return y

    def _frozen(self, x: Tensor, weights: Tensor) -> Tensor:
        """Run an inverted residual whose norms are all frozen: folded into its weights."""
        scale, bias = self.fold()
        return ops.patch_inverted_residual(
            x,
            (weights * scale).to(weights.dtype),
            bias.to(x.dtype),
            hidden=self.level.hidden,
            out_channels=self.level.out_channels,
            halo=self.halo,
        )

    def _fused_group(self) -> str | None:
        """Return the process group for the operator with batch norms; None if it does not compute this level.

        It does not if a norm is of another class, frozen, without weight or bias, or if their eps or groups differ: the
        operator takes one for all.
        """
        groups = {group_of(norm) for norm in self.norms}
        fused = len(groups) == 1 and all(
            type(norm) in (nn.BatchNorm2d, SyncBatchNorm2d)
            and norm.training
            and norm.weight is not None
            and norm.bias is not None
            and norm.eps == self.norms[0].eps
            for norm in self.norms
        )
        return groups.pop() if fused else None

    def _log_once(self) -> None:
        if not (self._logged or torch.compiler.is_compiling()):
            self._logged = True
            logger.debug(
                "a level with norms that no operator has together runs as plain PyTorch: %s",
                ", ".join(f"{norm}{'' if norm.training else ' in eval mode'}" for norm in self.norms),
            )

    @torch.no_grad()
    def _update_running_statistics(
        self, mean: Tensor, variance: Tensor, x: Tensor, weights: Tensor, group: str
    ) -> None:
        n, _, height, width = x.shape
        fh, fw = weights.shape[1:3]
        pixels = n * height * width
        # With halo "own" a patch also normalises the pixels around it, so these occur several times (SPEC G).
        expanded = n * (height + 2 * fh) * (width + 2 * fw) if self.halo == "own" else pixels
        counts: Sequence[int | Tensor] = (expanded, pixels, pixels)
        if group:
            local = F.pad(mean.new_full((2,), pixels, dtype=torch.float64), (1, 0), value=expanded)
            counts = all_reduce(local, group).unbind()
        widths = [norm.num_features for norm in self.norms]
        for norm, *batch in zip(self.norms, mean.split(widths), variance.split(widths), counts, strict=True):
            update_running_statistics(norm, *batch)


class Decoder(nn.Module):
    """Decoder: signal, features and image to logits at the resolution of the last level.

    Args:
        plan: shapes of levels and generators.
        halo: ``"own"`` or ``"neighbour"``, see :func:`hyperseg.ops.patch_inverted_residual`.
    """

    def __init__(self, plan: DecoderPlan, halo: str):
        super().__init__()
        self.plan, self.halo = plan, halo
        self.generators = nn.ParameterList(
            nn.Parameter(torch.empty(g.rows, g.channels // g.groups)) for g in plan.generators
        )
        self.levels = nn.ModuleList(DynamicLevel(level, halo) for level in plan.levels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the generators as PyTorch initialises a convolution."""
        for generator in self.generators:
            nn.init.kaiming_uniform_(generator, a=5**0.5)

    def fold(self, generate_ahead: bool = False) -> "FoldedDecoder":
        """Fold the batch norms' running statistics into generators and biases, in the parameters' dtype.

        Raises:
            ValueError: a norm is no batch norm, or has no running statistics; the message names it.
        """
        folded = [level.fold(f"decoder.levels.{i}") for i, level in enumerate(self.levels)]
        scales, biases = zip(*folded, strict=True)
        generators = []
        for spec, generator in zip(self.plan.generators, self.generators, strict=True):
            rows = torch.cat([scales[i] for i in spec.levels])
            padding = rows.new_ones(spec.rows - spec.size)
            generators.append(generator * torch.cat([rows, padding])[:, None])
        return FoldedDecoder(self.plan, self.halo, generators, biases, generate_ahead)

    def forward(self, signal: Tensor, features: Sequence[Tensor], images: Tensor) -> Tensor:
        """Decode the signal.

        Args:
            signal: ``[N, C, fh, fw]``.
            features: skip features ``[N, C_i, H_i, W_i]``, fine to coarse.
            images: ``[N, 3, H, W]``, read by a sixth level only.

        Returns:
            Logits ``[N, num_classes, H, W]`` at the resolution of the last level.
        """
        # Under autocast the signal is a 16-bit float, images and parameters are float32.
        skips = [skip.to(signal.dtype) for skip in skip_features(features, images)[: len(self.levels)]]
        if all(is_foldable(norm) for level in self.levels for norm in level.norms):
            folded = self.fold(generate_ahead=signal.device.type != "cpu")
            return folded.to(signal.dtype).decode(signal, skips)
        x: Tensor | None = None
        for spec, generator in zip(self.plan.generators, self.generators, strict=True):
            weights = _generate(spec, generator.to(signal.dtype), signal)
            sizes = [self.plan.levels[i].parameters for i in spec.levels]
            for i, part in zip(spec.levels, weights.split(sizes, -1), strict=True):
                x = self.levels[i](skips[i], x, part)
        assert x is not None
        return x


def skip_features(features: Sequence[Tensor], images: Tensor | None) -> list[Tensor]:
    """Return the levels' skip features coarse to fine; the image comes last, and only a sixth level reads it."""
    return [*reversed(features), *([] if images is None else [images])]


@dataclass
class FoldedDecoder:
    """Decoder without batch norms, for inference: one operator call per level.

    Attributes:
        plan, halo: as of :class:`Decoder`.
        generators: ``[rows, channels / groups]`` each, with the batch norms' scales in their rows.
        biases: ``[2 * hidden + out_channels]`` of each level, the batch norms' shifts.
        generate_ahead: generate the weights of all inverted residuals in one launch before the first level. This pays
            where a launch costs about as much as generating a level's weights, as on a GPU. Otherwise a level generates
            its weights just before it uses them, while they are in the cache.
    """

    plan: DecoderPlan
    halo: str
    generators: Sequence[Tensor]
    biases: Sequence[Tensor]
    generate_ahead: bool = False

    def to(self, dtype: torch.dtype) -> "FoldedDecoder":
        """Return a copy with generators and biases in this dtype."""
        generators, biases = ([t.to(dtype) for t in tensors] for tensors in (self.generators, self.biases))
        return FoldedDecoder(self.plan, self.halo, generators, biases, self.generate_ahead)

    def decode(self, signal: Tensor, skips: Sequence[Tensor], labels: bool = False) -> Tensor:
        """Run all levels.

        Args:
            signal: ``[N, C, fh, fw]``.
            skips: skip features ``[N, C_i, H_i, W_i]`` of the levels, coarse to fine.
            labels: return the best class of the last level's logits instead of these.

        Returns:
            Logits ``[N, num_classes, H, W]`` at the resolution of the last level, or labels, uint8 ``[N, H, W]``.
        """
        x: Tensor | None = None
        ahead: dict[int, Tensor] = {}
        for spec, generator in zip(self.plan.generators, self.generators, strict=True):
            if not ahead and self._is_ahead(spec):
                ahead = self.weights_ahead(signal)
            for i in spec.levels:
                last = labels and i == len(self.plan.levels) - 1
                x = (ops.decoder_level_argmax if last else ops.decoder_level)(
                    skips[i],
                    x,
                    signal=None if i in ahead else signal,
                    generator=None if i in ahead else generator,
                    weights=ahead.get(i),
                    bias=self.biases[i],
                    offset=0 if i in ahead else spec.offset,
                    groups=1 if i in ahead else spec.groups,
                    out_channels=self.plan.levels[i].out_channels,
                    hidden=self.plan.levels[i].hidden,
                    halo=self.halo,
                )
        assert x is not None
        return x

    def weights_ahead(self, signal: Tensor) -> dict[int, Tensor]:
        """Generate the weights of all levels that do not generate their own, in one operator call.

        These are the levels that share a generator and, with ``generate_ahead``, the inverted residuals.

        Returns:
            By level, ``[N, fh, fw, P]``.
        """
        found = [(s, g) for s, g in zip(self.plan.generators, self.generators, strict=True) if self._is_ahead(s)]
        weights = ops.generate_weights(
            signal,
            [generator for _, generator in found],
            offsets=[spec.offset for spec, _ in found],
            groups=[spec.groups for spec, _ in found],
            sizes=[spec.size for spec, _ in found],
        )
        levels = [i for spec, _ in found for i in spec.levels]
        sizes = [self.plan.levels[i].parameters for i in levels]
        return dict(zip(levels, weights.split(sizes, -1), strict=True))

    def _is_ahead(self, spec: GeneratorPlan) -> bool:
        return len(spec.levels) > 1 or (self.generate_ahead and self.plan.levels[spec.levels[0]].hidden > 0)


def _generate(spec: GeneratorPlan, generator: Tensor, signal: Tensor) -> Tensor:
    return ops.generate_weights(signal, generator, offsets=spec.offset, groups=spec.groups, sizes=spec.size)
