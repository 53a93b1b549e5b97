"""A frame: what sources yield, and the protocol of a source."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Frame:
    """An image to segment.

    name: the name of its outputs, without a suffix; unique within the source.
    image: uint8 [H, W, 3], RGB, upright.
    path: the file that it was read from, if any.
    index: its number in a video or stream, from 0; None for a still image.
    time: when it is shown, in seconds from the beginning of the video; None for a still image.
    duration: how long it is shown, in seconds, if the video says so.
    pixel_aspect: width of a pixel divided by its height.
    """

    name: str
    image: np.ndarray
    path: Path | None = None
    index: int | None = None
    time: Fraction | None = None
    duration: Fraction | None = None
    pixel_aspect: Fraction = Fraction(1)


class Source(Protocol):
    """Any iterable of frames. A length (`len`, or `__length_hint__` if it is a guess) is used to report progress.

    If one frame cannot be read, the iterator raises SourceError, and goes on with the next frame if it can. A source
    with an attribute `live` that is true, such as a camera, is not read ahead: its next frame is the newest one.
    """

    def __iter__(self) -> Iterator[Frame]: ...


def is_live(source: Source) -> bool:
    """Return whether the next frame of a source is the newest one, as a camera's is."""
    return bool(getattr(source, "live", False))
