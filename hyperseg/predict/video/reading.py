"""Frames of a video file or of a stream."""

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from hyperseg._files import printable
from hyperseg._text import counted
from hyperseg.images.errors import SourceError
from hyperseg.predict.frames import Frame
from hyperseg.predict.video.opening import cause, open_file, open_stream, pyav
from hyperseg.predict.video.pictures import transfer, upright_rgb


class VideoSource:
    """The frames of a video, in the order in which they are shown, upright, each with its time.

    Nothing is left out, repeated or resampled: a variable frame rate stays. Colours are converted by the matrix and
    range that the video names. High dynamic range is reduced to 8 bits without tone mapping, which `notes` says.

    Args:
        path: a video file, or with `live` the address of a stream (rtsp://, http://, ...).
        name: the beginning of the names of its frames; None: the file's stem.
        live: it is a stream, which is shown as it comes: frames that come while one is being labelled are dropped.
        timeout: seconds without data after which a stream is lost.

    Attributes:
        rate: frames per second on average, if it is known.
        time_base: the unit of its times, in seconds.
        origin: the time of the file, in seconds, that is time 0 of its frames.
        pixel_aspect: width of a pixel as stored divided by its height.
        audio: the name of the sound's codec; None without sound.
        notes: what was done to the frames that a user should know, a line each. Complete once all frames are read.

    Iterating raises SourceError at the end if the video is damaged or ends early; the frames before it are right.

    Raises:
        SourceError: it cannot be opened, or has no pictures.
        MissingPackageError: PyAV is not installed.
    """

    def __init__(
        self, path: str | os.PathLike[str], name: str | None = None, live: bool = False, timeout: float = 10.0
    ) -> None:
        self.path, self.live, self.timeout = os.fspath(path), live, timeout
        self.name = name or Path(self.path).stem
        self.notes: list[str] = []
        self._container: Any = self._open()
        video = _pictures(self._container, self.path)
        sound = next(iter(self._container.streams.audio), None)
        self.rate: Fraction | None = video.average_rate or video.guessed_rate
        self.time_base: Fraction = video.time_base or Fraction(1, 90000)
        self.pixel_aspect = Fraction(video.sample_aspect_ratio or 1)
        self.origin = (video.start_time or 0) * self.time_base
        self.audio: str | None = sound.codec_context.name if sound is not None and not live else None
        self._seconds = _announced(self._container, video)
        self._length = _length(self._container, video, self.rate, self._seconds)
        if not live:  # a file can be read from its beginning any number of times
            self._container.close()
            self._container = None

    def __length_hint__(self) -> int:
        return NotImplemented if self._length is None or self.live else self._length

    def __iter__(self) -> Iterator[Frame]:
        container, self._container = self._container or self._open(), None
        with container:
            yield from self._frames(container, _pictures(container, self.path))

    def _open(self) -> Any:
        return open_stream(self.path, self.timeout) if self.live else open_file(self.path)

    def _frames(self, container: Any, video: Any) -> Iterator[Frame]:
        av = pyav()
        # A thread per core, so that the next frame is there when the network asks for it.
        video.thread_type = "AUTO"
        clock = _Clock(video.time_base, self.rate)
        state = _State()
        for packet in _whole_packets(container, video, state):
            try:
                decoded = packet.decode()
            except av.FFmpegError as error:
                state.note_damage(cause(error))
                continue
            for each in decoded:
                time, duration = clock.time(each)
                yield self._frame(each, state, time - self.origin, duration)
        self._finish(state, clock)

    def _frame(self, decoded: Any, state: "_State", time: Fraction, duration: Fraction | None) -> Frame:
        image, exchanged = upright_rgb(decoded)
        if state.count == 0 and (curve := transfer(decoded)) is not None:
            self._note(
                f"it has a high dynamic range ({curve}), reduced to 8 bits without tone mapping: colours are pale"
            )
        state.count += 1
        path = None if self.live else Path(self.path)
        index = state.count - 1
        aspect = 1 / self.pixel_aspect if exchanged else self.pixel_aspect
        return Frame(f"{self.name}_{index:06d}", image, path, index, time, duration, aspect)

    def _finish(self, state: "_State", clock: "_Clock") -> None:
        """Add notes; raise SourceError if frames are missing."""
        name = printable(self.path)
        if clock.moved:
            self._note(f"{counted(clock.moved, 'frame')} had no time of their own, and got the next one possible")
        if self.live:
            raise SourceError(
                f"{name}: the stream ended after {counted(state.count, 'frame')} ({state.end or 'no more data'})"
            )
        if not state.count:
            raise SourceError(
                f"{name} has no picture that can be decoded ({state.damage or state.end or 'it is empty'})"
            )
        done = f"{counted(state.count, 'frame')} could be read, and are done"
        if state.damaged:
            parts = counted(state.damaged, "part")
            raise SourceError(f"{name}: {parts} of the video could not be decoded ({state.damage}); {done}")
        missing = (self._length or 0) - state.count
        early = self._seconds is not None and clock.end - self.origin < self._seconds - Fraction(1, 2)
        if state.end is not None or (missing > 2 and early):
            announced = f"; it says that it has {self._length}" if missing > 0 else ""
            raise SourceError(f"{name} ends early ({state.end or 'it is cut off'}): {done}{announced}")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


