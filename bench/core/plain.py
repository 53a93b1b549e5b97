"""HyperSeg in plain PyTorch, without an operator of ours: with its norms, without them, or with folded ones.

With norms it runs as the official code does, which needs packages of 2021: every norm is a call of its own, and decoder
levels are matrix products and grouped convolutions over patches. Compilers and CUDA graphs see all of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hyperseg.models import HyperSeg
from hyperseg.models.decoder import skip_features
from hyperseg.models.plan import DecoderPlan
from hyperseg.ops import reference
from hyperseg.ops._layout import level_input
from hyperseg.runtime.folding import FoldedNetwork


class Shift(nn.Module):
    """What is left of a folded norm: a bias per channel."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias[:, None, None]


class PlainNetwork(nn.Module):
    """Normalised, padded images to logits at the output stride.

    Args:
        encoder, context: of a network; their norms are as they should run.
        generators: weights that generate the levels' weights.
        norms: of each level, called after each of its convolutions.
        used: channels of the signal that are computed; None: all.
    """

    def __init__(
        self,
        encoder: nn.Module,
        context: nn.Module,
        plan: DecoderPlan,
        halo: str,
        generators: Iterable[Tensor],
        norms: Iterable[Iterable[nn.Module]],
        used: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.context, self.plan, self.halo, self.used = encoder, context, plan, halo, used
        self.generators = nn.ParameterList(nn.Parameter(g.detach(), requires_grad=False) for g in generators)
        self.norms = nn.ModuleList(nn.ModuleList(level) for level in norms)

    def forward(self, images: Tensor) -> Tensor:
        features, head = self.encoder(images)
        signal = self.context(head, self.used)
        skips = skip_features(features, images)
        x: Tensor | None = None
        for spec, generator in zip(self.plan.generators, self.generators, strict=True):
            weights = reference.generate_weights(signal, [generator], [spec.offset], [spec.groups], [spec.size])
            sizes = [self.plan.levels[i].parameters for i in spec.levels]
            for i, part in zip(spec.levels, weights.split(sizes, -1), strict=True):
                x = self.level(i, level_input(skips[i], x), part)
        assert x is not None
        return x

    def level(self, i: int, x: Tensor, weights: Tensor) -> Tensor:
        level, modules = self.plan.levels[i], self.norms[i]
        assert isinstance(modules, nn.ModuleList)
        norms = list(modules)
        if level.hidden:
            return reference.inverted_residual(x, weights, level.hidden, level.out_channels, self.halo, norms)
        y = reference.patch_conv2d(x, weights, None, level.out_channels, [1, 1], 1, [1, 1], "reflect")
        return F.relu(norms[0](y))


def with_norms(model: HyperSeg) -> PlainNetwork:
    """Return a copy of the network whose norms are calls of their own."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    decoder = model.decoder
    norms = [level.norms for level in decoder.levels]
    return PlainNetwork(
        model.encoder,
        model.context,
        decoder.plan,
        decoder.halo,
        decoder.generators,
        norms,  # type: ignore[arg-type]
    ).eval()


def without_norms(model: HyperSeg) -> PlainNetwork:
    """Return a copy without its norms, as the official FPS script does: another network with other labels."""
    network = with_norms(model)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, getattr(child, "act", nn.Identity()))  # timm's norms have an activation
    return network


@torch.no_grad()
def folded(model: HyperSeg) -> PlainNetwork:
    """Return a copy with the norms folded into its weights, and without channels that no generator reads."""
    network = FoldedNetwork(model)
    plan = model.decoder.plan
    norms = []
    for level, bias in zip(plan.levels, network.biases, strict=True):
        widths = [level.hidden, level.hidden, level.out_channels] if level.hidden else [level.out_channels]
        norms.append([Shift(part) for part in bias.split(widths)])
    return PlainNetwork(
        network.encoder, network.context, plan, network.decoder.halo, network.generators, norms, plan.used_channels
    ).eval()
