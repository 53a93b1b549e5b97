"""Images and masks that belong together by their names."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hyperseg._files import printable
from hyperseg.data.dataset import Item
from hyperseg.data.errors import DataError
from hyperseg.data.files import DataFile
from hyperseg.data.listing import by_key, first_of

UNMATCHED = ("refuse", "skip", "keep")
# What tools append to the name of an image for its mask.
_ENDING = "[._-](?:mask|masks|label|labels|labelids|labeltrainids|gt|seg|segmentation|l|color|colour)"


def pairs(
    images: Sequence[DataFile], masks: Sequence[DataFile], folder: Path, unmatched: str
) -> tuple[list[Item], str]:
    """Match masks to images: NAME.png, NAME.jpg.png, NAME_mask.png and other endings that tools append.

    Args:
        folder: of the masks, for messages.
        unmatched: what happens to images without a mask and masks without an image, one of UNMATCHED.

    Returns:
        The items, and a note on what was left out, empty if nothing was.

    Raises:
        DataError: an image has two masks, or, unless `unmatched` says otherwise, none; or a mask has no image.
    """
    named = by_key(images, lambda file: file.stem, "images")
    full = {os.path.basename(file.path): name for name, file in named.items()}
    found: dict[str, DataFile] = {}
    strangers = []
    for mask in masks:
        name = _owner(mask.stem, named, full)
        if name is None:
            strangers.append(mask)
        elif name in found:
            raise DataError(f"{named[name]} has two masks, {found[name]} and {mask}; remove one")
        else:
            found[name] = mask
    return settle(named, found, strangers, folder, unmatched)


def settle(
    images: Mapping[str, DataFile],
    masks: Mapping[str, DataFile],
    strangers: Sequence[DataFile],
    folder: Path,
    unmatched: str,
) -> tuple[list[Item], str]:
    """Return items and a note as :func:`pairs` does, of images and their masks by name, and masks without an image."""
    bare = [file for name, file in images.items() if name not in masks]
    if unmatched == "refuse" and (bare or strangers):
        raise DataError(_refusal(bare, strangers, len(images), folder))
    keep = unmatched == "keep"
    items = [Item(name, image, masks.get(name)) for name, image in images.items() if keep or name in masks]
    note = f"; left out {first_of(strangers, 'mask')} without an image" if strangers else ""
    if bare:
        note += f"; {'kept' if keep else 'left out'} {first_of(bare, 'image')} without a mask"
    return items, note


def check_unmatched(unmatched: str) -> None:
    """Raise DataError for a value that is not one of UNMATCHED."""
    if unmatched not in UNMATCHED:
        raise DataError(f"unmatched={printable(str(unmatched))!r} is not known; give {', '.join(UNMATCHED)}")


def _owner(stem: str, named: Mapping[str, DataFile], full: Mapping[str, str]) -> str | None:
    """Return the name of the image that a mask belongs to; the same name counts first."""
    if stem in named:
        return stem
    if stem in full:
        return full[stem]
    match = re.fullmatch(f"(.+?){_ENDING}", stem, re.IGNORECASE)
    return match[1] if match and match[1] in named else None


def _refusal(bare: Sequence[DataFile], strangers: Sequence[DataFile], total: int, folder: Path) -> str:
    parts = []
    if bare:
        wanted = f"looked for {printable(bare[0].stem)}.png, {printable(bare[0].stem)}_mask.png and the like"
        parts.append(f"{first_of(bare, 'image')} of {total} without a mask; {wanted} in {printable(folder)}")
    if strangers:
        parts.append(f"{first_of(strangers, 'mask')} without an image of that name")
    return f"{'; '.join(parts)}; add what is missing, or give the option unmatched=skip to leave them out"
