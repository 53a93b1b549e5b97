"""The network as an engine runs it: batch norms folded in float64, uint8 frames in, labels or logits out."""

import copy
from collections.abc import Collection
from dataclasses import replace

from torch import Tensor, nn

from hyperseg import ops
from hyperseg.models.decoder import skip_features
from hyperseg.models.encoder import EfficientNetTrunk, TimmTrunk
from hyperseg.models.hyperseg import HyperSeg
from hyperseg.models.norms import check_running_statistics, fold_affine
from hyperseg.models.sizes import pad, pixel_affine, scale_pixels
from hyperseg.runtime.fused_blocks import (
    FusedBlock,
    FusedContext,
    FusedHead,
    FusedStem,
    fusible,
    fusible_head,
    fusible_stem,
    operator_of_context,
)
from hyperseg.runtime.fused_chain import FusedChain

FUSED = ("stem", "mbconv", "mbconv_chain", "pointwise_conv", "context_head")


class FoldedNetwork(nn.Module):
    """Copy of a network for inference: no batch norms, no dropout, no context that no generator reads (SPEC C.1).

    Encoders other than EfficientNet keep their batch norms, in eval mode: timm does not report which norm belongs to
    which convolution.

    Args:
        model: any network; it is copied.
        fuse: run parts of the network as one operator each, by the operators' names, or all of them: ``stem``;
            ``mbconv`` (EfficientNet's blocks); ``mbconv_chain`` (these in one call; on a GPU the last of them);
            ``pointwise_conv`` (its head and the reductions of the features, and a context head of which only the
            reduced map is read); ``context_head``.
        generate_ahead: see :class:`hyperseg.models.decoder.FoldedDecoder`; for devices with costly launches.

    Attributes:
        scale, shift: float32 ``[3]`` buffers, see :func:`hyperseg.models.sizes.pixel_affine`.

    Raises:
        ValueError: a batch norm has no running statistics, or the decoder has another kind of norm.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: HyperSeg, fuse: bool | Collection[str] = False, generate_ahead: bool = False):
        super().__init__()
        fused = frozenset(FUSED if fuse is True else fuse or ())
        check_running_statistics(model)
        model = copy.deepcopy(model).eval().requires_grad_(False)
        self.config = model.config
        decoder = model.decoder.double().fold(generate_ahead)
        self.generators = nn.ParameterList(nn.Parameter(g.float(), requires_grad=False) for g in decoder.generators)
        self.biases = nn.ParameterList(nn.Parameter(b.float(), requires_grad=False) for b in decoder.biases)
        # It refers to these lists, so it follows the parameters when the network moves.
        self.decoder = replace(decoder, generators=self.generators, biases=self.biases)
        self.encoder, self.context = model.encoder.float(), model.context.float()
        # A last level at full resolution takes the image as its skip feature.
        self.reads_images = model.output_stride == 1
        self.stem: FusedStem | None = None
        self.head: FusedHead | None = None
        trunk = self.encoder.trunk
        if isinstance(trunk, EfficientNetTrunk):
            fold_efficientnet(trunk)
            if "mbconv" in fused:
                _fuse_efficientnet(trunk)
                if "mbconv_chain" in fused:
                    trunk.chain = FusedChain(trunk.blocks, trunk.taps)
            if "stem" in fused and fusible_stem(trunk):
                self.stem = FusedStem(trunk.conv_stem)
            if "pointwise_conv" in fused and fusible_head(trunk):
                self.head = FusedHead(self.encoder)
        # Only our own convolutions and norms: in a timm model a norm of this name may come before its convolution.
        ours: list[nn.Module] = [self.encoder.reduce, self.context]
        if isinstance(trunk, TimmTrunk):
            ours += [m for m in (trunk.stem, trunk.head) if m is not None]
        for module in [m for part in ours for m in part.modules()]:
            if isinstance(module, nn.Sequential) and hasattr(module, "conv") and hasattr(module, "norm"):
                fold_norm(module.conv, module.norm)
                module.norm = nn.Identity()
        if operator_of_context(self.context, decoder.plan.used_channels) in fused:
            self.context = FusedContext(self.context)
        scale, shift = pixel_affine(self.config.mean, self.config.std, self.generators[0].device)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def _apply(self, *args, **kwargs):
        """Convert or move the network, but keep scale and shift in float32."""
        super()._apply(*args, **kwargs)
        self.scale, self.shift = pixel_affine(self.config.mean, self.config.std, self.scale.device)
        return self

    def order_for_cpu(self) -> None:
        """Store large 1x1 convolutions with the output channels last, as the operators of the CPU pack them.

        It changes no value and no shape, only strides.
        """
        for module in self.modules():
            if isinstance(module, FusedBlock):
                transpose_memory(module.project)
            elif isinstance(module, FusedHead):
                transpose_memory(module.conv_head, *(conv for part in module.reduce for conv in part.modules()))
            elif isinstance(module, FusedContext) and module.reduce is not None:
                transpose_memory(module.reduce.conv)
        for generator in self.generators:
            generator.data = generator.data.t().contiguous().t()

    def keep_arguments(self) -> None:
        """Look the arguments of EfficientNet's blocks up once: that takes as long as a tenth of a small block."""
        for module in self.modules():
            if isinstance(module, FusedBlock):
                module.keep_arguments()

    def forward(self, images: Tensor, labels: bool = False) -> Tensor:
        """Same as :meth:`from_images`."""
        return self.from_images(images, labels)

    def from_images(self, images: Tensor, labels: bool = False) -> Tensor:
        """Run the network on normalised images ``[N, 3, H, W]`` of its dtype; returns as :meth:`from_frames`."""
        size = images.shape[2], images.shape[3]
        images = pad(images, self.config.padded_size(size))
        trunk = self.encoder.trunk
        if isinstance(trunk, EfficientNetTrunk):
            features, head = self._after_stem(trunk.bn1(trunk.conv_stem(images)))
        else:
            features, head = self.encoder(images)
        return self._decode(features, head, images, size if labels else None)

    def from_frames(self, frames: Tensor, labels: bool = True) -> Tensor:
        """Run the network on uint8 RGB frames ``[N, H, W, 3]``.

        Args:
            labels: return labels; False for logits.

        Returns:
            Labels, uint8 ``[N, H, W]``; or logits ``[N, num_classes, h, w]`` of the padded frame (see
            :meth:`HyperSegConfig.padded_size`) at the network's output stride.
        """
        size = frames.shape[1], frames.shape[2]
        if self.stem is None:
            return self.from_images(self.normalise(frames), labels)
        padded = self.config.padded_size(size)
        images = None
        if self.reads_images:
            like = self.stem.conv.bias
            images = ops.normalise_frames(frames, self.scale, self.shift, like=like, size=padded)
        features, head = self._after_stem(self.stem(frames, self.scale, self.shift, padded))
        return self._decode(features, head, images, size if labels else None)

    def _after_stem(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Run EfficientNet's blocks and head on the stem's output: return the skip features and the head map."""
        trunk = self.encoder.trunk
        if self.head is None:
            return self.encoder.forward_head(*trunk.forward_blocks(x))
        return self.head(trunk.forward_features(x))

    def normalise(self, frames: Tensor) -> Tensor:
        """Normalise uint8 ``[N, H, W, 3]`` to ``[N, 3, H, W]`` of the network's dtype, in channels-last memory."""
        return scale_pixels(frames, self.scale, self.shift, self.generators[0].dtype)

    def _decode(
        self, features: list[Tensor], head: Tensor, images: Tensor | None, labels: tuple[int, int] | None
    ) -> Tensor:
        """Run context and decoder; return logits, or labels of this size (H, W)."""
        plan = self.decoder.plan
        signal = self.context(head, plan.used_channels)
        skips = skip_features(features, images)[: len(plan.levels)]
        if labels is None:
            return self.decoder.decode(signal, skips)
        if self.reads_images:  # the last level has the padded image's size
            found = self.decoder.decode(signal, skips, labels=True)
        else:
            found = ops.upsample_argmax(self.decoder.decode(signal, skips), self.config.padded_size(labels))
        height, width = labels
        return found[:, :height, :width].contiguous()


def transpose_memory(*modules: nn.Module) -> None:
    """Store the weights of those of these modules that are 1x1 convolutions with the output channels last in memory."""
    for conv in modules:
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.groups == 1:
            conv.weight.data = conv.weight.data.flatten(1).t().contiguous().t()[:, :, None, None]


def fold_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Fold a batch norm's running statistics and affine map into the convolution before it, which gets a bias."""
    scale, bias = fold_affine(copy.deepcopy(norm).double(), f"The norm after {conv}")
    if conv.bias is not None:
        bias = bias + conv.bias.double() * scale
    weight = conv.weight.double() * scale[:, None, None, None]
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)


def fold_efficientnet(trunk: EfficientNetTrunk) -> None:
    """Fold all batch norms of the trunk; their activations stay."""
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
    """Fold a norm of timm's, which is followed by its activation in the same module; keep the activation."""
    fold_norm(getattr(parent, conv), getattr(parent, norm))
    setattr(parent, norm, getattr(parent, norm).act)
