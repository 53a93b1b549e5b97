"""The network as it runs: batch norms folded into the convolutions before them, in float64; never left out."""

import copy

import torch
from torch import Tensor, nn

from hyperseg import ops
from hyperseg.models.decoder import decode, skip_features
from hyperseg.models.encoder import EfficientNetTrunk, TimmTrunk
from hyperseg.models.hyperseg import HyperSeg
from hyperseg.models.sizes import pad
from hyperseg.runtime.blocks import FusedBlock, FusedStem, fusible, fusible_stem

Size = tuple[int, int]


class FoldedNetwork(nn.Module):
    """A copy of a network for inference: no batch norms, no dropout, no context that nothing reads (SPEC C.1).

    The norms of encoders other than EfficientNet stay, in eval mode: timm does not say which belongs to which
    convolution.

    Args:
        model: any network; it is copied.
        fuse: run EfficientNet's stem and blocks as one operator each.

    Attributes:
        stem: makes the encoder's first map of frames; None where the network begins with something else.
        reads_images: a last level at full resolution takes the image beside its features.
    """

    def __init__(self, model: HyperSeg, fuse: bool = False):
        super().__init__()
        model = copy.deepcopy(model).eval().requires_grad_(False)
        self.plan, self.halo = model.decoder.plan, model.decoder.halo
        self.takes_one_more, self.reads_images = model.takes_one_more, model.output_stride == 1
        self.stem: FusedStem | None = None
        generators, biases = model.decoder.double().fold()
        self.generators = nn.ParameterList(nn.Parameter(g.float(), requires_grad=False) for g in generators)
        self.biases = nn.ParameterList(nn.Parameter(b.float(), requires_grad=False) for b in biases)
        self.encoder, self.context = model.encoder.float(), model.context.float()
        if isinstance(self.encoder.trunk, EfficientNetTrunk):
            _fold_efficientnet(self.encoder.trunk)
            if fuse:
                _fuse_efficientnet(self.encoder.trunk)
            if fuse and fusible_stem(self.encoder.trunk):
                self.stem = FusedStem(self.encoder.trunk.conv_stem, self.takes_one_more)
        # Our own convolutions and norms; in a timm model a norm of this name may come before its convolution.
        ours: list[nn.Module] = [self.encoder.reduce, self.context]
        if isinstance(self.encoder.trunk, TimmTrunk):
            ours += [m for m in (self.encoder.trunk.stem, self.encoder.trunk.head) if m is not None]
        for module in [m for part in ours for m in part.modules()]:
            if isinstance(module, nn.Sequential) and hasattr(module, "conv") and hasattr(module, "norm"):
                fold_norm(module.conv, module.norm)
                module.norm = nn.Identity()

    def forward(self, images: Tensor, labels_at: Size | None = None) -> Tensor:
        """Normalised ``[N, 3, H, W]`` -> logits of the padded image at the network's output stride.

        Args:
            labels_at: the padded image's size, for its labels, uint8 ``[N, *labels_at]``, instead of logits.
        """
        images = pad(images, self.takes_one_more)
        features, head = self.encoder(images)
        return self._decode(features, head, images, labels_at)

    def behind_stem(self, x: Tensor, images: Tensor | None, labels_at: Size | None = None) -> Tensor:
        """What the stem gives -> the same logits or labels; the images for networks that read them."""
        if self.reads_images:
            assert images is not None
            images = pad(images, self.takes_one_more)
        trunk = self.encoder.trunk
        assert isinstance(trunk, EfficientNetTrunk)
        features, head = self.encoder.behind_trunk(*trunk.behind_stem(x))
        return self._decode(features, head, images, labels_at)

    def _decode(self, features: list[Tensor], head: Tensor, images: Tensor | None, labels_at: Size | None) -> Tensor:
        signal = self.context(head, self.plan.used_channels)
        skips = skip_features(features, images)[: len(self.plan.levels)]
        whole = labels_at == tuple(skips[-1].shape[2:])  # the last level's own size
        answer = decode(self.plan, self.halo, list(self.generators), list(self.biases), signal, skips, labels=whole)
        return answer if whole or labels_at is None else ops.upsample_argmax(answer, labels_at)


def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Put the norm's affine map (of its running statistics) into the convolution, which gets a bias."""
    scale = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
    bias = norm.bias.double() - norm.running_mean.double() * scale
    if conv.bias is not None:
        bias = bias + conv.bias.double() * scale
    weight = conv.weight.double() * scale[:, None, None, None]
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)


def _fold_efficientnet(trunk: EfficientNetTrunk) -> None:
    _fold_with_activation(trunk, "conv_stem", "bn1")
    for stage in trunk.blocks:
        for block in stage:
            if hasattr(block, "conv_pwl"):
                pairs = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
            else:
                pairs = [("conv_dw", "bn1"), ("conv_pw", "bn2")]
            for conv, norm in pairs:
                _fold_with_activation(block, conv, norm)
    _fold_with_activation(trunk, "conv_head", "bn2")


def _fuse_efficientnet(trunk: EfficientNetTrunk) -> None:
    for stage in trunk.blocks:
        for name, block in stage.named_children():
            if fusible(block):
                setattr(stage, name, FusedBlock(block))


def _fold_with_activation(parent: nn.Module, conv: str, norm: str) -> None:
    """timm's norms carry the activation behind them: that is what stays."""
    fold_norm(getattr(parent, conv), getattr(parent, norm))
    setattr(parent, norm, getattr(parent, norm).act)
