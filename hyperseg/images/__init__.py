"""Image files and arrays: one way to read, check and write them. Knows no data set and no network."""

from hyperseg.images.errors import FrameError, SourceError
from hyperseg.images.reading import decode_image, read_image
from hyperseg.images.writing import save_image

__all__ = ["FrameError", "SourceError", "decode_image", "read_image", "save_image"]
