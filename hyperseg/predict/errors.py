"""Errors of prediction: those of one frame, after which the next one can be done, and those that end a run."""

from hyperseg.images.errors import FrameError, SourceError

__all__ = ["FrameError", "FrameTooLargeError", "OutputError", "SinkError", "SourceError"]


class FrameTooLargeError(FrameError, MemoryError):
    """A frame does not fit in the memory of the GPU or the host. The message names the frame and its size."""


class OutputError(FrameError, OSError):
    """An output of one frame could not be written. The message names the frame, the file and the reason."""


class SinkError(OSError):
    """No output can be written any more, for example because the disk is full. The message gives the reason."""