class _State:
    """What happened while a video was read."""

    def __init__(self) -> None:
        self.count = 0
        self.damaged = 0
        self.damage = ""
        self.end: str | None = None

    def note_damage(self, reason: str) -> None:
        self.damaged += 1
        self.damage = self.damage or reason


class _Clock:
    """Times of frames: those of the video, or the next ones possible where it has none or they do not increase."""

    def __init__(self, time_base: Fraction, rate: Fraction | None) -> None:
        self.time_base = time_base
        self.step = 1 / rate if rate else Fraction(1, 25)
        self.last: Fraction | None = None
        self.end = Fraction(0)
        self.moved = 0

    def time(self, frame: Any) -> tuple[Fraction, Fraction | None]:
        """Return the time of a frame and how long it is shown, in seconds."""
        base = Fraction(frame.time_base or self.time_base)
        duration = frame.duration * base if frame.duration else None
        if frame.pts is None:
            time = self.end
            self.moved += 1
        else:
            time = frame.pts * base
            if self.last is not None and time <= self.last:
                time = self.last + base
                self.moved += 1
        self.last = time
        self.end = time + (duration or self.step)
        return time, duration


def _whole_packets(container: Any, video: Any, state: _State) -> Iterator[Any]:
    """Yield the packets of a video, without one in which the file ends: ``state`` says then why there are no more.

    A decoder with several threads reports such a packet only when it is emptied, and PyAV 17 loses the frames that come
    out together with an error, up to one per thread.
    """
    packets, doubtful = container.demux(video), None
    while True:
        try:
            packet = next(packets, None)
        except (pyav().FFmpegError, OSError) as error:  # the file ends within a packet, or the stream is lost
            state.end = cause(error)
            return
        if packet is None:
            return
        if doubtful is not None:
            if packet.size:  # such as one of MPEG-TS after a gap, of which a part can be decoded
                yield doubtful
            else:  # the last one, which empties the decoder
                state.end = "it is cut off"
        doubtful = packet if packet.is_corrupt else None
        if doubtful is None:
            yield packet


def _pictures(container: Any, path: str) -> Any:
    """Return the first video stream that is not the cover of a song. Raises SourceError."""
    for stream in container.streams.video:
        if "attached_pic" not in str(stream.disposition):
            return stream
    container.close()
    raise SourceError(f"{printable(path)} has no pictures, only sound or data; give a video")


def _announced(container: Any, video: Any) -> Fraction | None:
    """Return for how many seconds there are pictures by what the file says; None if it does not."""
    if video.duration is not None:
        return video.duration * Fraction(video.time_base)
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", video.metadata.get("DURATION", ""))
    if tag is not None:  # of Matroska: the time at which the stream ends
        end = (int(tag[1]) * 60 + int(tag[2])) * 60 + Fraction(tag[3])
    elif container.duration and len(container.streams) == 1:
        end = Fraction(container.duration, 1_000_000)
        if "matroska" not in container.format.name:  # whose duration counts from 0, others' from the first frame
            return end
    else:
        return None
    return end - (video.start_time or 0) * Fraction(video.time_base)


def _length(container: Any, video: Any, rate: Fraction | None, seconds: Fraction | None) -> int | None:
    """Return how many frames there are by what the file says, or about so many by its duration."""
    if video.frames:
        return int(video.frames)
    if seconds is None and container.duration:  # with the sound, which may be longer: good enough for progress
        seconds = Fraction(container.duration, 1_000_000)
    return round(seconds * rate) if seconds and rate else None
