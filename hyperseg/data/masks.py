"""Label files: decoding of every encoding that labelling tools write, exactly or not at all.

Three decoders: :class:`IndexDecoder` for files of class indices, :class:`ColorDecoder` for colours, and
:class:`MaskDecoder` for data sets that may have both. In memory, ignored pixels are 255 whatever the file has.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from hyperseg._text import counted
from hyperseg.data.errors import DataError
from hyperseg.data.labels import Color
from hyperseg.data.mask_files import INDEX_MODES, index_array, open_mask, position

IGNORED = 255
_IGNORE_HINT = "`unknown: ignore` ignores such pixels"


def read_indices(data: bytes, name: str) -> np.ndarray:
    """Decode a label file of indices as int64 [H, W]: grey, palette (its indices, not its colours), 1 to 32 bits.

    Raises DataError for a damaged file, for colours, and for values that are not whole numbers.
    """
    return index_array(open_mask(data, name), name).astype(np.int64)


@dataclass(frozen=True)
class IndexDecoder:
    """Maps the values of an index image to classes; a value that is not in the map is an error.

    values: value in the file -> class index, or the ignore index.
    unknown: class index, or ignore index, of every other value; None refuses them.
    """

    values: Mapping[int, int] = field()
    unknown: int | None = None

    def __call__(self, data: bytes, name: str) -> np.ndarray:
        """See :class:`hyperseg.data.dataset.LabelDecoder`."""
        return self.decode(open_mask(data, name), name)

    def decode(self, image: Image.Image, name: str) -> np.ndarray:
        """Return the labels of an image of :func:`open_mask`. Raises DataError."""
        indices = index_array(image, name)
        if indices.dtype == np.uint8:
            raw = indices.tobytes()
            if self.unknown is None and (strays := raw.translate(None, delete=self._known_bytes())):
                raise DataError(self._refusal(np.frombuffer(strays, np.uint8), name))
            # bytearray, so that the array can be written to
            return np.frombuffer(bytearray(raw).translate(self._byte_table()), np.uint8).reshape(indices.shape)
        return self._decode_wide(indices, name)

    def unknown_values(self, image: Image.Image, name: str) -> list[int]:
        """Return the values of an image of :func:`open_mask` that have no class. Raises DataError."""
        return [int(value) for value in np.unique(index_array(image, name)) if int(value) not in self.values]

    def _decode_wide(self, indices: np.ndarray, name: str) -> np.ndarray:
        """Decode values of more than 8 bits: by a table over their range if that is short."""
        low, high = int(indices.min()), int(indices.max())
        if high - low < 2**20:
            offsets = indices.astype(np.int64) - low
            present = np.flatnonzero(np.bincount(offsets.ravel())) + low
        else:
            present, offsets = np.unique(indices, return_inverse=True)
        if self.unknown is None and (strays := [value for value in present.tolist() if value not in self.values]):
            raise DataError(self._refusal(indices[np.isin(indices, strays)], name))
        other = 0 if self.unknown is None else self.unknown
        classes = np.array([self.values.get(value, other) for value in present.tolist()], np.uint8)
        if high - low < 2**20:
            table = np.zeros(high - low + 1, np.uint8)
            table[present - low] = classes
        else:
            table = classes
        return table[offsets.reshape(indices.shape)]

    def _refusal(self, strays: np.ndarray, name: str) -> str:
        unknown = np.unique(strays).tolist()
        listed = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
        known = ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in _runs(self.values))
        verb, it = ("is no class", "it") if len(unknown) == 1 else ("are no classes", "them")
        return (
            f"{name} contains {listed} ({counted(strays.size, 'pixel')}), which {verb} and not ignored; known are "
            f"{known}; map {it}, or correct the file"
        )

    def _known_bytes(self) -> bytes:
        return bytes(value for value in self.values if 0 <= value <= 255)

    def _byte_table(self) -> bytes:
        other = 0 if self.unknown is None else self.unknown
        return bytes(self.values.get(value, other) for value in range(256))

    def description(self) -> dict[str, Any]:
        """See :class:`hyperseg.data.dataset.LabelDecoder`."""
        values = {str(value): index for value, index in sorted(self.values.items())}
        return {"encoding": "index", "values": values, "unknown": self.unknown}


@dataclass(frozen=True)
class ColorDecoder:
    """Maps colours to classes, exactly: RGB, palette images by the colours of their palette, grey as R = G = B.

    A colour that is not in the table is refused, never taken for the nearest. So are pixels that are not opaque: a
    colour that nobody sees has no meaning.

    colors: (R, G, B) -> class index, or the ignore index.
    unknown: class index, or ignore index, of every other colour and of pixels that are not opaque; None refuses them.
    """

    colors: Mapping[Color, int]
    unknown: int | None = None

    def __call__(self, data: bytes, name: str) -> np.ndarray:
        """See :class:`hyperseg.data.dataset.LabelDecoder`."""
        return self.decode(open_mask(data, name), name)

    def decode(self, image: Image.Image, name: str) -> np.ndarray:
        """Return the labels of an image of :func:`open_mask`. Raises DataError."""
        if image.mode in INDEX_MODES and image.mode not in ("1", "L", "P"):
            raise DataError(
                f"{name} has grey values of more than 8 bits (mode {image.mode}), but colours were expected"
            )
        width, height = image.size
        pixels = np.frombuffer(image.convert("RGBA").tobytes(), "<u4").reshape(height, width)
        labels = _color_table(tuple(self.colors.items()))[pixels & 0xFFFFFF]
        unclear = (labels < 0) | (pixels < 0xFF000000)
        if not unclear.any():
            return labels.astype(np.uint8)
        if self.unknown is None:
            raise DataError(self._refusal(pixels, unclear, name))
        labels[unclear] = self.unknown
        return labels.astype(np.uint8)

    def _refusal(self, pixels: np.ndarray, unclear: np.ndarray, name: str) -> str:
        value = int(pixels.ravel()[int(unclear.argmax())])
        color, alpha = (value & 255, value >> 8 & 255, value >> 16 & 255), value >> 24
        count = int(unclear.sum())
        example = f"{color} at {position(unclear)}"
        if alpha < 255:
            what = f"{count} of {unclear.size} pixels are transparent or have the colour of no class, such as {example}"
            return f"{name}: {what} (alpha {alpha}); write opaque colours; {_IGNORE_HINT}"
        several = len(np.unique(pixels[unclear]))
        what = f"{count} of {unclear.size} pixels have colours of no class ({several} colours), such as {example}"
        cause = "write it as PNG again if it was resized, smoothed or a JPEG, or add the colour to the table"
        return f"{name}: {what}; {cause}; {_IGNORE_HINT}"

    def description(self) -> dict[str, Any]:
        """See :class:`hyperseg.data.dataset.LabelDecoder`."""
        return {
            "encoding": "color",
            "colors": [[*color, index] for color, index in sorted(self.colors.items())],
            "unknown": self.unknown,
        }


@functools.lru_cache(maxsize=4)
def _color_table(colors: tuple[tuple[Color, int], ...]) -> np.ndarray:
    """Return the class of every 24-bit colour, R in the lowest byte; -1 for none. 32 MB, so it is not pickled."""
    table = np.full(2**24, -1, np.int16)
    for (red, green, blue), index in colors:
        table[red | green << 8 | blue << 16] = index
    return table


@dataclass(frozen=True)
class MaskDecoder:
    """Decodes index images by their indices and colour images by their colours, as the mode of each file says.

    Palette images are index images: the indices count, whatever the palette shows. Only if an index has no class, the
    colours of the palette count, as some tools renumber a palette to shrink the file. With `palette_first` the colours
    of the palette count at once. A grey image is an index image too, unless all known colours are grey.

    indices, colors: of the data set; None if it has none.
    """

    indices: IndexDecoder | None
    colors: ColorDecoder | None
    palette_first: bool = False

    def __call__(self, data: bytes, name: str) -> np.ndarray:
        """See :class:`hyperseg.data.dataset.LabelDecoder`."""
        image = open_mask(data, name)
        if self.indices is None and self.colors is None:
            raise DataError(f"{name} cannot be decoded: neither indices nor colours of the classes are known")
        if self.indices is None or (image.mode not in INDEX_MODES and self.colors is not None):
            assert self.colors is not None
            return self.colors.decode(image, name)
        if self.colors is None:
            return self.indices.decode(image, name)
        if image.mode == "P":
            return self._decode_palette(image, name, self.indices, self.colors)
        if image.mode in ("1", "L") and all(red == green == blue for red, green, blue in self.colors.colors):
            try:
                return self.colors.decode(image, name)
            except DataError as error:
                hint = "grey masks are read by colour, as all colours are grey; remove `colors` if they are indices"
                raise DataError(f"{error}; {hint}") from None
        return self.indices.decode(image, name)

    def remark(self, data: bytes, name: str) -> str | None:
        """Return what is odd about a label file that can be decoded: that its palette shows other classes."""
        image = open_mask(data, name)
        if image.mode != "P" or self.colors is None:
            return None
        try:
            shown = ColorDecoder(self.colors.colors).decode(image, name)
        except DataError:  # its colours are not those of the classes
            return None
        different = int((shown != self(data, name)).sum())
        if not different:
            return None
        return (
            f"by the colours of its palette {different} of {shown.size} pixels of {name} have other classes; "
            "its indices count: if the colours are right, write it as RGB"
        )

    def _decode_palette(self, image: Image.Image, name: str, indices: IndexDecoder, colors: ColorDecoder) -> np.ndarray:
        strict = ColorDecoder(colors.colors)
        if self.palette_first:
            return colors.decode(image, name)
        unknown = indices.unknown_values(image, name)
        if not unknown:
            return indices.decode(image, name)
        try:
            return strict.decode(image, name)
        except DataError as error:
            if indices.unknown is not None:
                return indices.decode(image, name)
            listed = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
            raise DataError(f"{error}; by index, {listed} is no class and not ignored") from None

    def description(self) -> dict[str, Any]:
        """See :class:`hyperseg.data.dataset.LabelDecoder`."""
        parts = {"indices": self.indices, "colors": self.colors}
        described = {key: part.description() for key, part in parts.items() if part is not None}
        return {"encoding": "mask", "palette_first": self.palette_first, **described}


def _runs(values: Iterable[int]) -> list[tuple[int, int]]:
    """Return the runs of consecutive numbers: 0, 1, 2, 255 -> (0, 2), (255, 255)."""
    runs: list[tuple[int, int]] = []
    for value in sorted(values):
        if runs and runs[-1][1] == value - 1:
            runs[-1] = (runs[-1][0], value)
        else:
            runs.append((value, value))
    return runs


def identity(classes: int, ignored: Iterable[int] = (IGNORED,)) -> IndexDecoder:
    """Return the decoder of files whose values are the class indices; the values `ignored` become 255."""
    return IndexDecoder({**{index: index for index in range(classes)}, **dict.fromkeys(ignored, IGNORED)})
