"""Numbers of a network: shapes, parameters and FLOPs of each part, counted on tensors without values.

The network is built from its configuration on the meta device and run in eval mode, operator by operator. FLOPs are
those of PyTorch's ``FlopCounterMode``, two per multiply-add of convolutions and matrix products. A parameter or FLOP
belongs to the first output that needs it, in the order of the encoder's features, the head map, the skip features and
the signal. So the parts add up to the network, whatever the encoder is.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from hyperseg import ops
from hyperseg.models.config import HyperSegConfig
from hyperseg.models.decoder import skip_features
from hyperseg.models.hyperseg import HyperSeg

Size = tuple[int, int]


@dataclass(frozen=True)
class Cost:
    """Parameters and FLOPs of a part, for one image in inference."""

    parameters: int = 0
    flops: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.parameters + other.parameters, self.flops + other.flops)


@dataclass(frozen=True)
class Stage:
    """The encoder from one feature to the next.

    Attributes:
        stride, channels, size: of the feature; the size is (H, W).
        skip_channels: of the skip feature, to which a 1x1 convolution reduces it.
        trunk: cost up to the feature.
        skip: cost of that convolution; nothing if the channels are right already.
    """

    stride: int
    channels: int
    size: Size
    skip_channels: int
    trunk: Cost
    skip: Cost


@dataclass(frozen=True)
class Signal:
    """The head map and the context head, up to the signal.

    Attributes:
        kind: ``config.context``.
        size: (H, W), the grid of patches of all levels.
        head_channels, head: of the head map, and the cost of the convolution that makes it.
        channels: of the whole signal; inference computes the first ``computed_channels``.
        context: cost of the context head.
    """

    kind: str
    size: Size
    head_channels: int
    head: Cost
    channels: int
    computed_channels: int
    context: Cost


@dataclass(frozen=True)
class Level:
    """A level of the decoder.

    Attributes:
        size: (H, W) of its map.
        skip_channels, previous_channels, in_channels, hidden, out_channels: as in :class:`LevelPlan`.
        kernel_size: 1 for a dynamic 1x1 convolution, 3 for a dynamic inverted residual.
        grid: patches in each direction; each has weights of its own.
        patch: (H, W) in pixels.
        signal_range: first channel of the signal that its generator reads, and the one after the last.
        groups: of its generator.
        shares_generator: with other levels.
        weights_per_patch: generated values.
        generator: cost of generating the weights of all patches.
        apply: cost of the level with these weights; its parameters are those of the batch norms.
    """

    size: Size
    skip_channels: int
    previous_channels: int
    in_channels: int
    hidden: int
    out_channels: int
    kernel_size: int
    grid: Size
    patch: Size
    signal_range: tuple[int, int]
    groups: int
    shares_generator: bool
    weights_per_patch: int
    generator: Cost
    apply: Cost

    @property
    def weights_per_frame(self) -> int:
        """Generated values of all patches."""
        return self.grid[0] * self.grid[1] * self.weights_per_patch


@dataclass(frozen=True)
class Description:
    """Everything that :func:`describe` found.

    Attributes:
        config: of the network.
        size: (H, W) of the image.
        padded_size: to which the network pads it.
        stages: fine to coarse.
        signal: what is between encoder and decoder.
        levels: coarse to fine.
        unread_parameters: of the encoder and the context head, by name of the part: inference needs none of these.
    """

    config: HyperSegConfig
    size: Size
    padded_size: Size
    stages: tuple[Stage, ...]
    signal: Signal
    levels: tuple[Level, ...]
    unread_parameters: dict[str, int]

    def parts(self) -> dict[str, Cost]:
        """Return the cost of each part of the network; they add up to the whole."""
        nothing = Cost()
        unread = self.unread_parameters["encoder"]
        return {
            "encoder": sum((stage.trunk for stage in self.stages), self.signal.head + Cost(parameters=unread)),
            "skip convolutions": sum((stage.skip for stage in self.stages), nothing),
            "context head": self.signal.context,
            "weight generators": sum((level.generator for level in self.levels), nothing),
            "dynamic levels": sum((level.apply for level in self.levels), nothing),
        }

    def total(self) -> Cost:
        """Return the cost of the network."""
        return sum(self.parts().values(), Cost())

    @property
    def weights_per_frame(self) -> int:
        """Generated values of all patches of all levels."""
        return sum(level.weights_per_frame for level in self.levels)

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return asdict(self) | {
            "levels": [asdict(level) | {"weights_per_frame": level.weights_per_frame} for level in self.levels],
            "weights_per_frame": self.weights_per_frame,
            "parts": {name: asdict(cost) for name, cost in self.parts().items()},
            "total": asdict(self.total()),
        }


@torch.no_grad()
def describe(config: HyperSegConfig, size: Size | None = None) -> Description:
    """Count a network's parameters and FLOPs, part by part, for one image. No weights are needed.

    Args:
        config: of the network, as :func:`hyperseg.models.model_config` returns it, or ``model.config``.
        size: (H, W) of the image; default: the published one.

    Raises:
        ValueError: a side of the image is not positive, or the network cannot be built.
    """
    size = config.resolution if size is None else size
    if min(size) < 1:
        raise ValueError(f"An image has a height and a width from 1, got {size[0]}x{size[1]}.")
    network = on_meta_device(config)
    padded = config.padded_size(size)
    images = torch.empty(1, 3, *padded, device="meta")
    with FlopCounterMode(display=False) as counter, _Trace(counter, network) as trace:
        features, head = network.encoder.trunk(images)
        skips, reduced_head = network.encoder.forward_head(features, head)
        signal = network.context(reduced_head, network.decoder.plan.used_channels)
    trunk = [trace.take(feature) for feature in features]
    head_cost = trace.take(head)
    reductions = [trace.take(skip) for skip in skips]
    context = trace.take(signal)
    whole_context, whole_trunk = _parameters(network.context), _parameters(network.encoder.trunk)
    return Description(
        config=config,
        size=size,
        padded_size=padded,
        stages=tuple(
            Stage(padded[0] // feature.shape[2], feature.shape[1], _size(feature), skip.shape[1], cost, reduction)
            for feature, skip, cost, reduction in zip(features, skips, trunk, reductions, strict=True)
        ),
        signal=Signal(
            kind=config.context,
            size=_size(signal),
            head_channels=head.shape[1],
            head=head_cost,
            channels=network.decoder.plan.signal_channels,
            computed_channels=signal.shape[1],
            context=Cost(whole_context, context.flops),
        ),
        levels=_levels(network, signal, skip_features(skips, images)),
        unread_parameters={
            "encoder": whole_trunk - sum((cost.parameters for cost in trunk), head_cost.parameters),
            "context head": whole_context - context.parameters,
        },
    )


def on_meta_device(config: HyperSegConfig) -> HyperSeg:
    """Return the network of a configuration in eval mode, with parameters that have no values and take no memory."""
    with torch.device("meta"):
        return HyperSeg(config).eval()


def _levels(network: HyperSeg, signal: Tensor, skips: list[Tensor]) -> tuple[Level, ...]:
    """Run the decoder on weights that are generated apart from the levels, so that both can be counted."""
    folded = network.decoder.fold()
    grid = _size(signal)
    found: list[Level] = []
    x: Tensor | None = None
    for spec, generator in zip(folded.plan.generators, folded.generators, strict=True):
        generating, weights = _count(
            ops.generate_weights, signal, generator, offsets=spec.offset, groups=spec.groups, sizes=spec.size
        )
        sizes = [folded.plan.levels[i].parameters for i in spec.levels]
        for i, part in zip(spec.levels, weights.split(sizes, -1), strict=True):
            level = folded.plan.levels[i]
            applying, x = _count(
                ops.decoder_level,
                skips[i],
                x,
                weights=part,
                bias=folded.biases[i],
                out_channels=level.out_channels,
                hidden=level.hidden,
                halo=folded.halo,
            )
            # The last level of a generator has its surplus rows too, which no level uses (SPEC D.5).
            rows = level.parameters + (spec.rows - spec.size if i == spec.levels[-1] else 0)
            size = _size(x)
            found.append(
                Level(
                    size=size,
                    skip_channels=level.skip_channels,
                    previous_channels=level.previous_channels,
                    in_channels=level.in_channels,
                    hidden=level.hidden,
                    out_channels=level.out_channels,
                    kernel_size=network.config.kernel_sizes[i],
                    grid=grid,
                    patch=(size[0] // grid[0], size[1] // grid[1]),
                    signal_range=(spec.offset, spec.offset + spec.channels),
                    groups=spec.groups,
                    shares_generator=len(spec.levels) > 1,
                    weights_per_patch=level.parameters,
                    generator=Cost(rows * spec.channels // spec.groups, generating * level.parameters // spec.size),
                    apply=Cost(_parameters(network.decoder.levels[i]), applying),
                )
            )
    return tuple(found)


def _count(operator: Callable[..., Tensor], *args: Any, **kwargs: Any) -> tuple[int, Tensor]:
    """Return the FLOPs of an operator, and its output."""
    with FlopCounterMode(display=False) as counter:
        output = operator(*args, **kwargs)
    return counter.get_total_flops(), output


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _size(x: Tensor) -> Size:
    return x.shape[2], x.shape[3]


class _Trace(TorchDispatchMode):
    """Records for each storage which operators its values need, and of each operator the FLOPs and parameters."""

    def __init__(self, counter: FlopCounterMode, network: nn.Module):
        super().__init__()
        self._counter = counter
        self._known = {id(parameter) for parameter in network.parameters()}
        self._flops: list[int] = []
        self._read: list[dict[int, int]] = []  # parameters by id, with their number of values
        self._needs: dict[int, int] = {}  # by storage, a bit per operator
        self._kept: list[Tensor] = []  # so that no storage is freed, and its address used again
        self._taken = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._counter.get_total_flops()
        output = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        needs = 1 << len(self._flops)
        for tensor in inputs:
            needs |= self._needs.get(_storage(tensor), 0)
        self._flops.append(self._counter.get_total_flops() - before)
        self._read.append({id(tensor): tensor.numel() for tensor in inputs if id(tensor) in self._known})
        self._needs |= {_storage(tensor): needs for tensor in outputs}
        self._kept += outputs
        return output

    def take(self, tensor: Tensor) -> Cost:
        """Return the cost of what a tensor needs, and no tensor that was taken before needs."""
        new = self._needs.get(_storage(tensor), 0) & ~self._taken
        self._taken |= new
        operators = [i for i in range(len(self._flops)) if new >> i & 1]
        read: dict[int, int] = {}
        for i in operators:
            read |= {key: count for key, count in self._read[i].items() if key in self._known}
        self._known -= read.keys()
        return Cost(sum(read.values()), sum(self._flops[i] for i in operators))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
