"""The calls that a network makes to our operators, with the very arguments of those calls.

They are recorded, not written down: an operator that a network starts to use is measured without a line here.
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
from bench import inputs
from bench.roofline import tensor_bytes
from bench.subject import settings
from hyperseg import ops
from hyperseg.ops import LevelArguments, _layout, reference

DECODER = "decoder"  # all levels in one line, beside the operators
DECODER_BACKWARD = "decoder_backward"  # what a training step does in all levels: forward, then backward
IGNORE = 255
BOOTSTRAP = 4096  # as in the published training
# Of a pixel, over the number of images, by a scaled loss as for mixed precision: with much less float16 underflows,
# with much more its sums over all pixels overflow.
PIXEL_GRADIENT = 1 / 128

WHOLE = (DECODER, DECODER_BACKWARD)

LEVELS = ("decoder_level", "decoder_level_argmax")

# By position: what stays float32 beside half-precision maps.
PRECISE = {
    "stem": (1, 2),
    "patch_inverted_residual_batch_norm": (2, 3),
    "patch_inverted_residual_batch_norm_backward": (3, 4),
    "upsample_cross_entropy_backward": (0, 3),
    DECODER_BACKWARD: (1,),
}


@dataclass(eq=False)
class Call:
    """``function(*arguments)`` is what is timed; ``times``: how often the network makes a call of these shapes.

    ``of`` what: a frame; a training step; or apart, where it is within another call or nobody makes it.
    """

    operator: str
    arguments: tuple
    function: Callable
    times: int = 1
    of: str = "frame"

    @property
    def key(self) -> tuple:
        """Calls with the same key cost the same."""
        return self.operator, *(
            (tuple(a.shape), a.stride(), a.dtype) if isinstance(a, Tensor) else a for a in tree_leaves(self.arguments)
        )

    @property
    def shapes(self) -> list[Any]:
        """The arguments for a reader: shapes of tensors, and the rest as it is."""
        described = tree_map_only(Tensor, lambda t: f"{str(t.dtype)[6:]}{list(t.shape)}", self.arguments)
        return list(described)

    def __call__(self) -> Any:
        return self.function(*self.arguments)

    def to(self, dtype: torch.dtype) -> Call:
        """With floating-point arguments of this type, but for those that the operator wants precise."""
        kept = PRECISE.get(self.operator, ())

        def convert(t: Tensor) -> Tensor:
            return t.to(dtype) if t.is_floating_point() else t

        arguments = tuple(a if i in kept else tree_map_only(Tensor, convert, a) for i, a in enumerate(self.arguments))
        return replace(self, arguments=arguments)

    def least_bytes(self, answer: Any) -> int:
        """What is read and written at the very least: each input and output once, of a signal only what is used."""
        arguments = list(self.arguments)
        if self.operator in LEVELS and (level := LevelArguments(*arguments)).signal is not None:
            used = level.signal[:, level.offset : level.offset + level.generator.shape[1] * level.groups]
            arguments = list(level._replace(signal=used))
        elif self.operator == "generate_weights":
            signal, generators, offsets, groups, _ = arguments
            ends = [o + g.shape[1] * n for g, o, n in zip(generators, offsets, groups, strict=True)]
            arguments[0] = signal[:, min(offsets) : max(ends)]
        return tensor_bytes(tree_leaves(arguments)) + tensor_bytes(tree_leaves(answer))


class Recorder(TorchDispatchMode):
    """Keeps every call of ours that is made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "hyperseg":
            self.calls.append(Call(func._opname, tree_map_only(Tensor, Tensor.detach, args), func))
        return func(*args, **(kwargs or {}))


def inference_calls(model: nn.Module, frames: Tensor) -> list[Call]:
    """Of the engine, from frames to labels; then the folded block of each level on its own, and the whole decoder."""
    size = (frames.shape[1], frames.shape[2])
    with settings("auto"):  # as its users run it: what is called may depend on what can serve it
        engine = hyperseg.build_engine(model, size=size, device=frames.device, batch=frames.shape[0], check=False)
        with Recorder() as recorder:
            engine(frames)
        calls = recorder.calls
        calls = [*calls, *whole_levels(calls)]
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
    """Of levels that go straight to labels the calls that give their scores."""
    operator = torch.ops.hyperseg.decoder_level.default
    ends = [c for c in calls if c.operator == "decoder_level_argmax"]
    return [Call("decoder_level", c.arguments, operator, of="apart") for c in ends]


