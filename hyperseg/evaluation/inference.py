"""Labels of images by a network, at the images' own size: resizing, several scales, flips, windows, engine or module.

Scores are always resized to the size of the image (bilinear, align_corners False) before the class with the largest one
is chosen.
"""

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hyperseg.data.dataset import Item
from hyperseg.evaluation.tta import forward_pyramid
from hyperseg.models import HyperSeg, check_finite, unwrap
from hyperseg.models.sizes import normalise
from hyperseg.ops import upsample_argmax, use_backend
from hyperseg.ops._layout import resize_logits
from hyperseg.runtime import Engine, EngineError, build_engine
from hyperseg.runtime.arguments import name_of
from hyperseg.runtime.device import pick_device
from hyperseg.runtime.precision import exact_float32

Size = tuple[int, int]
COMBINE = ("softmax", "logits", "official")
RESIZE = ("bilinear", "pad")


@dataclass(frozen=True)
class Inference:
    """How a network's scores of an image are made.

    size: (H, W) that images are brought to for the network; None: each image's own size.
    resize: how: "bilinear" (antialiased, as in the published tests on Cityscapes and CamVid), or "pad": black rows and
        columns are added at the bottom and on the right, and an image that is larger stays as it is (as in the
        published test on PASCAL VOC).
    scales: factors of that size; the scores of all are combined.
    flip: also run the mirrored images.
    combine: "softmax" or "logits": the mean of the probabilities or of the scores over scales and flips, at the size of
        the image; "official": the official code's for a list of images, see :func:`forward_pyramid`.
    window: (H, W) of windows that the network runs on instead of whole images; scores are averaged where they overlap.
    stride: distance of windows; None: two thirds of their size.
    mean, std: of RGB in [0, 1], to normalise images with; None: the network's.
    engine: run the network's engine; False: the module itself.
    dtype, device, backend: of the network; see :func:`hyperseg.build_engine` and :func:`hyperseg.ops.use_backend`.
    batch: images per call, if they have one size.

    Raises ValueError if a setting is out of range, or two do not go together.
    """

    size: Size | None = None
    resize: str = "bilinear"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    combine: str = "softmax"
    window: Size | None = None
    stride: Size | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    engine: bool = True
    dtype: torch.dtype = torch.float32
    device: str | torch.device = "cpu"
    backend: str = "auto"
    batch: int = 1

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= 16 for scale in self.scales):
            raise ValueError(f"scales are {list(self.scales)}; give factors of the size, such as 0.75 1 1.25")
        if self.combine not in COMBINE or self.resize not in RESIZE:
            raise ValueError(f"combine is one of {', '.join(COMBINE)} and resize one of {', '.join(RESIZE)}")
        if self.resize == "pad" and (self.size is None or self.scales != (1.0,)):
            raise ValueError("resize 'pad' needs a size to pad to, and goes with the scale 1 only")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; give the images per call, at least 1")
        if self.stride is not None:
            if self.window is None:
                raise ValueError("stride is the distance of windows; give the size of a window too")
            if not all(0 < step <= side for step, side in zip(self.stride, self.window, strict=True)):
                raise ValueError("stride is at most the size of the window, or pixels would be left out")

    @property
    def plain(self) -> bool:
        """Whether one call of the network on the whole image gives its scores."""
        return self.scales == (1.0,) and not self.flip and self.window is None


@dataclass(frozen=True)
class Prepared:
    """An image for the network: its own size, a frame (uint8 [h, w, 3]) per scale, and their size without padding."""

    size: Size
    frames: tuple[Tensor, ...]
    content: Size

    @property
    def key(self) -> tuple[Any, ...]:
        """Images with equal keys can be in one batch."""
        return self.size, self.content, tuple(frame.shape for frame in self.frames)


