"""Calls of HyperSeg operators, recorded from a network's inference and training step with their arguments.

An operator that a network starts to use is measured without a line here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import hyperseg
from bench.core.networks import inference
from hyperseg import ops
from hyperseg.models import HyperSeg
from hyperseg.models.sizes import normalise
from hyperseg.ops import LevelArguments, _layout, reference
from hyperseg.ops._chain import split_chain
from hyperseg.runtime.work import LEVELS, least_bytes

DECODER = "decoder"  # all levels in one row, in addition to the operators
DECODER_BACKWARD = "decoder_backward"  # all levels in a training step: forward, then backward
IGNORE = 255
BOOTSTRAP = 4096  # as in the published training
# Gradient per pixel, over the number of images, of a loss scaled as for mixed precision: with much less float16
# underflows, with much more its sums over all pixels overflow.
PIXEL_GRADIENT = 1 / 128

WHOLE = (DECODER, DECODER_BACKWARD)

# Positions of the arguments that stay float32 when maps are 16-bit floats.
PRECISE = {
    "stem": (1, 2),
    "normalise_frames": (1, 2),
    "patch_inverted_residual_batch_norm": (2, 3),
    "patch_inverted_residual_batch_norm_backward": (3, 4),
    "upsample_cross_entropy": (2,),
    "upsample_cross_entropy_backward": (0, 3),
    DECODER_BACKWARD: (1,),
}


@dataclass(eq=False)
class Call:
    """One call, ``function(*arguments)``.

    Attributes:
        operator: name of the operator, `DECODER` or `DECODER_BACKWARD`.
        times: how often the network makes calls of these shapes.
        of: the step that makes it: ``"frame"``, ``"training"``, or ``"apart"`` where it is part of another call or no
            step makes it.
    """

    operator: str
    arguments: Sequence[Any]
    function: Callable[..., Any]
    times: int = 1
    of: str = "frame"

    @property
    def key(self) -> tuple[Any, ...]:
        """Operator, shapes, strides and dtypes: calls with the same key cost the same."""
        return self.operator, *(
            (tuple(a.shape), a.stride(), a.dtype) if isinstance(a, Tensor) else a for a in tree_leaves(self.arguments)
        )

    @property
    def shapes(self) -> list[Any]:
        """Arguments for a reader: dtype and shape of tensors, and the rest as it is."""
        described = tree_map_only(Tensor, lambda t: f"{str(t.dtype)[6:]}{list(t.shape)}", self.arguments)
        return list(described)

    def __call__(self) -> Any:
        return self.function(*self.arguments)

    def to(self, dtype: torch.dtype) -> Call:
        """Return the call with floating-point arguments of this dtype; those that must be float32 stay so."""
        kept = PRECISE.get(self.operator, ())

        def convert(t: Tensor) -> Tensor:
            return t.to(dtype) if t.is_floating_point() else t

        arguments = tuple(a if i in kept else tree_map_only(Tensor, convert, a) for i, a in enumerate(self.arguments))
        return replace(self, arguments=arguments)

    def least_bytes(self, output: Any) -> int:
        """Return the bytes of inputs and outputs, once each; of a signal only the channels that are used."""
        return least_bytes(self.operator, self.arguments, output)


class Recorder(TorchDispatchMode):
    """Records every call of a HyperSeg operator while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "hyperseg":
            self.calls.append(Call(func._opname, tree_map_only(Tensor, Tensor.detach, args), func))
        return func(*args, **(kwargs or {}))


def inference_calls(model: HyperSeg, frames: Tensor) -> list[Call]:
    """Record the engine from frames to labels; add the folded block of each level alone, and the whole decoder."""
    size = (frames.shape[1], frames.shape[2])
    with inference("auto"):  # as users run it: which operators are called may depend on the backends here
        engine = hyperseg.build_engine(model, size=size, device=frames.device, batch=frames.shape[0], check=False)
        with Recorder() as recorder:
            engine(frames)
        calls = recorder.calls
        calls = [*calls, *whole_levels(calls), *chained_blocks(calls)]
        levels = [call for call in calls if call.operator == "decoder_level"]
        blocks = [block_call(call) for call in levels if LevelArguments(*call.arguments).hidden]
        decoder = engine.folded.decoder
        signal = next(c.arguments[0 if c.operator == "generate_weights" else 2] for c in calls if makes_weights(c))
        skips = [call.arguments[0] for call in levels]
        arguments = (list(decoder.generators), list(decoder.biases), signal[:, : decoder.plan.used_channels], skips)

        def decode(generators: list[Tensor], biases: list[Tensor], signal: Tensor, skips: list[Tensor]) -> Tensor:
            return replace(decoder, generators=generators, biases=biases).decode(signal, skips)

        whole = Call(DECODER, arguments, decode, of="apart")
    return [*calls, *blocks, whole]


def whole_levels(calls: Sequence[Call]) -> list[Call]:
    """Return the calls of `decoder_level` for the levels that are called as `decoder_level_argmax`."""
    operator = torch.ops.hyperseg.decoder_level.default
    ends = [c for c in calls if c.operator == "decoder_level_argmax"]
    return [Call("decoder_level", c.arguments, operator, of="apart") for c in ends]


