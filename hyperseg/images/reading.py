"""Reading of an image file as upright 8-bit RGB, by one path for every format: bytes in memory, decoded by Pillow."""

import io
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from hyperseg._files import printable
from hyperseg._text import brief
from hyperseg.images import kinds, metadata
from hyperseg.images.errors import SourceError, TooManyPixelsError, unreadable

_MOST_BYTES = 2**32  # more than any image of the size that Pillow opens
_CONVERT = "save it as an 8-bit RGB image first"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Tags of TIFF.
_NEW_SUBFILE_TYPE, _BITS_PER_SAMPLE, _PHOTOMETRIC, _DNG_VERSION = 254, 258, 262, 50706


class _UnclearPixels(ValueError):
    """The pixels can be decoded, but not be shown in 8 bits without a guess. The message goes on after the path."""


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as uint8 [H, W, 3] RGB, upright (its EXIF orientation is applied); of an animation, the start.

    Grey becomes three equal channels, 16 bits are scaled to 8, transparent parts are blended with white. Colour
    profiles are ignored. Metadata that is damaged or very large does not matter.

    Raises:
        SourceError: the file is missing, may not be read, is no regular file, is empty, not an image, truncated, or has
            values that do not map to RGB. No other error of the file system or of a decoder is raised.
    """
    return decode_image(contents(os.fspath(path)), printable(path))


def decode_image(
    data: bytes, name: str, formats: Sequence[str] | None = None, most_pixels: int | None = None
) -> np.ndarray:
    """Decode the contents of an image file as :func:`read_image` does.

    Args:
        name: for messages.
        formats: of Pillow, the only ones that are tried; None: all that are read.
        most_pixels: an image with more is refused before any of them is decoded.

    Raises:
        SourceError: see `read_image`; TooManyPixelsError if there are more than `most_pixels`, or than Pillow opens.
    """
    if kinds.is_raw(name):
        raise SourceError(f"{name} cannot be read: {kinds.reason_unread(name)}")
    try:
        stripped, orientation = metadata.without_metadata(data)
        tried = kinds.readable_formats()
        if formats is not None:
            tried = [form for form in tried if form in formats]
        with Image.open(io.BytesIO(stripped), formats=tried) as image:
            if most_pixels is not None and image.width * image.height > most_pixels:
                raise TooManyPixelsError(
                    f"{name} has {image.width * image.height:,} pixels ({image.height}x{image.width}), "
                    f"more than {most_pixels:,}; shrink it first"
                )
            depth = _grey_depth(image)
            image.load()
            return _to_rgb(_upright(image, orientation), depth)
    except SourceError:
        raise
    except UnidentifiedImageError:
        raise SourceError(f"{name} {_unidentified(name, data[:16])}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooManyPixelsError(f"{name} has too many pixels to be opened safely; crop or shrink it first") from None
    except MemoryError:
        raise SourceError(f"{name} does not fit in memory; shrink it first") from None
    except _UnclearPixels as error:
        raise SourceError(f"{name} {error}; {_CONVERT}") from None
    except Exception as error:  # decoders raise nearly anything on a damaged file, and one file must not end a folder
        raise SourceError(f"{name} is damaged and could not be read ({brief(error)}); leave it out") from None


def contents(path: str) -> bytes:
    """Return the bytes of a regular file. Raises SourceError."""
    name = printable(path)
    try:
        status = os.stat(path)  # before the file is opened: a pipe would wait for its writer
        if stat.S_ISDIR(status.st_mode):
            raise SourceError(f"{name or 'an empty name'} is a folder; give an image file")
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"{name} is a pipe, socket or device; give an image file")
        if status.st_size > _MOST_BYTES:
            raise SourceError(f"{name} has {status.st_size / 2**30:.1f} GiB; give a still image of less than 4 GiB")
        data = Path(path).read_bytes()
    except SourceError:
        raise
    except MemoryError:
        raise SourceError(f"{name} does not fit in memory; shrink it first") from None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if not data:
        raise SourceError(f"{name} is empty (0 bytes); give an image file")
    return data


def _unidentified(name: str, head: bytes) -> str:
    """Return the message, after the path, for a file that Pillow does not open."""
    if (reason := kinds.reason_unread("photo.heic" if kinds.is_heif(head) else name)) is not None:
        return f"cannot be read: {reason}"
    if kinds.begins_like_an_image(head):
        return f"begins like an image, but is damaged or of an unusual form; {_CONVERT}"
    return "is not an image of a known kind; give a JPEG, PNG, TIFF or the like"


def _grey_depth(image: Image.Image) -> int:
    """Return the bits of a grey pixel of more than 8. Raises _UnclearPixels for pixels that would be shown wrongly."""
    if image.format != "TIFF":
        return 16
    tags = image.tag_v2  # type: ignore[attr-defined]
    reduced = tags.get(_NEW_SUBFILE_TYPE, 0)
    if _DNG_VERSION in tags or (isinstance(reduced, int) and reduced & 1):
        raise _UnclearPixels("begins with a preview, as raw photos do")
    if image.mode.startswith(("I", "F")) and tags.get(_PHOTOMETRIC) == 0:  # Pillow inverts 8 bits only
        raise _UnclearPixels("stores white as 0 in more than 8 bits")
    return int(tags.get(_BITS_PER_SAMPLE, (16,))[0])


def _upright(image: Image.Image, orientation: int | None) -> Image.Image:
    """Turn a decoded image by its orientation; None: by that in its metadata."""
    if orientation is None:
        if image.format == "TIFF":  # Pillow turns it while it decodes
            return image
        blocks = [block if isinstance(block := image.info.get(key), bytes) else b"" for key in ("exif", "xmp")]
        orientation = metadata.orientation(blocks[:1], blocks[1:])
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _to_rgb(image: Image.Image, depth: int) -> np.ndarray:
    transparent = image.info.get("transparency")
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        grey = _to_8_bit(values, depth)
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if isinstance(transparent, tuple) and max(transparent) > 255:
        raise _UnclearPixels("has a transparent colour of 16 bits")
    if image.mode == "La":  # premultiplied; Pillow has no direct conversion to RGBA
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _to_8_bit(values: np.ndarray, depth: int) -> np.ndarray:
    """Scale grey values to 8 bits: integers of `depth` bits, floats from 0..1. Pillow's conversion clips at 255."""
    low, high = values.min(), values.max()
    top = 1.0 if values.dtype.kind == "f" else 2 ** min(depth, 16) - 1
    if not (low >= 0 and high <= top):  # also catches NaN
        raise _UnclearPixels(f"has grey values from {low} to {high} where 0 to {top:g} was expected")
    if values.dtype.kind == "i" and depth > 16 and 0 < high <= 255:
        raise _UnclearPixels(f"has {depth}-bit grey values from {low} to {high}, which may mean 8 bits or 16")
    return np.rint(values.astype(np.float32) * (255.0 / top)).astype(np.uint8)