class NetworkLabeller:
    """Labels images by a network. :meth:`prepare` may be called by several threads, the rest by one.

    Args:
        model: as in :func:`hyperseg.build_engine`; it is copied, not changed.
        inference: the settings.
        keep: number of engines kept; matters if images have different sizes. They share the network's weights.

    Raises:
        TypeError, ValueError: as in :func:`hyperseg.build_engine`; a weight overflows in the dtype.
    """

    reads_images = True

    def __init__(self, model: nn.Module, inference: Inference, keep: int = 4) -> None:
        self.inference, self.batch = inference, inference.batch
        self.device = pick_device(inference.device)
        network = copy.deepcopy(unwrap(model)).eval().requires_grad_(False)
        mean, std = inference.mean or network.config.mean, inference.std or network.config.std
        network.config = network.config.replace(mean=mean, std=std)
        if not inference.engine:
            check_finite(network)
            network = network.to(self.device, inference.dtype)
            _check_fits(network, inference.dtype)
        self.network = network
        self._keep = max(keep, len(inference.scales))
        self._engines: OrderedDict[Size, Engine] = OrderedDict()
        self._first: Engine | None = None

    def prepare(self, item: Item, image: np.ndarray | None, size: Size) -> Prepared:
        """Resize an image (uint8 [H, W, 3]) for the network; `size` is its own (H, W)."""
        assert image is not None, item
        base = self.inference.size or size
        if self.inference.resize == "pad":
            target = (max(base[0], size[0]), max(base[1], size[1]))
            frame = np.zeros((*target, 3), np.uint8)
            frame[: size[0], : size[1]] = image
            return Prepared(size, (torch.from_numpy(frame),), size)
        frames = tuple(torch.from_numpy(_resized(image, _scaled(base, scale))) for scale in self.inference.scales)
        return Prepared(size, frames, _scaled(base, self.inference.scales[0]))

    def labels(self, images: Sequence[Prepared]) -> list[Tensor]:
        """Return the labels of prepared images, uint8 [H, W] of each one's own size, on the device.

        Raises EngineError if an engine cannot be built, RuntimeError or MemoryError if memory runs out.
        """
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(image.key, []).append(index)
        found: dict[int, Tensor] = {}
        with torch.inference_mode(), self._settings():
            for members in groups.values():
                for start in range(0, len(members), self.batch):
                    part = members[start : start + self.batch]
                    found.update(zip(part, self._label([images[index] for index in part]), strict=True))
        return [found[index] for index in range(len(images))]

    def _label(self, images: Sequence[Prepared]) -> Tensor:
        """Label images of one key, at most a batch: uint8 [n, H, W]."""
        size, content = images[0].size, images[0].content
        pyramid = [torch.stack(frames).to(self.device) for frames in zip(*(i.frames for i in images), strict=True)]
        plain, (height, width) = self.inference.plain, content
        if plain and self.inference.engine and size == tuple(pyramid[0].shape[1:3]):
            return self._batched(pyramid[0], lambda frames: self.engine(size)(frames))
        if plain or self.inference.combine == "official":
            logits = self._official(pyramid)[:, :, :height, :width]
            return upsample_argmax(logits, size)
        total: Tensor | None = None
        for logits in self._all_logits(pyramid):
            logits = logits[:, :, :height, :width] if self.inference.resize == "pad" else logits
            scores = resize_logits(logits, *size)
            scores = scores.softmax(1) if self.inference.combine == "softmax" else scores
            total = scores if total is None else total.add_(scores)
        assert total is not None
        return total.argmax(1).to(torch.uint8)

    def _official(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Return scores at the size of the first frames."""

        def run(images: Tensor) -> Tensor:
            return self._logits(images.permute(0, 2, 3, 1))

        return forward_pyramid(run, [frames.permute(0, 3, 1, 2) for frames in pyramid], hflip=self.inference.flip)

    def _all_logits(self, pyramid: Sequence[Tensor]) -> Iterator[Tensor]:
        for frames in pyramid:
            yield self._logits(frames)
            if self.inference.flip:
                yield self._logits(frames.flip(2)).flip(3)

    def _logits(self, frames: Tensor) -> Tensor:
        """Return the scores of frames (uint8 [n, h, w, 3]), by windows if there are any: float32 [n, K, h, w]."""
        height, width = frames.shape[1:3]
        if self.inference.window is None:
            return self._batched(frames, self._run)
        window = (min(self.inference.window[0], height), min(self.inference.window[1], width))
        stride = self.inference.stride or (max(1, window[0] * 2 // 3), max(1, window[1] * 2 // 3))
        total = count = None
        for top in _starts(height, window[0], stride[0]):
            for left in _starts(width, window[1], stride[1]):
                rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
                logits = self._batched(frames[:, rows, columns].contiguous(), self._run)
                if total is None or count is None:
                    total = logits.new_zeros((len(frames), logits.shape[1], height, width))
                    count = logits.new_zeros((height, width))
                total[:, :, rows, columns] += logits
                count[rows, columns] += 1
        assert total is not None
        assert count is not None
        return total / count

    def _run(self, frames: Tensor) -> Tensor:
        if self.inference.engine:
            return self.engine((frames.shape[1], frames.shape[2])).logits(frames)
        config = self.network.config
        images = normalise(frames, config.mean, config.std, self.inference.dtype)
        logits = self.network(images).float()
        if self.inference.dtype != torch.float32 and not bool(logits.isfinite().all()):
            raise EngineError(f"the network's scores overflow in {name_of(self.inference.dtype)}; use float32")
        return logits

    def _batched(self, frames: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """Run a call that takes exactly a batch on fewer frames, by repeating the last one."""
        missing = self.batch - len(frames)
        if missing == 0 or not self.inference.engine:
            return run(frames)
        return run(torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)]))[: len(frames)]

    def engine(self, size: Size) -> Engine:
        """Return the engine for frames of `size` (H, W), built on first use. Raises EngineError."""
        if size not in self._engines:
            while len(self._engines) >= self._keep:
                self._engines.popitem(last=False)
            self._engines[size] = self._build(size)
        self._engines.move_to_end(size)
        return self._engines[size]

    def _build(self, size: Size) -> Engine:
        if self._first is not None:  # folding does not depend on the size, so the first engine alone is compared
            return self._first.at(size, check=False)
        self._first = build_engine(
            self.network,
            size=size,
            dtype=self.inference.dtype,
            device=self.device,
            batch=self.batch,
            check=True,
        )
        return self._first

    def _settings(self) -> contextlib.ExitStack:
        """Return the context that the network runs in."""
        stack = contextlib.ExitStack()
        if self.inference.backend != "auto":
            stack.enter_context(use_backend(self.inference.backend))
        if not self.inference.engine and self.inference.dtype == torch.float32:
            stack.enter_context(exact_float32(self.device))
        return stack


def _check_fits(network: HyperSeg, dtype: torch.dtype) -> None:
    """Require that finite weights are still finite in this dtype. Raises ValueError."""
    for name, value in network.state_dict().items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"the weights {name} overflow in {name_of(dtype)}; use float32 or bfloat16")


def _scaled(size: Size, scale: float) -> Size:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resized(image: np.ndarray, size: Size) -> np.ndarray:
    """Return a copy of an image at `size`: PyTorch needs writable memory."""
    if image.shape[:2] == size:
        return np.array(image)
    return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows start; the last one ends where the image does."""
    return [*range(0, length - window, stride), length - window]
