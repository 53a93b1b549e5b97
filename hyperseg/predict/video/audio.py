"""The sound of a video, copied unchanged beside new pictures."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from hyperseg.images.errors import SourceError
from hyperseg.predict.video.opening import open_file, pyav

# What players find in an MP4.
_IN_MP4 = ("aac", "mp3", "ac3", "eac3", "opus", "alac", "flac")


def reason_dropped(codec: str) -> str | None:
    """Return why sound of this codec is left out of an MP4; None if it is kept."""
    return (
        None
        if codec in _IN_MP4
        else f"its sound ({codec}) cannot be stored in an MP4 that plays everywhere; it is left out"
    )


class SoundCopy:
    """Copies the first sound stream of a file into an output, a little ahead of the pictures, packet by packet.

    `origin` is the time of the file that is time 0 of the output.
    """

    def __init__(self, path: str, output: Any, origin: Fraction) -> None:
        self._input = open_file(path)
        source = self._input.streams.audio[0]
        self._stream = output.add_stream_from_template(source)
        self._output, self._origin = output, origin
        self._packets = self._read(source)
        self._next = next(self._packets, None)

    def _read(self, source: Any) -> Iterator[Any]:
        try:
            for packet in self._input.demux(source):
                if packet.dts is not None:  # the last one is empty
                    shift = round(self._origin / Fraction(packet.time_base))
                    packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                    yield packet
        except (pyav().FFmpegError, OSError, SourceError):
            return  # a cut file: whoever reads its pictures reports it

    def up_to(self, time: Fraction | None) -> None:
        """Write the sound before a time in seconds; None: all that is left."""
        while (packet := self._next) is not None and (time is None or packet.dts * Fraction(packet.time_base) <= time):
            packet.stream = self._stream
            self._output.mux(packet)
            self._next = next(self._packets, None)

    def close(self) -> None:
        """Close the input."""
        self._input.close()