def chained_blocks(calls: Sequence[Call]) -> list[Call]:
    """Return the blocks of each ``mbconv_chain`` as calls of ``mbconv``."""
    operator = torch.ops.hyperseg.mbconv.default
    blocks = []
    for chain in calls:
        if chain.operator == "mbconv_chain":
            x, *weights_and_shapes, _ = chain.arguments
            for block in split_chain(*weights_and_shapes):
                blocks.append(Call("mbconv", (x, *block), operator, of="apart"))
                x = blocks[-1]()
    return blocks


def makes_weights(call: Call) -> bool:
    signal = LevelArguments(*call.arguments).signal if call.operator in LEVELS else None
    return call.operator == "generate_weights" or signal is not None


def block_call(level: Call) -> Call:
    """Return the inverted residual inside a level as a call of its own operator."""
    a = LevelArguments(*level.arguments)
    x = reference.follow_format(_layout.level_input(a.skip, a.previous), a.skip)
    weights = a.weights
    if a.signal is not None and a.generator is not None:
        weights = reference.generate_weights(a.signal, [a.generator], [a.offset], [a.groups], [a.parameters])
    operator = torch.ops.hyperseg.patch_inverted_residual.default
    arguments = (x, weights, a.bias, a.hidden, a.out_channels, a.halo)
    return Call("patch_inverted_residual", arguments, operator, of="apart")


def training_calls(model: HyperSeg, frames: Tensor, backward: bool) -> list[Call]:
    """Record one training step with the bootstrapped loss.

    Args:
        backward: record the backward too, then a step with frozen norms; add whole decoders of both steps.
    """
    images = normalise(frames, model.config.mean, model.config.std).contiguous()
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(model.config.num_classes + 1, frames.shape[:3], generator=generator).to(frames.device)
    labels[labels == model.config.num_classes] = IGNORE
    decoded: list[tuple[nn.Module, tuple[Any, ...], Tensor]] = []  # decoder, its arguments, its output
    with ops.use_backend("reference"), torch.set_grad_enabled(backward), Recorder() as recorder:
        for network in (copy.deepcopy(model).train(), copy.deepcopy(model).eval())[: 1 + backward]:
            hook = network.decoder.register_forward_hook(lambda *called: decoded.append(called))
            logits = network.forward_strided(images)
            hook.remove()
            loss = ops.upsample_cross_entropy(logits, labels, ignore_index=IGNORE, bootstrap=BOOTSTRAP)
            if backward:
                loss.backward(torch.full_like(loss, PIXEL_GRADIENT * labels[0].numel()))
    # With frozen norms a level calls decoder_level, as in inference: only its backward is new.
    levels = [call for call in recorder.calls if call.operator == "decoder_level"]
    calls = [call for call in recorder.calls if call not in levels]
    # No network calls patch_inverted_residual itself, so no step has its backward.
    apart = [backward_of(block_call(level)) for level in levels if LevelArguments(*level.arguments).hidden]
    decoders = [decoder_backward(*called) for called in decoded] if backward else []
    return [*(replace(call, of="training") for call in calls), *apart, *decoders]


def decoder_backward(decoder: nn.Module, given: tuple[Any, ...], logits: Tensor) -> Call:
    """Return a call that gives a decoder's logits and, for a random gradient, those of its features and parameters."""
    signal, features, image = tree_map_only(Tensor, Tensor.detach, given)

    def step(
        training: bool,
        parameters: list[Tensor],
        signal: Tensor,
        features: list[Tensor],
        image: Tensor | None,
        gradient: Tensor,
    ) -> list[Tensor]:
        with torch.enable_grad():
            leaves = [t.requires_grad_() for t in (signal.detach(), *(f.detach() for f in features))]
            output = decoder(leaves[0], leaves[1:], image)
            return [output.detach(), *torch.autograd.grad(output, [*leaves, *parameters], gradient)]

    gradient = PIXEL_GRADIENT / len(logits) * random_like(logits)
    arguments = (decoder.training, list(decoder.parameters()), signal, list(features), image, gradient)
    return Call(DECODER_BACKWARD, arguments, step, of="apart")


def random_like(output: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(output.shape, generator=generator).to(output)


def backward_of(call: Call) -> Call:
    """Return the call of the backward operator at a call's shapes, for a random gradient."""
    operator = f"{call.operator}_backward"
    with inference("reference"):
        output = call()
    return Call(
        operator, (random_like(output), *call.arguments), getattr(torch.ops.hyperseg, operator).default, of=call.of
    )


def distinct(calls: Sequence[Call]) -> list[Call]:
    """Return one call of each shape with its number of times, grouped by operator in the order of first calls."""
    found: dict[tuple[Any, ...], Call] = {}
    for call in calls:
        known = found.setdefault(call.key, replace(call, times=0))
        known.times += call.of == known.of
    order = list(dict.fromkeys(call.operator for call in found.values()))
    return sorted(found.values(), key=lambda call: order.index(call.operator))
