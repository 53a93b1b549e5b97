"""A data set: the images of one split, their label files, and how the labels become class indices."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hyperseg._text import counted
from hyperseg.data.errors import DataError
from hyperseg.data.files import DataFile
from hyperseg.data.labels import LabelSet
from hyperseg.images.errors import SourceError
from hyperseg.images.reading import decode_image


@dataclass(frozen=True)
class Item:
    """One image of a data set.

    name: unique in the split; the files of its predictions are called so.
    label: None if the image has no labels, as in test splits whose labels are not published.
    """

    name: str
    image: DataFile
    label: DataFile | None


class LabelDecoder(Protocol):
    """Turns the contents of a label file into class indices."""

    def __call__(self, data: bytes, name: str) -> np.ndarray:
        """Return uint8 [H, W]: classes of the label set, or its ignore index.

        Raises DataError, which begins with `name`, for a file that is damaged or contains values without a meaning.
        """
        ...

    def description(self) -> dict[str, Any]:
        """Return what decides the result (label map, colours, ignored values), to tell caches and manifests apart."""
        ...


class Dataset:
    """Images and labels of one split.

    Args:
        name: as the command line takes it, such as "camvid-kaggle".
        split: such as "train".
        form: which published form of the data was found, as a line for logs: "CamVid as SegNet published it: ...".
        label_set: names, colours and ignore index of the labels that :meth:`labels` returns.
        items: sorted by name.
        decoder: of label files.

    Raises:
        DataError: there are no items, or two have the same name.
    """

    def __init__(
        self,
        name: str,
        split: str,
        form: str,
        label_set: LabelSet,
        items: Iterable[Item],
        decoder: LabelDecoder,
    ) -> None:
        self.name, self.split, self.form, self.label_set, self.decoder = name, split, form, label_set, decoder
        self.items: Sequence[Item] = tuple(sorted(items, key=lambda item: item.name))
        if not self.items:
            raise DataError(f"the split {split!r} of {name} is empty; {form}")
        for one, two in zip(self.items, self.items[1:], strict=False):
            if one.name == two.name:
                raise DataError(f"two images of {name} are called {one.name}: {one.image} and {two.image}; rename one")

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        counts = f"{counted(len(self), 'image')}, {counted(len(self.label_set), 'class')}"
        return f"{self.name} {self.split}: {counts}; {self.form}"

    @property
    def has_labels(self) -> bool:
        """Whether every image has a label file."""
        return all(item.label is not None for item in self.items)

    def image(self, index: int) -> np.ndarray:
        """Return an image as uint8 [H, W, 3] RGB. Raises DataError."""
        file = self.items[index].image
        try:
            return decode_image(file.read(), str(file))
        except SourceError as error:
            raise DataError(str(error)) from None

    def labels(self, index: int) -> np.ndarray:
        """Return labels as uint8 [H, W]: class indices and `label_set.ignore_index`. Raises DataError."""
        item = self.items[index]
        if item.label is None:
            raise DataError(f"{item.image} has no labels: the split {self.split!r} of {self.name} has none")
        return self.decoder(item.label.read(), str(item.label))

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an image and its labels. Raises DataError, also if their sizes differ."""
        image, labels = self.image(index), self.labels(index)
        if image.shape[:2] != labels.shape:
            item = self.items[index]
            sizes = f"{image.shape[0]}x{image.shape[1]} but {item.label} is {labels.shape[0]}x{labels.shape[1]}"
            raise DataError(f"{item.image} is {sizes}; an image and its labels have one size (height x width)")
        return image, labels

    def subset(self, indices: Iterable[int]) -> "Dataset":
        """Return a data set of some of the images, for example to look at or to debug with."""
        chosen = [self.items[index] for index in indices]
        return Dataset(self.name, self.split, self.form, self.label_set, chosen, self.decoder)

    def manifest(self) -> dict[str, Any]:
        """Return what identifies the data: set, split, classes, label decoding, and a fingerprint of each file.

        File names are without their folders, so a copy elsewhere has the same manifest if its times are kept. Takes one
        `stat` per file. Raises DataError if a file is gone.
        """
        files = [
            [item.name, item.image.fingerprint(), item.label.fingerprint() if item.label is not None else None]
            for item in self.items
        ]
        return {
            "data": self.name,
            "split": self.split,
            "form": self.form,
            "label_set": dataclasses.asdict(self.label_set),
            "labels": self.decoder.description(),
            "files": files,
        }


def manifest_hash(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
