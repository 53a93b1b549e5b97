"""Label files as Pillow images that still have the values stored in the file, or an error that says what they lost."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from hyperseg._text import brief, counted
from hyperseg.data.errors import DataError
from hyperseg.images import kinds

INDEX_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
COLOR_MODES = ("RGB", "RGBA", "LA", "PA")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_ORIENTATION = 274  # of EXIF
_GREY = (0, 4)  # colour types of PNG: grey, grey and alpha


class _Unusable(Exception):
    """A file that can be decoded, but not exactly. The message goes on after the name of the file."""


def open_mask(data: bytes, name: str) -> Image.Image:
    """Decode a label file. Grey values of 2 and 4 bits are as stored; Pillow scales them to 8 bits.

    Raises:
        DataError: the file is damaged or no image, or cannot be decoded to the values that were written: it has several
            frames, an orientation, colours of 16 bits, white stored as 0, or a mode without a meaning for labels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=kinds.readable_formats())
        depth = _check(image, data)
        image.load()
        if image.mode == "I" and depth == 32 and _is_unsigned(image) and int(np.asarray(image).min()) < 0:
            raise _Unusable("has values above 2147483647; write class indices")
        return image.point(_unscaled(depth)) if image.mode == "L" and depth in (2, 4) else image
    except _Unusable as error:
        raise DataError(f"{name} {error}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{name} has too many pixels to be opened safely; crop or shrink it") from None
    except MemoryError:
        raise DataError(f"{name} does not fit in memory; shrink it") from None
    except UnidentifiedImageError:
        raise DataError(f"{name} is damaged or no image; a label file is a PNG, TIFF or the like") from None
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise DataError(f"{name} is damaged and could not be read ({brief(error)}); write it again") from None


def _check(image: Image.Image, data: bytes) -> int:
    """Return the bits of a stored value. Raises _Unusable."""
    if image.mode not in INDEX_MODES + COLOR_MODES:
        raise _Unusable(f"has pixels of mode {image.mode}; write class indices (mode L) or RGB colours")
    if image.format in ("JPEG", "MPO") and image.mode == "L":
        raise _Unusable(
            "is a JPEG, which changes the class indices; write it as PNG again, from the source of the JPEG"
        )
    if getattr(image, "is_animated", False):
        raise _Unusable(f"has {getattr(image, 'n_frames', 'several')} frames; a label file has one")
    if "exif" in image.info and image.getexif().get(_ORIENTATION, 1) != 1:
        raise _Unusable("has an EXIF orientation; write the labels upright, as the image is shown")
    depth = 8
    if image.format == "PNG":
        depth = data[24]
        if depth == 16 and (data[25] not in _GREY or image.mode == "LA"):
            raise _Unusable("has colours of 16 bits, of which only 8 would be read; write 8-bit colours")
    elif image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        depth = int(tags.get(_BITS_PER_SAMPLE, (1,))[0])
        if image.mode in COLOR_MODES and depth > 8:
            raise _Unusable(f"has colours of {depth} bits, of which only 8 would be read; write 8-bit colours")
        if image.mode not in COLOR_MODES and tags.get(_PHOTOMETRIC) == 0:
            raise _Unusable("stores white as 0, so it is not clear what its values mean; write it as PNG")
    return depth


def _is_unsigned(image: Image.Image) -> bool:
    """Return whether a TIFF stores unsigned integers, which Pillow reads as signed ones."""
    return image.format == "TIFF" and image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == 1  # type: ignore[attr-defined]


def _unscaled(depth: int) -> list[int]:
    """Return the table from grey values that Pillow scaled to 8 bits to those stored."""
    return [value * (2**depth - 1) // 255 for value in range(256)]


def index_array(image: Image.Image, name: str) -> np.ndarray:
    """Return the indices of an image of :func:`open_mask` in the type that they have in the file, booleans as uint8.

    Raises DataError for an image with colours, and for floats that are not whole numbers.
    """
    if image.mode not in INDEX_MODES:
        raise DataError(f"{name} has {color_hint(image)}")
    if image.mode == "1":  # as an array these are booleans of the bytes 0 and 255
        return (np.asarray(image.convert("L")) > 0).view(np.uint8)
    values = np.asarray(image)
    if values.dtype.kind == "f":
        bad = ~(values == np.rint(values)) | (np.abs(values) > 2**24)  # also NaN and infinities
        if bad.any():
            raise DataError(
                f"{name} has values that are not whole numbers ({counted(int(bad.sum()), 'pixel')}), such as "
                f"{values[bad][0]:g} at {position(bad)}; write class indices"
            )
        return values.astype(np.int32)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def color_hint(image: Image.Image) -> str:
    """Return what to do with an image that has colours where there is no colour table, after "has"."""
    text = f"colours (mode {image.mode}), not class indices, and no colours of the classes are known"
    if image.mode == "RGB":
        red, green, blue = (band.tobytes() for band in image.split())
        if red == green == blue:
            return f"{text}; its three channels are equal: if they are class indices, write one of them (mode L)"
    return f"{text}; give the colour of each class (colors in classes.yaml), or write class indices (mode L or P)"


def position(where: np.ndarray) -> str:
    """Return the first True of a map [H, W] in words: "row 3, column 5"."""
    row, column = divmod(int(where.argmax()), where.shape[1])
    return f"row {row}, column {column}"
