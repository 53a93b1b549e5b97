"""Record the operator calls of the networks at their published sizes, on the meta device."""

import copy
import functools

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.utils._pytree import tree_map_only

import hyperseg
from bench.core.calls import BOOTSTRAP, IGNORE, PRECISE, Call, Recorder, backward_of, block_call, distinct, whole_levels
from hyperseg import ops
from hyperseg.runtime.folding import FoldedNetwork

CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)


class LikeCuda(Recorder):
    """Give outputs of convolutions cuDNN's memory format: the meta device loses channels-last memory."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func in CONVOLUTIONS and torch.channels_last in map(suggest_memory_format, args[:2]):
            return out.contiguous(memory_format=torch.channels_last)
        return out


@functools.cache
def recorded(network: str) -> tuple[Call, ...]:
    """Return the calls of inference on one frame, of training steps on two, and of the block inside each level."""
    with torch.device("meta"):
        model = hyperseg.create_model(network)
    calls = [*_inference(model), *_training(model)]
    calls += whole_levels(calls)
    levels = [call for call in calls if call.operator == "decoder_level"]
    blocks = [block_call(call) for call in levels if ops.LevelArguments(*call.arguments).hidden]
    return tuple(distinct([*calls, *blocks, *map(backward_of, blocks)]))


def _inference(model) -> list[Call]:
    """Record the network as the engine runs it: folded, fused, channels-last."""
    frames = torch.empty(1, *model.config.resolution, 3, device="meta", dtype=torch.uint8)
    return folded_calls(FoldedNetwork(model, fuse=True, generate_ahead=True), frames)


def folded_calls(folded: FoldedNetwork, frames: Tensor) -> list[Call]:
    folded = folded.to(memory_format=torch.channels_last)
    with torch.inference_mode(), LikeCuda() as recorder:
        folded.from_frames(frames)
    return recorder.calls


def _training(model) -> list[Call]:
    """Record training with batch statistics, then with frozen norms, class weights and uint8 labels."""
    images = torch.empty(2, 3, *model.config.resolution, device="meta")
    labels = torch.empty(2, *model.config.resolution, device="meta", dtype=torch.int64)
    weight = torch.empty(model.config.num_classes, device="meta")
    loss = functools.partial(ops.upsample_cross_entropy, ignore_index=IGNORE, bootstrap=BOOTSTRAP)
    with torch.enable_grad(), LikeCuda() as recorder:
        logits = copy.deepcopy(model).train().forward_strided(images)
        loss(logits, labels).backward()
        logits = copy.deepcopy(model).eval().forward_strided(images)
        loss(logits, labels.byte(), weight=weight).backward()
    return recorder.calls


def arguments(call: Call, dtype: torch.dtype) -> tuple:
    """Return a recorded call's arguments in uninitialised CPU memory, floating-point ones in this dtype."""
    kept = PRECISE.get(call.operator, ())

    def allocate(t: Tensor, precise: bool) -> Tensor:
        extent = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        kind = dtype if t.is_floating_point() and not precise else t.dtype
        wide = torch.empty(t.storage_offset() + extent, dtype=kind)
        return wide.as_strided(t.shape, t.stride(), t.storage_offset())

    return tuple(
        tree_map_only(Tensor, functools.partial(allocate, precise=i in kept), a) for i, a in enumerate(call.arguments)
    )
