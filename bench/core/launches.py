"""The kernels of one frame, and of the decoder in one training step: recorded in the shim, which does not run them.

Kernels of PyTorch are noted between ours. On a GPU an operator of PyTorch that computes is one kernel, but for a
convolution with a bias, which is two.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import hyperseg
from hyperseg import ops
from hyperseg.models import synthesize_weights
from hyperseg.models.decoder import Decoder
from hyperseg.ops.backends.native import constants_ready
from hyperseg.runtime.folding import FoldedNetwork
from hyperseg.runtime.work import LEVELS, tensor_bytes
from tools.machine.recording import Launch, recording, take

# The rows of the table, by operator; operators of training keep their names.
PARTS = {
    "stem": "stem",
    "mbconv": "blocks",
    "mbconv_chain": "blocks",
    "generate_weights": "weights",
    "upsample_argmax": "labels",
}
PYTORCH = "PyTorch"
# Operators that launch nothing, beside views.
_SILENT = (
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "detach",
    "resize_",
    "set_",
    "alias",
    "lift_fresh",
    "_unsafe_view",
)


@dataclass(frozen=True)
class Foreign:
    """A kernel of PyTorch: its operator and the bytes of its inputs and outputs."""

    operator: str
    bytes: int


@dataclass(frozen=True)
class Kernel:
    """One kernel, and the row of the table that it belongs to."""

    part: str
    launch: Launch | Foreign


class Recorder(TorchDispatchMode):
    """Notes which operator each recorded launch belongs to, and the kernels of PyTorch."""

    def __init__(self, launches: list[Launch], training: bool, backend: str = "cuda"):
        super().__init__()
        self.launches, self.training, self.backend = launches, training, backend
        self._noted = len(launches)
        self.kernels: list[Kernel] = []
        self.part = ""  # of the operator of ours that runs
        self._levels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("hyperseg", "hyperseg_native"):
            return self._ours(func, args, kwargs or {})
        output = func(*args, **(kwargs or {}))
        self._foreign(func, [args, kwargs], output)
        return output

    def _ours(self, func: Any, args: Any, kwargs: Any) -> Any:
        outer = self.part
        self.part = outer or self._part(func._opname)
        with self:  # PyTorch's operators inside it come here too; it itself would come again without a given key
            output = func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)
        if self.backend == "cuda":
            take(self.launches)  # the shim's; Triton's are there already
        self.kernels += [Kernel(self.part, launch) for launch in self.launches[self._noted :]]
        self._noted = len(self.launches)
        self.part = outer
        return output

    def _part(self, name: str) -> str:
        if self.training:
            return name
        if name in LEVELS:
            self._levels += 1
            return f"level {self._levels - 1}"
        return PARTS.get(name, name)

    def _foreign(self, func: Any, given: Any, output: Any) -> None:
        name = func._opname
        if func.namespace != "aten" or func.is_view or name in _SILENT or name.startswith("_has_"):
            return
        inputs = [t for t in tree_leaves(given) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        if not outputs and not name.endswith("_"):
            return  # a question about dtypes or shapes
        kept = {t.untyped_storage().data_ptr() for t in inputs}
        in_place = name.endswith("_") or not outputs
        if not in_place and all(t.untyped_storage().data_ptr() in kept for t in outputs):
            return  # it returned its input, as dropout in eval mode
        count = tensor_bytes(inputs) + tensor_bytes(outputs)
        self.kernels.append(Kernel(self.part or PYTORCH, Foreign(name, count)))
        if name in ("conv2d", "convolution") and len(inputs) > 2:
            self.kernels.append(Kernel(self.part or PYTORCH, Foreign("bias of conv2d", 2 * tensor_bytes(outputs))))


def _recording(backend: str) -> AbstractContextManager[list[Any]]:
    if backend == "cuda":
        return recording()
    from tools.machine import triton_launches

    return triton_launches.recording()


def frame(
    name: str, size: tuple[int, int] | None = None, dtype: torch.dtype = torch.float16, backend: str = "cuda"
) -> list[Kernel]:
    """Record a frame as the engine runs it on a GPU: folded, fused, channels-last, batch 1."""
    model = synthesize_weights(hyperseg.create_model(name).eval(), 0)
    folded = FoldedNetwork(model, fuse=True, generate_ahead=True).to(dtype).to(memory_format=torch.channels_last)
    frames = torch.zeros(1, *(size or model.config.resolution), 3, dtype=torch.uint8)
    with ops.use_backend(backend), torch.inference_mode(), constants_ready(), _recording(backend) as launches:
        with Recorder(launches, training=False, backend=backend) as recorder:
            folded.from_frames(frames)
        return recorder.kernels


def decoder_step(
    name: str, batch: int, dtype: torch.dtype = torch.float16, backend: str = "cuda"
) -> tuple[list[Kernel], list[Kernel]]:
    """Record the decoder's forward and backward with batch statistics, on contiguous maps."""
    decoder, (signal, features, image) = _decoder(name, batch, dtype)
    leaves = [t.requires_grad_() for t in (signal, *features)]
    with ops.use_backend(backend), _recording(backend) as launches:
        with Recorder(launches, training=True, backend=backend) as forward:
            output = decoder(leaves[0], leaves[1:], image)
        gradient = torch.empty_like(output)
        with Recorder(launches, training=True, backend=backend) as backward:
            torch.autograd.grad(output, [*leaves, *decoder.parameters()], gradient, allow_unused=True)
    return forward.kernels, backward.kernels


def _decoder(name: str, batch: int, dtype: torch.dtype) -> tuple[Decoder, tuple[Tensor, list[Tensor], Tensor]]:
    """Return a decoder in training mode, and uninitialised arguments of the published size."""
    with torch.device("meta"):
        model = hyperseg.create_model(name).train()
    given: list[Any] = []
    hook = model.decoder.register_forward_pre_hook(lambda module, args: given.append(args))
    with torch.no_grad():
        model.forward_strided(torch.empty(batch, 3, *model.config.resolution, device="meta"))
    hook.remove()
    arguments = tree_map_only(Tensor, lambda t: torch.empty(t.shape, dtype=dtype), given[0])
    return model.decoder.to_empty(device="cpu"), arguments
