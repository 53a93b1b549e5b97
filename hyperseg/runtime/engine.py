"""The engine: a network made ready to run at one size, from camera frames to labels."""

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hyperseg import ops
from hyperseg.models.hyperseg import HyperSeg
from hyperseg.models.sizes import padded_size
from hyperseg.models.synthetic import probe_frames
from hyperseg.ops._layout import resize_logits
from hyperseg.runtime.device import MissingDeviceError, keep_freed_memory, pick_device
from hyperseg.runtime.folding import FoldedNetwork, Size
from hyperseg.runtime.graphs import capture
from hyperseg.runtime.parity import TOLERANCES, Parity, compare_logits, reference_logits

logger = logging.getLogger("hyperseg.runtime")

MODES = ("eager", "compile", "cudagraph")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class EngineError(RuntimeError):
    """The engine cannot be built so, or does not give the module's answer; the message says which."""


def build_engine(
    model: HyperSeg,
    size: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    batch: int = 1,
    mode: str = "eager",
    check: bool = True,
) -> "Engine":
    """Make a network ready to run on frames of one size.

    Norms are folded (in float64), unread context is dropped, memory is channels-last. When built, the engine's answer
    is compared to the module's in float32 with the reference operators. On the CPU the process keeps the memory that it
    frees from then on (``hyperseg.runtime.device``; HYPERSEG_KEEP_MEMORY=0 prevents it).

    Args:
        model: any HyperSeg network; it is copied, not changed.
        size: (H, W) of the frames, any.
        dtype: float32, float16 or bfloat16.
        device: default: the first CUDA device if there is one, else the CPU.
        batch: frames in one call.
        mode: ``"eager"``; ``"compile"``: through torch.compile (minutes to build); ``"cudagraph"``: captured once and
            replayed, CUDA only.
        check: False leaves the comparison out, where the same network was compared before (at another size, say).

    Raises:
        EngineError: these settings do not go together, or the engine's answer is not the module's.
        ValueError: an argument is out of range.
    """
    _check_settings(size, dtype, batch, mode)
    try:
        device = pick_device(device)
    except MissingDeviceError as error:
        raise EngineError(str(error)) from None
    if mode == "cudagraph" and device.type != "cuda":
        raise EngineError(f"mode 'cudagraph' needs a CUDA device, not {device}; use 'eager' or 'compile'.")
    engine = Engine(model, (size[0], size[1]), dtype, device, batch, mode)
    if check:
        engine.parity = engine.check(model)
        logger.info("engine for %s at %dx%d: %s", model.config.name, *engine.size, engine.parity)
    return engine


def _check_settings(size: Any, dtype: Any, batch: int, mode: str) -> None:
    """A ValueError with a sentence, also about what no annotation allows."""
    if not isinstance(size, Sequence) or len(size) != 2:
        square = f"; for a square, size=({size}, {size})" if isinstance(size, int) else ""
        raise ValueError(f"size must be (height, width) of the frames, got {size}{square}.")
    height, width = size
    if height < 1 or width < 1 or batch < 1:
        raise ValueError(f"size and batch must be positive, got {height}x{width} and {batch}.")
    if dtype not in DTYPES:
        wrote = f"; give dtype=torch.{dtype}" if dtype in [str(d)[6:] for d in DTYPES] else ""
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype!r}{wrote}.")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")


