"""Label files: decoding of every encoding that labelling tools write, exactly or not at all."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from hyperseg.data.errors import DataError
from hyperseg.images.errors import brief


def read_indices(data: bytes, name: str) -> np.ndarray:
    """Decode a label file of indices as int64 [H, W]: grey, palette (its indices, not its colours), 1 or 16 bits.

    Raises DataError for a damaged file, for colours, and for values that are not whole numbers.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise DataError(f"{name} is damaged and could not be read ({brief(error)}); write it again") from None
    if values.ndim != 2:
        raise DataError(f"{name} has colours (mode {mode}); give the colour of each class, or write class indices")
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.rint(values))).all():
        raise DataError(f"{name} has values that are not whole numbers; write class indices")
    return values.astype(np.int64)


@dataclass(frozen=True)
class IndexDecoder:
    """Maps the values of an index image to classes; a value that is not in the map is an error.

    values: value in the file -> class index, or the ignore index.
    """

    values: Mapping[int, int] = field()

    def __call__(self, data: bytes, name: str) -> np.ndarray:
        """See :class:`hyperseg.data.dataset.LabelDecoder`."""
        indices = read_indices(data, name)
        present, inverse = np.unique(indices, return_inverse=True)
        unknown = [int(value) for value in present if int(value) not in self.values]
        if unknown:
            listed = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
            raise DataError(f"{name} contains {listed}, which is no class and not ignored; map it, or correct the file")
        table = np.array([self.values[int(value)] for value in present], dtype=np.uint8)
        return table[inverse.reshape(indices.shape)]

    def description(self) -> dict[str, Any]:
        """See :class:`hyperseg.data.dataset.LabelDecoder`."""
        return {"encoding": "index", "values": {str(value): index for value, index in sorted(self.values.items())}}
