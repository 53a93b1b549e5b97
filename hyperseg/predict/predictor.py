"""Frames to labels: the size that the network runs at, an engine per size, and the loop from a source to sinks."""

import contextlib
import copy
import operator
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from hyperseg._files import printable
from hyperseg.data.labels import label_set_of
from hyperseg.images.arrays import check_image
from hyperseg.models import unwrap
from hyperseg.ops import upsample_argmax
from hyperseg.predict.errors import FrameError, FrameTooLargeError
from hyperseg.predict.frames import Frame, Source, is_live
from hyperseg.predict.pipeline import Failed, Times, overlapped
from hyperseg.predict.result import Prediction
from hyperseg.predict.sinks import Sink
from hyperseg.predict.sizes import Size
from hyperseg.runtime import Engine, EngineError, build_engine
from hyperseg.runtime.arguments import DTYPES, check_settings, name_of
from hyperseg.runtime.device import is_out_of_memory, pick_device

_Result = tuple[Prediction, dict[str, Path]]
_Output = TypeVar("_Output")


class Predictor:
    """Labels images of any size. It builds an engine for each size that it meets, and keeps the last few.

    The engines share the network's weights. It is not thread-safe: threads that share a predictor need a lock.

    Args:
        model: from `hyperseg.create_model` or `hyperseg.load`, also inside DataParallel, DistributedDataParallel,
            AveragedModel or torch.compile; it is put in eval mode.
        size: (H, W) that the network runs at; None: each image's own size. An image of another size is resized to it
            (antialiased bilinear), and the logits are resized back (bilinear) before the argmax.
        device: "cpu", "cuda", "cuda:1", ..., or "auto": the GPU if there is one.
        dtype: of the network: float32, float16 or bfloat16.
        keep: number of engines kept; matters only if images have different sizes and `size` is None.

    Attributes:
        label_set: names and colours of the network's classes.
        build_seconds: how long it took to build engines so far.

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
        self._first: Engine | None = None  # of which the others have the weights
        self._compared = False
        self.build_seconds = 0.0

    def at(self, size: Size | None) -> "Predictor":
        """Return a predictor for the same network that runs at another size, see the class.

        Once this one has built an engine, the network's weights are in memory once for both. The other one's first
        engine is compared with the reference operators.

        Raises:
            ValueError: the size is out of range.
        """
        check_settings((1, 1) if size is None else size, self.dtype, batch=1, mode="eager")
        other = copy.copy(self)
        other.size, other._engines, other._compared, other.build_seconds = size, OrderedDict(), False, 0.0
        return other

    def run(
        self,
        source: Source,
        sinks: Mapping[str, Sink] | None = None,
        on_error: Callable[[FrameError], None] | None = None,
        progress: Callable[[int, int | None], None] | None = None,
        ahead: int = 2,
        times: Times | None = None,
    ) -> Iterator[tuple[Prediction, dict[str, Path]]]:
        """Label the frames of a source and write the predictions to sinks.

        Reading, labelling and writing overlap: a thread reads the next frames, and another one calls the sinks, in the
        order of the frames.

        Args:
            source: frames, for example an `ImageSource`, a `VideoSource` or a list of `Frame`.
            sinks: by names of your choice. They are not closed at the end.
            on_error: called if one frame cannot be read, does not fit in memory or cannot be written, and the next
                frame follows; None: such errors are raised.
            progress: called after each frame, failed ones included, with the number of frames done and the length of
                the source (None if it has none).
            ahead: how many frames may be read, and how many written, before their turn; memory is held for so many.
                0: one frame each time a result is read, in the calling thread. Of a live source the newest frame is
                labelled, and those that come meanwhile are dropped.
            times: is filled with the seconds that each stage takes.

        Yields:
            Each prediction and the files written for it, by the name of the sink.

        Raises:
            FrameError: a SourceError, FrameTooLargeError or OutputError, see `on_error`.
            SinkError: no output can be written any more.
            EngineError: the engine could not be built, or its output does not match the module's.
            ValueError: `ahead` is negative.
        """
        if ahead < 0:
            raise ValueError(f"ahead is {ahead}; give a number of frames, 0 for one at a time")

        def label(frame: Frame) -> Prediction | Failed:
            return self._guarded(frame, lambda: Prediction(frame, self(frame.image), self.label_set))

        def write(prediction: Prediction) -> "_Result | Failed":
            return self._guarded(prediction.frame, lambda: (prediction, _write_to(sinks or {}, prediction)))

        return self._results(
            overlapped(source, label, write, ahead, is_live(source), times), source, on_error, progress
        )

    def _results(
        self,
        outputs: "Iterator[_Result | Failed]",
        source: Source,
        on_error: Callable[[FrameError], None] | None,
        progress: Callable[[int, int | None], None] | None,
    ) -> "Iterator[_Result]":
        total = operator.length_hint(source, -1)
        with contextlib.closing(outputs):  # type: ignore[type-var]
            for done, output in enumerate(outputs, 1):
                if isinstance(output, Failed):
                    if on_error is None:
                        raise output.error
                    on_error(output.error)
                if progress is not None:
                    progress(done, total if total >= 0 else None)
                if not isinstance(output, Failed):
                    yield output

    def predict(self, frame: Frame) -> Prediction:
        """Label one frame. Raises FrameTooLargeError if it does not fit in memory, and the errors of `__call__`."""
        output = self._guarded(frame, lambda: Prediction(frame, self(frame.image), self.label_set))
        if isinstance(output, Failed):
            raise output.error
        return output

    def _guarded(self, frame: Frame, work: "Callable[[], _Output]") -> "_Output | Failed":
        """Return the result of some work on a frame, or that it failed, for a reason that lets the next one be done."""
        try:
            return work()
        except FrameError as error:
            return Failed(error)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, EngineError) or not is_out_of_memory(error):
                raise
        # Made out here because an error made above would keep the first one, and the tensors in its traceback.
        height, width = frame.image.shape[:2]
        name = printable(frame.path or frame.name)
        return Failed(FrameTooLargeError(f"{name} ({height}x{width}) does not fit in memory"))

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
            begin = time.perf_counter()
            if self._first is None:
                self._first = build_engine(self.model, size=size, dtype=self.dtype, device=self.device, check=check)
                self._engines[size] = self._first
            else:
                self._engines[size] = self._first.at(size, check=check)
            self._compared = True
            self.build_seconds += time.perf_counter() - begin
        self._engines.move_to_end(size)
        return self._engines[size]


def _write_to(sinks: Mapping[str, Sink], prediction: Prediction) -> dict[str, Path]:
    written = {name: sink.write(prediction) for name, sink in sinks.items()}
    return {name: path for name, path in written.items() if path is not None}


Segmenter = Predictor  # the former name
