"""Segmentation in Ray Data: the class for `map_batches`, which labels the images of each batch of a data set.

    import ray
    from hyperseg.predict.ray import BatchPredictor

    labelled = ray.data.read_images("images", mode="RGB", include_paths=True).map_batches(
        BatchPredictor,
        fn_constructor_kwargs={"network": "hyperseg-m-cityscapes", "outputs": ("png", "shares")},
        batch_size=16,
        concurrency=4,  # copies of the network
        num_gpus=1,  # each
    )
    labelled.write_parquet("labels")

Ray is an extra (`pip install 'hyperseg[ray]'`); this module does not import it. docs/scaling.md has a whole program.
"""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from hyperseg.images.arrays import check_image
from hyperseg.images.errors import SourceError
from hyperseg.images.reading import decode_image
from hyperseg.models import load
from hyperseg.predict.frames import Frame
from hyperseg.predict.predictor import Predictor
from hyperseg.predict.result import Prediction
from hyperseg.predict.sizes import Size, parse_size

OUTPUTS = ("labels", "png", "shares")


class BatchPredictor:
    """Labels batches of images. Ray makes as many of it as `concurrency` says, each with a network of its own.

    A batch maps names of columns to arrays with one element for each image. The column of images may hold arrays
    (uint8 [H, W, 3] RGB, or grey), encoded files (bytes), or what data sets of Hugging Face have ({"bytes": ...}).
    Images may have different sizes. The result has the other columns of the batch and

        labels   uint8 [H, W]: the class of each pixel, as an array; [0, 0] of an image that failed
        png      the same as a grey PNG, which takes much less space in a file; b"" of an image that failed
        shares   {name of a class: its share of the pixels}; NaN of an image that failed
        error    why an image failed, or ""

    of which the first three are there if `outputs` has them. A damaged image is no exception: its `error` says why.

    Args:
        network: what `hyperseg.load` takes (a name, a file or a folder, which each machine must have), or a network.
        outputs: any of "labels", "png" and "shares".
        column: the column of images, which the result does not have.
        size: that the network runs at: "model" (its own), "native" (each image's own), "HxW" or (H, W).
        device: "auto" is the GPU if Ray gives the actor one (`num_gpus`), else the CPU.
        dtype: of the network: "float32", "float16" or "bfloat16".

    Raises:
        ValueError: an argument is out of range.
        CheckpointError, TransferError: the network cannot be loaded.
    """

    def __init__(
        self,
        network: str | os.PathLike[str] | nn.Module,
        outputs: Sequence[str] = ("labels",),
        column: str = "image",
        size: Size | str = "model",
        device: str = "auto",
        dtype: torch.dtype | str = torch.float32,
    ) -> None:
        if isinstance(outputs, str) or not outputs or not set(outputs) <= set(OUTPUTS):
            raise ValueError(f"outputs is {outputs!r}; give some of {', '.join(OUTPUTS)} in a tuple")
        model: Any = network if isinstance(network, nn.Module) else load(network)
        sides = parse_size(size, model.config.resolution) if isinstance(size, str) else size
        self.predictor = Predictor(model, sides, device, dtype)
        self.outputs, self.column = tuple(outputs), column

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Label the images of a batch.

        Raises:
            ValueError: the batch has no column of images, or one named like a column of the result.
            EngineError: the engine could not be built, or its output does not match the module's.
        """
        if self.column not in batch:
            raise ValueError(f"there is no column {self.column!r}; the batch has {', '.join(batch)}; give column=")
        others = {name: values for name, values in batch.items() if name != self.column}
        if taken := sorted({*self.outputs, "error"} & set(others)):
            raise ValueError(f"the data set has columns {', '.join(taken)} already; rename or drop them before")
        images = batch[self.column]
        names = [str(path) for path in others["path"]] if "path" in others else [f"row {i}" for i in range(len(images))]
        sink = _RowSink(self.outputs)
        rows: list[dict[str, Any]] = []
        # Reading, labelling and encoding of images overlap. Results and errors come in the order of the images.
        on_error = lambda error: rows.append({**self._failed(), "error": str(error)})  # noqa: E731
        for prediction, _ in self.predictor.run(_Images(batch[self.column], names), {"rows": sink}, on_error):
            rows.append({**sink.rows.pop(prediction.frame.index), "error": ""})
        return {**others, **{name: _column([row[name] for row in rows]) for name in (*self.outputs, "error")}}

    def _failed(self) -> dict[str, Any]:
        shares = dict.fromkeys(self.predictor.label_set.classes, float("nan"))
        empty = {"labels": np.zeros((0, 0), np.uint8), "png": b"", "shares": shares}
        return {name: empty[name] for name in self.outputs}


class _Images:
    """The images of a batch as a source, whose iterator goes on after a damaged image."""

    def __init__(self, images: Sequence[Any], names: Sequence[str]) -> None:
        self.images, self.names = images, names

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Frame]:
        return map(self._frame, range(len(self.images)))  # not a generator, which an exception would end for good

    def _frame(self, index: int) -> Frame:
        name = self.names[index]
        return Frame(name, _image(self.images[index], name), index=index)


class _RowSink:
    """Keeps the values of a row by the index of its frame."""

    def __init__(self, outputs: Sequence[str]) -> None:
        self.outputs = outputs
        self.rows: dict[int | None, dict[str, Any]] = {}

    def write(self, prediction: Prediction) -> None:
        compute = {"labels": _labels, "png": _png, "shares": _shares}
        self.rows[prediction.frame.index] = {name: compute[name](prediction) for name in self.outputs}


def _image(value: Any, name: str) -> np.ndarray:
    """Return an element of a column as uint8 [H, W, 3]. Raises SourceError for anything that is not an image."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, bytes | bytearray | memoryview):
        if not value:
            raise SourceError(f"{name} is empty (0 bytes); give an image file")
        return decode_image(bytes(value), name)
    if value is None:
        raise SourceError(f"{name} has no image")
    array = np.asarray(value)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    try:
        check_image(array)
    except (TypeError, ValueError) as error:
        raise SourceError(f"{name} cannot be labelled: {error}") from None
    return array


def _labels(prediction: Prediction) -> np.ndarray:
    return prediction.labels


def _png(prediction: Prediction) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(prediction.labels)).save(stream, "PNG")
    return stream.getvalue()


def _shares(prediction: Prediction) -> dict[str, float]:
    found = {share.index: share.share for share in prediction.shares}
    return {name: found.get(index, 0.0) for index, name in enumerate(prediction.label_set.classes)}


def _column(values: list[Any]) -> np.ndarray:
    """Return values as an array of objects: NumPy would make one array of labels that have the same size."""
    column = np.empty(len(values), object)
    for index, value in enumerate(values):
        column[index] = value
    return column
