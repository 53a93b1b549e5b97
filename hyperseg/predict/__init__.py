"""Segmentation of images and streams: a source yields frames, a `Predictor` labels them, sinks write the results.

    import hyperseg
    from hyperseg.predict import ImageSource, LabelSink, OverlaySink, Predictor, find_images

    predictor = Predictor(hyperseg.load("my-network"), device="auto")
    source = ImageSource(find_images(["images"]))
    sinks = {"labels": LabelSink("out"), "overlay": OverlaySink("out", legend=True)}
    for prediction, files in predictor.run(source, sinks, on_error=print):
        print(files["overlay"], [(share.name, share.share) for share in prediction.shares])

A video, a camera or a window is a class of its own: a source yields `Frame`s, a sink has `write(prediction)`. A server
or a notebook calls the predictor: `labels = predictor(image)`.
"""

from hyperseg.data.drawing import label_image, overlay, with_legend
from hyperseg.data.shares import ClassShare, class_shares
from hyperseg.images.reading import read_image
from hyperseg.images.writing import save_image
from hyperseg.predict.errors import FrameError, FrameTooLargeError, OutputError, SinkError, SourceError
from hyperseg.predict.finding import find_images
from hyperseg.predict.frames import Frame, Source
from hyperseg.predict.images import ImageSource
from hyperseg.predict.names import unique_names
from hyperseg.predict.predictor import Predictor, label_set_of, parse_size
from hyperseg.predict.result import Prediction
from hyperseg.predict.sinks import LabelSink, OverlaySink, Sink

Segmenter = Predictor  # the former name

__all__ = [
    "ClassShare",
    "Frame",
    "FrameError",
    "FrameTooLargeError",
    "ImageSource",
    "LabelSink",
    "OutputError",
    "OverlaySink",
    "Prediction",
    "Predictor",
    "Segmenter",
    "Sink",
    "SinkError",
    "Source",
    "SourceError",
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
