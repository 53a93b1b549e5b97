"""Frames to labels: the size that the network runs at, an engine per size, and the loop from a source to sinks."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from hyperseg._files import printable
from hyperseg.data.labels import LabelSet, default_label_set, label_set
from hyperseg.images.arrays import check_image
from hyperseg.models import HyperSegConfig, unwrap
from hyperseg.models.sizes import parse_sides
from hyperseg.ops import upsample_argmax
from hyperseg.predict.errors import FrameError, FrameTooLargeError
from hyperseg.predict.result import Prediction
from hyperseg.predict.sinks import Sink
from hyperseg.predict.sources import Frame, Source
from hyperseg.runtime import Engine, EngineError, build_engine
from hyperseg.runtime.arguments import DTYPES, check_settings, name_of
from hyperseg.runtime.device import is_out_of_memory, pick_device

Size = tuple[int, int]


class Predictor:
    """Labels images of any size. It builds an engine for each size that it meets, and keeps the last few.

    It is not thread-safe: threads that share a predictor need a lock.

    Args:
        model: from `hyperseg.create_model` or `hyperseg.load`, also inside DataParallel, DistributedDataParallel,
            AveragedModel or torch.compile; it is put in eval mode.
        size: (H, W) that the network runs at; None: each image's own size. An image of another size is resized to it
            (antialiased bilinear), and the logits are resized back (bilinear) before the argmax.
        device: "cpu", "cuda", "cuda:1", ..., or "auto": the GPU if there is one.
        dtype: of the network: float32, float16 or bfloat16.
        keep: number of engines kept in memory; matters only if images have different sizes and `size` is None.

    Attributes:
        label_set: names and colours of the network's classes.

    Raises:
        TypeError: there is not exactly one network in `model`.
        ValueError: an argument is out of range, the device is not here, or the network has more classes than uint8
            labels can hold.
    """

    def __init__(
        self,
        model: nn.Module,
        size: Size | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = torch.float32,
        keep: int = 4,
    ) -> None:
        self.model = unwrap(model).eval()
        self.label_set = label_set_of(self.model.config)
        if isinstance(size, str):
            raise ValueError(f"size is {size!r}; give (height, width), or None for each image's own size")
        if keep < 1:
            raise ValueError(f"keep is {keep}; give the number of engines kept, at least 1")
        self.size = size
        self.device = pick_device(device)
        named: Any = {name_of(each): each for each in DTYPES}.get(dtype, dtype) if isinstance(dtype, str) else dtype
        check_settings((1, 1) if size is None else size, named, batch=1, mode="eager")
        self.dtype: torch.dtype = named
        self._keep = keep
        self._engines: OrderedDict[Size, Engine] = OrderedDict()
        self._compared = False

    def run(
        self,
        source: Source,
        sinks: Mapping[str, Sink] | None = None,
        on_error: Callable[[FrameError], None] | None = None,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> Iterator[tuple[Prediction, dict[str, Path]]]:
        """Label the frames of a source and write the predictions to sinks, one frame each time a result is read.

        Args:
            source: frames, for example an `ImageSource` or a list of `Frame`.
            sinks: by names of your choice. They are not closed at the end.
            on_error: called if one frame cannot be read, does not fit in memory or cannot be written, and the next
                frame follows; None: such errors are raised.
            progress: called after each frame, failed ones included, with the number of frames done and the length of
                the source (None if it has none).

        Yields:
            Each prediction and the files written for it, by the name of the sink.

        Raises:
            FrameError: a SourceError, FrameTooLargeError or OutputError, see `on_error`.
            SinkError: no output can be written any more.
            EngineError: the engine could not be built, or its output does not match the module's.
        """
        total = len(source) if isinstance(source, Sized) else None
        frames, done = iter(source), 0
        while True:
            result = None
            try:
                if (frame := next(frames, None)) is None:
                    return
                result = self._label_and_write(frame, sinks or {})
            except FrameError as error:
                if on_error is None:
                    raise
                on_error(error)
            done += 1
            if progress is not None:
                progress(done, total)
            if result is not None:
                yield result

    def predict(self, frame: Frame) -> Prediction:
        """Label one frame. Raises FrameTooLargeError if it does not fit in memory, and the errors of `__call__`."""
        prediction, _ = self._label_and_write(frame, {})
        return prediction

    def _label_and_write(self, frame: Frame, sinks: Mapping[str, Sink]) -> tuple[Prediction, dict[str, Path]]:
        try:
            prediction = Prediction(frame, self(frame.image), self.label_set)
            written = {name: sink.write(prediction) for name, sink in sinks.items()}
            return prediction, {name: path for name, path in written.items() if path is not None}
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, EngineError) or not is_out_of_memory(error):
                raise
        # Raised out here because an exception raised above would keep the first one, and the tensors in its traceback.
        height, width = frame.image.shape[:2]
        raise FrameTooLargeError(f"{printable(frame.path or frame.name)} ({height}x{width}) does not fit in memory")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the labels (uint8 [H, W]) of an image (uint8 [H, W, 3] RGB).

        Raises TypeError or ValueError for anything else, EngineError if the engine for its size cannot be built.
        """
        check_image(image)
        full = (image.shape[0], image.shape[1])
        size = full if self.size is None else (self.size[0], self.size[1])
        engine = self.engine(size)
        if size == full:
            pixels = np.array(image)  # a copy: PyTorch needs writable memory without negative strides
        else:
            pixels = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        frames = torch.from_numpy(pixels)[None]
        with torch.inference_mode():
            labels = engine(frames) if size == full else upsample_argmax(engine.logits(frames), full)
        return labels[0].cpu().numpy()

    def engine(self, size: Size) -> Engine:
        """Return the engine for frames of `size` (H, W), built on first use. Raises EngineError."""
        if size not in self._engines:
            while len(self._engines) >= self._keep:
                self._engines.popitem(last=False)
            # Folding does not depend on the size, so the first engine alone is compared with the module.
            check = not self._compared
            self._engines[size] = build_engine(self.model, size=size, dtype=self.dtype, device=self.device, check=check)
            self._compared = True
        self._engines.move_to_end(size)
        return self._engines[size]


def parse_size(text: str, resolution: Size) -> Size | None:
    """Parse the size that the network runs at: "native" (None: each image's own), "model" (`resolution`) or "HxW".

    Raises ValueError for anything else.
    """
    word = text.strip().lower()
    if word == "native":
        return None
    if word == "model":
        return resolution
    sides = parse_sides(text)
    if sides is None or max(sides) > 16384:
        raise ValueError(
            f"size {text!r} is not understood; "
            "give native, model, or HEIGHTxWIDTH such as 512x1024 (each side 1 to 16384)"
        )
    return sides


def label_set_of(config: HyperSegConfig) -> LabelSet:
    """Return the label set of a network: that of its data set, or a default one if it has other classes.

    Raises ValueError if it has more than 255 classes.
    """
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
