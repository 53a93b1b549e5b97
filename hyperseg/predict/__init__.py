"""Segmenting pictures: a source yields frames, the segmenter labels them, sinks write what is seen.

    segmenter = Segmenter(model, device="cuda")
    sinks = [LabelSink("out"), OverlaySink("out", legend=True)]
    for frame in ImageSource(find_images(["photos"])):
        prediction = Prediction(frame, segmenter(frame.image), segmenter.label_set)
        for sink in sinks:
            sink.write(prediction)

A new kind of source or sink (video, camera, window) is a new class; nothing here changes for it.
"""

from hyperseg.predict.pipeline import (
    ClassShare,
    Prediction,
    Segmenter,
    class_shares,
    label_set_of,
    parse_size,
    segment,
)
from hyperseg.predict.sinks import LabelSink, OverlaySink, Sink, label_image, overlay, save_image, with_legend
from hyperseg.predict.sources import Frame, ImageSource, Source, SourceError, find_images, read_image, unique_names

__all__ = [
    "ClassShare",
    "Frame",
    "ImageSource",
    "LabelSink",
    "OverlaySink",
    "Prediction",
    "Segmenter",
    "Sink",
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
    "segment",
    "unique_names",
    "with_legend",
]