def makes_weights(call: Call) -> bool:
    signal = LevelArguments(*call.arguments).signal if call.operator in LEVELS else None
    return call.operator == "generate_weights" or signal is not None


def block_call(level: Call) -> Call:
    """The inverted residual inside a level, as an operator of its own."""
    a = LevelArguments(*level.arguments)
    x = reference.follow_format(_layout.level_input(a.skip, a.previous), a.skip)
    weights = a.weights
    if weights is None:
        weights = reference.generate_weights(a.signal, [a.generator], [a.offset], [a.groups], [a.parameters])
    operator = torch.ops.hyperseg.patch_inverted_residual.default
    arguments = (x, weights, a.bias, a.hidden, a.out_channels, a.halo)
    return Call("patch_inverted_residual", arguments, operator, of="apart")


def training_calls(model: nn.Module, frames: Tensor, backward: bool) -> list[Call]:
    """Of one training step, with its backward if asked: batch statistics, bootstrapped loss; then with frozen norms.

    With the backward also that of whole decoders, in both ways.
    """
    images = inputs.normalise(frames, model.config.mean, model.config.std)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(model.config.num_classes + 1, frames.shape[:3], generator=generator).to(frames.device)
    labels[labels == model.config.num_classes] = IGNORE
    decoded: list[tuple] = []  # decoder, its arguments, its answer
    with ops.use_backend("reference"), torch.set_grad_enabled(backward), Recorder() as recorder:
        for network in (copy.deepcopy(model).train(), copy.deepcopy(model).eval())[: 1 + backward]:
            hook = network.decoder.register_forward_hook(lambda *seen: decoded.append(seen))
            logits = network.forward_strided(images)
            hook.remove()
            loss = ops.upsample_cross_entropy(logits, labels, ignore_index=IGNORE, bootstrap=BOOTSTRAP)
            if backward:
                loss.backward(torch.full_like(loss, PIXEL_GRADIENT * labels[0].numel()))
    # With frozen norms a level is decoder_level, forward as in inference: only its backward is new.
    levels = [call for call in recorder.calls if call.operator == "decoder_level"]
    calls = [call for call in recorder.calls if call not in levels]
    # No network calls this one, so no step has its backward.
    apart = [backward_of(block_call(level)) for level in levels if LevelArguments(*level.arguments).hidden]
    decoders = [decoder_backward(*seen) for seen in decoded] if backward else []
    return [*(replace(call, of="training") for call in calls), *apart, *decoders]


def decoder_backward(decoder: nn.Module, given: tuple, logits: Tensor) -> Call:
    """Logits of a decoder and, for a random gradient, the gradients of its features and parameters."""
    signal, features, image = tree_map_only(Tensor, Tensor.detach, given)

    def step(training: bool, parameters: list, signal: Tensor, features: list, image: Any, gradient: Tensor) -> list:
        with torch.enable_grad():
            leaves = [t.requires_grad_() for t in (signal.detach(), *(f.detach() for f in features))]
            answer = decoder(leaves[0], leaves[1:], image)
            return [answer.detach(), *torch.autograd.grad(answer, [*leaves, *parameters], gradient)]

    gradient = PIXEL_GRADIENT / len(logits) * random_like(logits)
    arguments = (decoder.training, list(decoder.parameters()), signal, list(features), image, gradient)
    return Call(DECODER_BACKWARD, arguments, step, of="apart")


def random_like(answer: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(answer.shape, generator=generator).to(answer)


def backward_of(call: Call) -> Call:
    """The backward operator at a call's shapes, for a random gradient."""
    operator = f"{call.operator}_backward"
    with settings("reference"):
        answer = call()
    return Call(
        operator, (random_like(answer), *call.arguments), getattr(torch.ops.hyperseg, operator).default, of=call.of
    )


def distinct(calls: Sequence[Call]) -> list[Call]:
    """One call of each shape, with the number of times it is made; operators together, in the order of their calls."""
    found: dict[tuple, Call] = {}
    for call in calls:
        known = found.setdefault(call.key, replace(call, times=0))
        known.times += call.of == known.of
    order = list(dict.fromkeys(call.operator for call in found.values()))
    return sorted(found.values(), key=lambda call: order.index(call.operator))
