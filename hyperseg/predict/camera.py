"""A camera as a live source of frames, by OpenCV."""

import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from hyperseg._extras import require
from hyperseg._text import counted
from hyperseg.images.errors import SourceError
from hyperseg.predict.frames import Frame


class CameraSource:
    """The frames of a camera, each with the time at which it came.

    A run labels the newest frame; those that come meanwhile are dropped.

    Args:
        index: the number of the camera, from 0.
        size: (H, W) to ask the camera for; it gives the nearest that it can. None: its default.
        rate: frames per second to ask it for; None: its default.

    Iterating ends with SourceError when the camera is lost.

    Raises:
        SourceError: there is no such camera.
        MissingPackageError: OpenCV is not installed.
    """

    live = True

    def __init__(self, index: int, size: tuple[int, int] | None = None, rate: float | None = None) -> None:
        self._cv2: Any = require("cv2", "webcam", "a camera")
        self.index, self.name = index, f"camera{index}"
        self._capture = self._cv2.VideoCapture(index)
        if not self._capture.isOpened():
            self._capture.release()
            raise SourceError(
                f"camera {index} cannot be opened; is it connected, not used by another program, and open to this user?"
            )
        if size is not None:
            self._capture.set(self._cv2.CAP_PROP_FRAME_HEIGHT, size[0])
            self._capture.set(self._cv2.CAP_PROP_FRAME_WIDTH, size[1])
        if rate is not None:
            self._capture.set(self._cv2.CAP_PROP_FPS, rate)

    def __iter__(self) -> Iterator[Frame]:
        index, begin = 0, None
        try:
            while True:
                found, picture = self._capture.read()
                now = time.monotonic_ns()
                if not found or picture is None:
                    raise SourceError(f"camera {self.index} was lost after {counted(index, 'frame')}")
                begin = now if begin is None else begin
                image = np.ascontiguousarray(picture[:, :, ::-1])  # OpenCV gives BGR
                yield Frame(f"{self.name}_{index:06d}", image, None, index, Fraction(now - begin, 10**9))
                index += 1
        finally:
            self._capture.release()
