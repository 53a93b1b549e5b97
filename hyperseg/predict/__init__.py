"""Segmentation of images and videos: a source yields frames, a `Predictor` labels them, sinks write the results.

    import hyperseg
    from hyperseg.predict import ImageSource, LabelSink, OverlaySink, Predictor, find_images

    predictor = Predictor(hyperseg.load("my-network"), device="auto")
    source = ImageSource(find_images(["images"]))
    sinks = {"labels": LabelSink("out"), "overlay": OverlaySink("out", legend=True)}
    for prediction, files in predictor.run(source, sinks, on_error=print):
        print(files["overlay"], [(share.name, share.share) for share in prediction.shares])

Sources are iterables of `Frame`: `ImageSource`, `VideoSource` (a file or a stream), `CameraSource`, `RawSource` (a
pipe). A sink has `write(prediction)`; `VideoSink` and `JsonLinesSink` are closed at the end. A server or a notebook
calls the predictor: `labels = predictor(image)`.
"""

from typing import TYPE_CHECKING

from hyperseg._lazy import on_first_use
from hyperseg.data.drawing import label_image, overlay, with_legend
from hyperseg.data.labels import label_set_of
from hyperseg.data.shares import ClassShare, class_shares
from hyperseg.images.reading import read_image
from hyperseg.images.writing import save_image
from hyperseg.predict.camera import CameraSource
from hyperseg.predict.errors import FrameError, FrameTooLargeError, OutputError, SinkError, SourceError
from hyperseg.predict.finding import find_images
from hyperseg.predict.frames import Frame, Source
from hyperseg.predict.images import ImageSource
from hyperseg.predict.names import unique_names
from hyperseg.predict.pictures import Overlay, SideBySide, class_colors
from hyperseg.predict.pipeline import Times
from hyperseg.predict.raw import RawSource
from hyperseg.predict.result import Prediction
from hyperseg.predict.sinks import (
    ColorSink,
    IndexSink,
    JsonLinesSink,
    JsonSink,
    LabelSink,
    OverlaySink,
    PictureSink,
    RawLabelSink,
    SideSink,
    Sink,
)
from hyperseg.predict.sizes import parse_size
from hyperseg.predict.video.reading import VideoSource
from hyperseg.predict.video.writing import VideoSink

if TYPE_CHECKING:
    from hyperseg.predict.predictor import Predictor, Segmenter

__all__ = [
    "CameraSource",
    "ClassShare",
    "ColorSink",
    "Frame",
    "FrameError",
    "FrameTooLargeError",
    "ImageSource",
    "IndexSink",
    "JsonLinesSink",
    "JsonSink",
    "LabelSink",
    "OutputError",
    "Overlay",
    "OverlaySink",
    "PictureSink",
    "Prediction",
    "Predictor",
    "RawLabelSink",
    "RawSource",
    "Segmenter",
    "SideBySide",
    "SideSink",
    "Sink",
    "SinkError",
    "Source",
    "SourceError",
    "Times",
    "VideoSink",
    "VideoSource",
    "class_colors",
    "class_shares",
    "find_images",
    "label_image",
    "label_set_of",
    "overlay",
    "parse_size",
    "read_image",
    "save_image",
    "unique_names",
    "with_legend",
]

# That which needs PyTorch.
__getattr__, __dir__ = on_first_use(__name__, {"Predictor": "predictor", "Segmenter": "predictor"})
