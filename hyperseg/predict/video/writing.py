"""A sink that writes one H.264 video."""

import contextlib
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from hyperseg._files import atomic_write, printable
from hyperseg.images.errors import SourceError
from hyperseg.images.writing import marked
from hyperseg.predict.errors import SinkError
from hyperseg.predict.names import has_mark
from hyperseg.predict.result import Prediction
from hyperseg.predict.video.audio import SoundCopy, reason_dropped
from hyperseg.predict.video.opening import cause, pyav
from hyperseg.predict.video.pictures import EXACT

_ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "h264_mf")  # those that need no GPU
_BT709, _LIMITED = 1, 1
_CLOCK = Fraction(1, 90000)  # of a video whose times come from a clock, as a camera's


class VideoSink:
    """Writes one picture per frame to an H.264 video in an .mp4, at the times of the frames.

    The file appears when the sink is closed, also after an error: with all frames so far. Sides are even in H.264: an
    odd one gets a further row or column, a copy of the last. Use it in a `with` block, or call `close`.

    Args:
        path: the file, which ends in .mp4.
        draw: the picture of a prediction, uint8 [H, W, 3], for example `hyperseg.predict.pictures.Overlay`.
        rate: frames per second, for the encoder's choices only; frames keep their times.
        time_base: the unit of times in seconds; None: 1/90000.
        sound: a video file whose sound is copied; None: no sound.
        quality: x264's constant rate factor: 0 (lossless) to 51; 18 looks like the original.
        note: text for the file's metadata, after the project's mark.

    Attributes:
        notes: what a user should know, a line each: sound that is left out, sides that were made even.

    Raises:
        ValueError: the path does not end in .mp4, or quality is out of range.
        MissingPackageError: PyAV is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        draw: Callable[[Prediction], np.ndarray],
        rate: Fraction | None = None,
        time_base: Fraction | None = None,
        sound: str | None = None,
        quality: int = 20,
        note: str = "",
    ) -> None:
        self.file = Path(path)
        if self.file.suffix.lower() != ".mp4":
            raise ValueError(f"{printable(path)} does not end in .mp4; give such a name")
        if not 0 <= quality <= 51:
            raise ValueError(f"quality is {quality}; give 0 (lossless) to 51 (smallest)")
        pyav()
        self.draw, self.rate, self.quality, self.note = draw, rate or Fraction(30), quality, note
        self.time_base = time_base or _CLOCK
        self.notes: list[str] = []
        self._sound_file = sound
        self._exit: contextlib.ExitStack | None = None
        self._output: Any = None
        self._sound: SoundCopy | None = None
        self._durations: dict[int, int] = {}
        self._last = -1

    def __enter__(self) -> "VideoSink":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def path(self, name: str) -> Path:
        """Return the video, whatever the frame is called."""
        return self.file

    def is_done(self, name: str) -> bool:
        """Return whether the video exists and was written with the same note."""
        return has_mark(self.file, self.note)

    def write(self, prediction: Prediction) -> None:
        """Add a frame. Raises SinkError if the video cannot be written."""
        frame, picture = prediction.frame, self.draw(prediction)
        try:
            if self._output is None:
                self._begin(picture, frame.pixel_aspect)
            pts = self._ticks(frame.time, frame.index)
            if frame.duration is not None:
                self._durations[pts] = max(round(frame.duration / self._stream.codec_context.time_base), 1)
            if self._sound is not None:
                self._sound.up_to(pts * self._stream.codec_context.time_base)
            self._mux(self._stream.encode(self._encodable(picture, pts)))
        except (pyav().FFmpegError, OSError, ValueError) as error:
            raise SinkError(f"{printable(self.file)} could not be written ({cause(error)})") from error

    def close(self) -> Path | None:
        """Complete the video and return its path; None if no frame was written. Raises SinkError."""
        exit, self._exit = self._exit, None
        if exit is None:
            return None
        try:
            with exit:
                self._mux(self._stream.encode())
                if self._sound is not None:
                    self._sound.up_to(None)
        except (pyav().FFmpegError, OSError, ValueError) as error:
            raise SinkError(f"{printable(self.file)} could not be written ({cause(error)})") from error
        return self.file

    def _begin(self, picture: np.ndarray, aspect: Fraction) -> None:
        av = pyav()
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(self.file))
            output = stack.enter_context(
                av.open(str(temporary), "w", format="mp4", container_options={"movflags": "+faststart"})
            )
            output.metadata["comment"] = marked(self.note)
            codec = next((name for name in _ENCODERS if name in av.codecs_available), None)
            if codec is None:
                raise ValueError("this PyAV has no encoder of H.264; install its wheel from PyPI")
            options = {"crf": str(self.quality), "preset": "veryfast"} if codec == "libx264" else {}
            stream = output.add_stream(codec, rate=self.rate, options=options)
            height, width = picture.shape[:2]
            stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
            if width % 2 or height % 2:
                self.notes.append(f"H.264 has even sides: {width}x{height} is stored as {stream.width}x{stream.height}")
            context = stream.codec_context
            stream.time_base = context.time_base = self.time_base
            context.sample_aspect_ratio = aspect
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED
            self._stream, self._output = stream, output
            self._sound = self._copy_of_sound(stack)
            self._exit = stack.pop_all()

    def _copy_of_sound(self, stack: contextlib.ExitStack) -> SoundCopy | None:
        if self._sound_file is None:
            return None
        from hyperseg.predict.video.reading import VideoSource

        source = VideoSource(self._sound_file)
        if source.audio is None:
            return None
        if (reason := reason_dropped(source.audio)) is not None:
            self.notes.append(reason)
            return None
        try:
            copy = SoundCopy(self._sound_file, self._output, source.origin)
        except (SourceError, pyav().FFmpegError) as error:
            self.notes.append(f"its sound could not be copied ({cause(error)}); it is left out")
            return None
        stack.callback(copy.close)
        return copy

    def _ticks(self, time: Fraction | None, index: int | None) -> int:
        """Return the time of a frame in units of the video's time base; each is later than the one before."""
        base = self._stream.codec_context.time_base
        if time is None:
            time = Fraction(index or 0) / self.rate if index is not None else (self._last + 1) * base
        self._last = max(round(time / base), self._last + 1)
        return self._last

    def _encodable(self, picture: np.ndarray, pts: int) -> Any:
        width, height = self._stream.width, self._stream.height
        if abs(picture.shape[1] - width) > 1 or abs(picture.shape[0] - height) > 1:  # the video changed its size
            picture = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
            note = "its frames change their size; all are stored in the size of the first"
            self.notes += [] if note in self.notes else [note]
        rows, columns = height - picture.shape[0], width - picture.shape[1]
        if rows or columns:
            picture = np.pad(picture, ((0, rows), (0, columns), (0, 0)), mode="edge")
        rgb = pyav().VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = rgb.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED, interpolation=EXACT)
        frame.pts, frame.time_base = pts, self._stream.codec_context.time_base
        return frame

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            if (duration := self._durations.pop(packet.pts, None)) is not None:
                packet.duration = duration
            self._output.mux(packet)
