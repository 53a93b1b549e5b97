"""The encoder: five skip features and the stride-32 head map, from EfficientNet as published or any timm model."""

import contextlib
import difflib
import hashlib
from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperseg.models.config import HyperSegConfig
from hyperseg.models.errors import CheckpointError
from hyperseg.models.layers import conv_norm, conv_norm_act

Weights = Mapping[str, Tensor]  # of timm's model for classification, complete

_STRIDES = (2, 4, 8, 16, 32)
# After these stages follows a convolution with stride 2, or the head (SPEC B.3).
_EFFICIENTNET_TAPS = (0, 1, 2, 4, 6)
_EFFICIENTNET_STAGES = 7
_EFFICIENTNET_MOMENTUM = 0.01


class StaticSameConv2d(nn.Conv2d):
    """A convolution whose zero padding (left, right, top, bottom) was fixed for one nominal image size (SPEC B.2)."""

    def __init__(self, conv: nn.Conv2d, padding: tuple[int, int, int, int]):
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, groups=conv.groups, bias=False
        )
        self.weight = conv.weight
        self.static_padding = padding

    def forward(self, x: Tensor) -> Tensor:
        left, right, top, bottom = self.static_padding
        if (left, top) == (right, bottom):
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), groups=self.groups)
        x = F.pad(x, self.static_padding)
        return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)


class EfficientNetTrunk(nn.Module):
    """timm's EfficientNet with the official batch norm momentum and, unless ``nominal`` is None, static padding.

    Attributes:
        chain: computes the features in place of the stages; see :mod:`hyperseg.runtime.fused_chain`.
    """

    blocks: Any
    bn2: nn.Module
    chain: nn.Module | None
    taps = _EFFICIENTNET_TAPS

    def __init__(self, name: str, weights: Weights | None, drop_path_rate: float, nominal: int | None):
        super().__init__()
        check_known(name)
        net = timm.create_model(name, num_classes=0, drop_path_rate=drop_path_rate)
        stages = list(net.blocks.children()) if isinstance(net, timm.models.EfficientNet) else []
        depthwise = all(hasattr(block, "conv_dw") for stage in stages for block in stage.children())
        if len(stages) != _EFFICIENTNET_STAGES or not depthwise:
            raise ValueError(f"Only EfficientNet B0 to B7 have static padding; for {name!r} set it to None.")
        if weights is not None:
            keys = net.state_dict().keys()
            net.load_state_dict({key: value for key, value in weights.items() if key in keys})
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = _EFFICIENTNET_MOMENTUM
        self.conv_stem, self.bn1, self.blocks = net.conv_stem, net.bn1, net.blocks
        self.conv_head, self.bn2 = net.conv_head, net.bn2
        self.channels = [_out_channels(self.blocks[i]) for i in _EFFICIENTNET_TAPS]
        self.head_channels = net.conv_head.out_channels
        self.chain = None
        if nominal is not None:
            self._fix_padding(nominal)

    def _fix_padding(self, size: int) -> None:
        size, self.conv_stem = _static(self.conv_stem, size)
        for stage in self.blocks:
            for block in stage:
                size, block.conv_dw = _static(block.conv_dw, size)

    def coarsest(self) -> list[nn.Module]:
        """Return modules whose norms all run at stride 32."""
        return [*list(self.blocks[5])[1:], self.blocks[6], self.bn2]

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        return self.forward_blocks(self.bn1(self.conv_stem(x)))

    def forward_blocks(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Run all that follows the stem, on the stem's output: return the features and the head map."""
        features = self.forward_features(x)
        return features, self.bn2(self.conv_head(features[-1]))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Run the blocks on the stem's output; return the outputs of the stages in ``taps``, the head's input last."""
        if self.chain is not None:
            return self.chain(x)
        features = []
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if i in self.taps:
                features.append(x)
        return features


def _out_channels(stage: nn.Sequential) -> int:
    block = stage[-1]
    return (block.conv_pwl if hasattr(block, "conv_pwl") else block.conv_pw).out_channels


def _static(conv: nn.Conv2d, size: int) -> tuple[int, nn.Conv2d]:
    """Return the nominal size after the convolution, and the convolution with the padding of ``size``."""
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    before, after = total // 2, total - total // 2
    return out, StaticSameConv2d(conv, (before, after, before, after))


class TimmTrunk(nn.Module):
    """Any timm model with ``features_only``: its features at strides 2 to 32, and a 1x1 convolution for the head map.

    If the model has no stride-2 feature (ConvNeXt, Swin ...), a 3x3 convolution of the image makes one.
    """

    def __init__(
        self,
        name: str,
        weights: Weights | None,
        drop_path_rate: float,
        head_channels: int,
        stem_channels: int,
    ):
        super().__init__()
        self.net = _features_only(name, weights, drop_path_rate)
        strides, channels = self.net.feature_info.reduction(), self.net.feature_info.channels()
        by_stride = dict(zip(strides, range(len(strides)), strict=True))
        missing = [s for s in _STRIDES[1:] if s not in by_stride]
        if missing:
            raise ValueError(
                f"The encoder {name!r} has features at strides {strides}; HyperSeg needs 4, 8, 16 and 32 "
                "(2 is optional). Choose a hierarchical model, such as resnet18 or convnext_tiny."
            )
        self.taps = [by_stride[s] for s in _STRIDES if s in by_stride]
        self.channels = [channels[i] for i in self.taps]
        self.stem = None
        if 2 not in by_stride:
            self.stem = conv_norm_act(3, stem_channels, 3, stride=2, padding=1, act=nn.SiLU)
            self.channels.insert(0, stem_channels)
        self.head = conv_norm_act(channels[self.taps[-1]], head_channels, 1, act=nn.SiLU)
        self.head_channels = head_channels
        self.channels_first = getattr(self.net, "output_fmt", "NCHW") == "NCHW"
        self._try(name)

    @torch.no_grad()
    def _try(self, name: str) -> None:
        """Run an image of an unusual size: reject models that take one size only, or round sizes differently."""
        height, width = 64, 96
        try:
            features, _ = self.eval()(torch.zeros(1, 3, height, width))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ValueError(
                f"The encoder {name!r} does not run at {height}x{width}, and HyperSeg takes images of any size; choose "
                f"another encoder. ({error})"
            ) from error
        finally:
            self.train()
        for f, channels, stride in zip(features, self.channels, _STRIDES, strict=True):
            expected = (channels, height // stride, width // stride)
            if f.shape[1:] != expected:
                raise ValueError(
                    f"The encoder {name!r} returns a feature of {list(f.shape[1:])} at {height}x{width}, but HyperSeg "
                    f"needs {list(expected)}; choose another encoder."
                )

    def coarsest(self) -> list[nn.Module]:
        """Return modules of ours whose norms all run at stride 32; timm's are not known."""
        return [self.head]

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = self._maps(x)
        features = [maps[i] if self.channels_first else maps[i].permute(0, 3, 1, 2) for i in self.taps]
        if self.stem is not None:
            features.insert(0, self.stem(x))
        return features, self.head(features[-1])

    def _maps(self, x: Tensor) -> list[Tensor]:
        if not self.training:
            return self.net(x)
        try:
            return self.net(x)
        except ValueError as error:  # of a batch norm, on a map that may be coarser than our features or pooled
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"Training on {len(x)} image of {x.shape[2]}x{x.shape[3]} leaves a batch norm of the encoder one value "
                "per channel. Use a batch of at least 2 images; larger images help too unless the encoder normalises "
                "pooled maps."
            ) from error