class Engine:
    """Built by :func:`build_engine`. Four nested scopes, each of which runs in the engine's mode.

    Attributes:
        config, size, dtype, device, batch, mode: what it was built for.
        parity: how its logits compared to the module's.
    """

    def __init__(self, model, size, dtype, device, batch, mode):
        self.config, self.size, self.dtype, self.device = model.config, size, dtype, device
        self.batch, self.mode = batch, mode
        self.parity: Parity | None = None
        if device.type == "cpu":
            keep_freed_memory()
        fuse = all(ops.has_kernel(operator, device.type) for operator in ("mbconv", "stem"))
        self.folded = FoldedNetwork(model, fuse).to(device, dtype).to(memory_format=torch.channels_last)
        # The network's last resize goes to the padded image; see forward_strided.
        self.padded = padded_size(size, model.takes_one_more)
        scale = torch.tensor(model.config.std, dtype=torch.float64) * 255
        shift = torch.tensor(model.config.mean, dtype=torch.float64) * 255
        self._scale = (1 / scale).to(device, torch.float32)
        self._shift = (-shift / scale).to(device, torch.float32)
        # For a row of pixels, so that they are read and written in the order in which they lie.
        self._scales, self._shifts = self._scale.repeat(size[1]), self._shift.repeat(size[1])
        self._run = {
            "network": self._prepare(self._network),
            "labels": self._prepare(self._labels),
            "logits": self._prepare(self._logits),
            "frames": self._prepare(self._frames),
        }

    # The stages, as plain functions

    def _network(self, images: Tensor) -> Tensor:
        return self.folded(images)

    def _labels(self, images: Tensor) -> Tensor:
        return self._cropped(self.folded(images, self.padded))

    def _logits(self, frames: Tensor) -> Tensor:
        return self._from_frames(frames)

    def _frames(self, frames: Tensor) -> Tensor:
        return self._cropped(self._from_frames(frames, self.padded))

    def _from_frames(self, frames: Tensor, labels_at: Size | None = None) -> Tensor:
        folded = self.folded
        if folded.stem is None:
            return folded(self.normalise(frames), labels_at)
        images = self.normalise(frames) if folded.reads_images else None
        return folded.behind_stem(folded.stem(frames, self._scale, self._shift), images, labels_at)

    def _cropped(self, labels: Tensor) -> Tensor:
        height, width = self.size
        return labels[:, :height, :width].contiguous()

    def normalise(self, frames: Tensor) -> Tensor:
        """uint8 ``[N, H, W, 3]`` -> normalised ``[N, 3, H, W]`` in channels-last memory and the engine's dtype."""
        rows = torch.addcmul(self._shifts, frames.flatten(2).to(torch.float32), self._scales)
        return rows.to(self.dtype).view(frames.shape).permute(0, 3, 1, 2)

    # The four scopes

    def network(self, images: Tensor) -> Tensor:
        """Normalised ``[N, 3, H, W]`` on the device -> logits at the network's output stride.

        In mode ``"cudagraph"`` the answer lies in a buffer that the next call overwrites.
        """
        return self._call("network", self._images(images))

    def labels(self, images: Tensor) -> Tensor:
        """Normalised ``[N, 3, H, W]`` on the device -> uint8 labels ``[N, H, W]``."""
        return self._owned(self._call("labels", self._images(images)))

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 RGB frames ``[N, H, W, 3]`` -> uint8 labels ``[N, H, W]``, on the side (host, device) of the frames."""
        self._check_frames(frames)
        if frames.device != self.device:
            return self.from_host(frames)
        return self._owned(self._call("frames", frames))

    def from_host(self, frames: Tensor) -> Tensor:
        """The same from and to host memory; pinned frames are copied faster. Returns when the labels are there."""
        self._check_frames(frames)
        labels = self._call("frames", frames.to(self.device, non_blocking=True))
        return labels.cpu() if self.device.type != "cpu" else labels

    def logits(self, frames: Tensor) -> Tensor:
        """uint8 ``[N, H, W, 3]`` -> float32 logits ``[N, num_classes, H, W]`` on the engine's device."""
        self._check_frames(frames)
        height, width = self.size
        strided = self._call("logits", frames.to(self.device)).float()
        return resize_logits(strided, *self.padded)[:, :, :height, :width].clone()

    def check(self, model: HyperSeg) -> Parity:
        """Compare the engine's logits on a probe frame to the module's in float32 with the reference operators.

        Raises:
            EngineError: they differ by more than rounding in the engine's dtype explains.
        """
        frames = probe_frames(self.batch, self.size).to(self.device)
        images = self.normalise(frames).float()
        logits, expected = self.logits(frames), reference_logits(model, images, self.device)
        parity = compare_logits(logits, expected)
        if expected.amax() - expected.amin() < 1e-30:
            warnings.warn(
                "The network gives the same logits everywhere, so the engine's answer proves nothing. Load trained "
                "weights, or fill it with random ones of a sane scale by hyperseg.synthesize_weights.",
                stacklevel=3,
            )
        elif not parity.relative_rms <= self._tolerance(model, images, expected, parity):
            hint = "Its weights may not fit float16; try bfloat16 or float32."
            raise EngineError(
                f"The engine ({self.mode}, {str(self.dtype)[6:]}, {self.device}) does not give the module's answer: "
                f"{parity}, where a relative RMS of {TOLERANCES[self.dtype].relative_rms} is allowed. "
                + (hint if self.dtype == torch.float16 else "")
            )
        elif not self._labels_fit(frames, logits):
            raise EngineError(
                f"The engine ({self.mode}, {str(self.dtype)[6:]}, {self.device}) gives labels that are not those of "
                "its own logits. Please report this; HYPERSEG_BACKEND=reference avoids the kernels."
            )
        return parity

    def _labels_fit(self, frames: Tensor, logits: Tensor) -> bool:
        """Whether each label's score is the best but for rounding: labels may have a last kernel of their own."""
        with torch.inference_mode():
            labels = self._frames(frames)
        behind = logits.amax(1) - logits.gather(1, labels[:, None].long())[:, 0]
        return bool(behind.max() <= TOLERANCES[self.dtype].relative_rms * logits.abs().max())

    def _tolerance(self, model: HyperSeg, images: Tensor, expected: Tensor, parity: Parity) -> float:
        """More than usual only for a network so ill-conditioned that float32 itself does not determine its answer."""
        usual = TOLERANCES[self.dtype].relative_rms
        if parity.relative_rms <= usual or self.dtype != torch.float32:
            return usual
        exact = reference_logits(model, images.double(), self.device)
        return max(usual, 4 * compare_logits(expected, exact).relative_rms)

    # How a stage runs

    def _prepare(self, stage: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        if self.mode == "compile":
            return torch.compile(stage, fullgraph=True, dynamic=False)
        if self.mode == "cudagraph":
            return _Captured(stage)
        return stage

    def _call(self, stage: str, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return self._run[stage](x)

    def _owned(self, labels: Tensor) -> Tensor:
        return labels.clone() if self.mode == "cudagraph" else labels

    def _images(self, images: Tensor) -> Tensor:
        expected = (self.batch, 3, *self.size)
        if tuple(images.shape) != expected or images.dtype != self.dtype or images.device.type != self.device.type:
            raise ValueError(
                f"This engine takes images {list(expected)} {str(self.dtype)[6:]} on {self.device}, got "
                f"{list(images.shape)} {str(images.dtype)[6:]} on {images.device}; build one for these."
            )
        return images

    def _check_frames(self, frames: Tensor) -> None:
        expected = (self.batch, *self.size, 3)
        if not isinstance(frames, Tensor):
            raise TypeError(
                f"This engine takes a torch.Tensor of uint8 frames {list(expected)} (RGB), got "
                f"{type(frames).__module__}.{type(frames).__name__}; convert an array with torch.from_numpy(frames)."
            )
        if frames.dtype != torch.uint8 or tuple(frames.shape) != expected:
            raise ValueError(
                f"This engine takes uint8 frames {list(expected)} (RGB), got {str(frames.dtype)[6:]} "
                f"{list(frames.shape)}; {_advice(frames, expected)}."
            )


def _advice(frames: Tensor, expected: tuple[int, ...]) -> str:
    """What to do with frames of another kind: the first thing that is wrong with them."""
    shape, (batch, height, width, _) = tuple(frames.shape), expected
    if frames.dtype != torch.uint8:
        return "give the pixels as they are, 0 to 255; for images that are normalised already there is engine.labels"
    if shape == (batch, 3, height, width):
        return "put the channels last: frames.permute(0, 2, 3, 1)"
    if (1, *shape) == expected:
        return "a single frame needs a batch dimension too: frames[None]"
    if shape == (*expected[:3], 4):
        return "leave out the fourth channel: frames[..., :3]"
    if len(shape) == 4 and shape[3] == 3:
        return "build one for that size and batch"
    return "bring them into that form, or build one for their size"


class _Captured:
    """A stage in a CUDA graph: captured on the first call, then replayed on buffers of its own."""

    def __init__(self, stage: Callable[[Tensor], Tensor]):
        self.stage = stage
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, x: Tensor) -> Tensor:
        graph = self.graph or self._capture(x)
        self.input.copy_(x)
        graph.replay()
        return self.output

    def _capture(self, x: Tensor) -> torch.cuda.CUDAGraph:
        self.input = x.clone()
        self.graph, self.output = capture(lambda: self.stage(self.input), x.device)
        return self.graph
