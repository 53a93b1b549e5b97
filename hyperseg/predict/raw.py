"""Frames without a container, from a pipe: H x W x 3 bytes each."""

from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO

import numpy as np

from hyperseg.images.errors import SourceError
from hyperseg.predict.frames import Frame

CHANNELS = {"rgb24": 3, "bgr24": 3, "gray": 1}


class RawSource:
    """Frames of a binary stream, row by row, as `ffmpeg -f rawvideo -pix_fmt rgb24 -` writes them.

    Args:
        stream: for example `sys.stdin.buffer`.
        size: (H, W) of the frames.
        pixels: "rgb24", "bgr24" or "gray".
        rate: frames per second, for their times.
        name: the beginning of the names of the frames.

    Iterating raises SourceError at the end if the stream ends within a frame.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        stream: BinaryIO,
        size: tuple[int, int],
        pixels: str = "rgb24",
        rate: Fraction | int = 30,
        name: str = "stdin",
    ) -> None:
        if pixels not in CHANNELS:
            raise ValueError(f"pixels is {pixels!r}; give one of {', '.join(CHANNELS)}")
        if min(size) < 1:
            raise ValueError(f"size is {size}; give the height and width of the frames")
        if rate <= 0:
            raise ValueError(f"rate is {rate}; give frames per second, more than 0")
        self.stream, self.size, self.pixels, self.rate, self.name = stream, size, pixels, Fraction(rate), name

    def __iter__(self) -> Iterator[Frame]:
        shape = (*self.size, CHANNELS[self.pixels])
        needed, index = int(np.prod(shape)), 0
        while data := self._read(needed):
            if len(data) < needed:
                height, width = self.size
                raise SourceError(
                    f"{self.name}: the stream ends within frame {index} ({len(data)} of {needed} bytes); "
                    f"are its frames {height}x{width} in {self.pixels}?"
                )
            values = np.frombuffer(data, np.uint8).reshape(shape)
            image = values[:, :, ::-1] if self.pixels == "bgr24" else np.broadcast_to(values, (*self.size, 3))
            time = index / self.rate
            yield Frame(f"{self.name}_{index:06d}", np.ascontiguousarray(image), None, index, time, 1 / self.rate)
            index += 1

    def _read(self, needed: int) -> bytes:
        """Read so many bytes, less at the end of the stream: a pipe gives what is there."""
        parts, missing = [], needed
        while missing and (part := self.stream.read(missing)):
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)
