"""From a picture to labels: the resize policy around a network or its engine, and the share of each class."""

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from hyperseg.data.labels import LabelSet, default_label_set, label_set

if TYPE_CHECKING:
    from hyperseg.models import HyperSeg, HyperSegConfig
    from hyperseg.predict.sources import Frame

Size = tuple[int, int]


@dataclass(frozen=True)
class ClassShare:
    """A class that occurs in a picture, and the fraction of the labelled pixels it holds."""

    index: int
    name: str
    pixels: int
    share: float


@dataclass(frozen=True)
class Prediction:
    """A frame with its labels, uint8 [H, W] of the same size, and the classes they name."""

    frame: "Frame"
    labels: np.ndarray
    label_set: LabelSet

    @property
    def shares(self) -> list[ClassShare]:
        return class_shares(self.labels, self.label_set)


def parse_size(text: str, resolution: Size) -> Size | None:
    """The size the network works at: None for "native" (each image's own), `resolution` for "model", or "HxW".

    Raises ValueError for anything else.
    """
    if text == "native":
        return None
    if text == "model":
        return resolution
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip().lower())
    if match is None or not all(0 < int(side) <= 16384 for side in match.groups()):
        raise ValueError(
            f"size {text!r} is not understood; "
            "give native, model, or HEIGHTxWIDTH such as 512x1024 (each side 1 to 16384)"
        )
    return int(match[1]), int(match[2])


def label_set_of(config: "HyperSegConfig") -> LabelSet:
    """The label table that fits a model: its data set's, unless the model has classes of its own."""
    try:
        table = label_set(config.dataset)
    except ValueError:
        table = None
    names = tuple(config.class_names) if config.class_names else None
    if table is None or len(table) != config.num_classes:
        return default_label_set(config.num_classes, names)
    if names is None or names == table.classes:
        return table
    return LabelSet(table.name, names, table.colors, table.ignore_index, table.background)


def segment(network: Any, image: np.ndarray, size: Size | None = None) -> np.ndarray:
    """Labels uint8 [H, W] of one image uint8 [H, W, 3] RGB.

    network: an engine built for the size it gets here, or a model in eval mode.
    size: None runs the network at the image's own size. (h, w) shows it the image resized to that (antialiased
    bilinear) and brings the logits, not the labels, back to (H, W) bilinearly before the argmax.
    Raises ValueError for another kind of image and for a model in train mode.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image is uint8 [H, W, 3] RGB; got {image.dtype} {list(image.shape)}")
    full = (image.shape[0], image.shape[1])
    resized = size is not None and tuple(size) != full
    if size is not None and resized:
        shown = np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    else:
        shown = np.array(image)  # a copy: torch wants memory it may write to, without negative strides
    frames = torch.from_numpy(shown)[None]
    with torch.inference_mode():
        if isinstance(network, torch.nn.Module):
            labels = _upsample_argmax(_model_logits(network, frames), full)
        elif resized:
            labels = _upsample_argmax(network.logits(frames), full)
        else:
            labels = network(frames)
    return labels[0].cpu().numpy()


def _upsample_argmax(logits: torch.Tensor, size: Size) -> torch.Tensor:
    from hyperseg.ops import upsample_argmax

    return upsample_argmax(logits, size)


def _model_logits(model: Any, frames: torch.Tensor) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> float [N, C, H, W], on the model's device and in its dtype."""
    if model.training:
        raise ValueError("the model is in train mode, where batch statistics would change; call model.eval() first")
    like = next(model.parameters())
    images = frames.to(like.device).permute(0, 3, 1, 2).to(like.dtype) / 255
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (model.config.mean, model.config.std))
    return model((images - mean) / std)


class Segmenter:
    """segmenter(image) -> labels, for images of any size: builds an engine for each size it meets, keeps the last few.

    model: from create_model or load, with .config; it is put in eval mode.
    size: as in `segment`. keep: how many engines stay in memory; only matters with size=None.
    """

    def __init__(
        self,
        model: "HyperSeg",
        size: Size | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = torch.float32,
        keep: int = 4,
    ) -> None:
        self.model = model.eval()
        self.label_set = label_set_of(model.config)
        self.size = size
        self.device = device
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self._keep = keep
        self._engines: OrderedDict[Size, Any] = OrderedDict()
        self._compared = False

    def engine(self, size: Size) -> Any:
        """The engine for `size` (H, W), built on first use."""
        if size not in self._engines:
            from hyperseg import build_engine

            while len(self._engines) >= self._keep:
                self._engines.popitem(last=False)
            # One comparison with the module says that the network folds well; it need not be made at every size.
            check, self._compared = not self._compared, True
            self._engines[size] = build_engine(self.model, size=size, dtype=self.dtype, device=self.device, check=check)
        self._engines.move_to_end(size)
        return self._engines[size]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Labels uint8 [H, W] of an image uint8 [H, W, 3] RGB."""
        return segment(self.engine(self.size or (image.shape[0], image.shape[1])), image, self.size)


def class_shares(labels: np.ndarray, table: LabelSet) -> list[ClassShare]:
    """The classes present in labels uint8 [H, W], largest first; their shares add up to 1. Ignored pixels do not count.

    Raises ValueError for an index that is neither a class nor the ignore index.
    """
    counts = np.bincount(labels.ravel(), minlength=256)
    counts[table.ignore_index] = 0
    if counts[len(table) :].any():
        stray = int(np.flatnonzero(counts[len(table) :])[0]) + len(table)
        raise ValueError(
            f"the labels hold the index {stray}, but {table.name} has classes 0 to {len(table) - 1} "
            f"and ignores {table.ignore_index}"
        )
    total = int(counts.sum())
    present = sorted(np.flatnonzero(counts).tolist(), key=lambda index: (-counts[index], index))
    return [ClassShare(i, table.classes[i], int(counts[i]), int(counts[i]) / total) for i in present]