def check_known(name: str) -> None:
    """Raise a ValueError with similar names if timm has no such model."""
    if not timm.is_model(name):
        wanted = name.split(".")[0].lower()
        similar = difflib.get_close_matches(wanted, timm.list_models(), n=5)
        raise ValueError(f"timm has no model {name!r}; similar names: {', '.join(similar) or 'none'}.")


def _features_only(name: str, weights: Weights | None, drop_path_rate: float) -> nn.Module:
    check_known(name)
    options: dict[str, Any] = {"features_only": True}
    if weights is None:
        return _create(name, options, drop_path_rate)
    options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(weights)}}
    net = _create(name, options, drop_path_rate)
    _check_loaded(net, weights)
    return net


def _create(name: str, options: dict[str, Any], drop_path_rate: float) -> nn.Module:
    # Swin and similar models need strict_img_size=False to take any size; not every model has these options.
    try:
        for extra in ({"drop_path_rate": drop_path_rate, "strict_img_size": False}, {"drop_path_rate": drop_path_rate}):
            with contextlib.suppress(TypeError):
                return timm.create_model(name, **extra, **options)
        return timm.create_model(name, **options)
    except (RuntimeError, AttributeError, KeyError) as error:
        raise ValueError(f"timm has no features_only for {name!r} ({error}); choose another encoder.") from error


def _check_loaded(net: nn.Module, weights: Weights) -> None:
    """Check that each tensor of ``net`` is one of the weights: timm loads what fits and initialises the rest.

    By value, because timm renames the modules of a network of features.
    """
    loaded = {_value(tensor) for tensor in weights.values()}
    if left := [key for key, tensor in net.state_dict().items() if _value(tensor) not in loaded]:
        raise CheckpointError(
            f"timm did not load {len(left)} of the encoder's tensors, such as {left[0]}, from the pretrained weights; "
            "choose others."
        )


def _value(tensor: Tensor) -> tuple[torch.Size, bytes]:
    return tensor.shape, hashlib.sha256(tensor.detach().cpu().double().numpy().tobytes()).digest()


class Encoder(nn.Module):
    """``[N, 3, H, W]`` -> five features with the configured channels, finest first, and the head map (SPEC B)."""

    def __init__(self, config: HyperSegConfig, weights: Weights | None = None):
        super().__init__()
        self.trunk: EfficientNetTrunk | TimmTrunk
        if config.static_padding_size is not None:
            self.trunk = EfficientNetTrunk(config.encoder, weights, config.drop_path_rate, config.static_padding_size)
        else:
            self.trunk = TimmTrunk(
                config.encoder, weights, config.drop_path_rate, config.head_channels, config.feature_channels[0]
            )
        # No activation after the reduction, and no reduction if the channel count is right already.
        self.reduce = nn.ModuleList(
            nn.Identity()
            if found == reduced
            else conv_norm(found, reduced, 1, eps=1e-3, momentum=_EFFICIENTNET_MOMENTUM)
            for found, reduced in zip(self.trunk.channels, config.feature_channels, strict=True)
        )
        self.head_dropout = nn.Dropout(config.head_dropout)

    def coarsest(self) -> list[nn.Module]:
        """Return modules whose norms all run at stride 32."""
        return [*self.trunk.coarsest(), self.reduce[-1]]

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        return self.forward_head(*self.trunk(images))

    def forward_head(self, features: list[Tensor], head: Tensor) -> tuple[list[Tensor], Tensor]:
        """Reduce the trunk's features to the configured channels; dropout on its head map."""
        return [reduce(f) for reduce, f in zip(self.reduce, features, strict=True)], self.head_dropout(head)
