"""Where frames come from. A source is anything with a length (or None) that yields `Frame`s; here: image files.

A video or a camera is another class with the same two methods; the pipeline and the sinks see frames only.
"""

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class SourceError(ValueError):
    """An input that cannot be read; the message names it and says what was expected."""


@dataclass(frozen=True)
class Frame:
    """One picture to segment.

    name: what its outputs are called, unique within the source, without a suffix.
    image: uint8 [H, W, 3], RGB, upright.
    path: the file it came from, if it came from one.
    """

    name: str
    image: np.ndarray
    path: Path | None = None


class Source(Protocol):
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Frame]: ...


class ImageSource:
    """Image files, read one ahead on a thread while the network works.

    A file that cannot be read raises SourceError, or goes to `on_error` and is passed over.
    """

    def __init__(self, paths: Sequence[str | Path], on_error: Callable[[SourceError], None] | None = None) -> None:
        self.paths = [Path(path) for path in paths]
        self.names = unique_names(self.paths)
        self._on_error = on_error

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        todo = iter(zip(self.names, self.paths, strict=True))
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = deque((name, path, reader.submit(read_image, path)) for name, path in islice(todo, 1))
            while ahead:
                name, path, reading = ahead.popleft()
                ahead.extend((name, path, reader.submit(read_image, path)) for name, path in islice(todo, 1))
                try:
                    image = reading.result()
                except SourceError as error:
                    if self._on_error is None:
                        raise
                    self._on_error(error)
                else:
                    yield Frame(name, image, path)


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """The image files meant by `inputs`: files as given, the images directly in a folder, the images a pattern matches.

    Folders and patterns come sorted; a file meant twice is listed once.
    Raises SourceError for a file that is missing, and for a folder or pattern without images.
    """
    found: dict[str, Path] = {}
    for given in inputs:
        for path in _expand(str(given)):
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _expand(given: str) -> list[Path]:
    path = Path(given)
    if path.is_dir():
        images = _only_images(path.iterdir())
        if not images:
            raise SourceError(f"the folder {given} holds no image; {_EXPECTED}")
        return images
    if path.exists():
        return [path]
    if glob.has_magic(given):
        images = _only_images(map(Path, glob.glob(given, recursive=True)))
        if not images:
            raise SourceError(f"the pattern {given} matches no image; {_EXPECTED}")
        return images
    raise SourceError(f"there is no file {given}; give an image, a folder of images or a pattern like 'photos/*.jpg'")


_EXPECTED = f"files ending in {' '.join(IMAGE_SUFFIXES)} were looked for"


def _only_images(paths: Iterable[Path]) -> list[Path]:
    named = (path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in named if path.is_file())


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A name for the outputs of each file: its stem, or more of its path where several files share a stem.

    a/1.jpg, b/1.jpg -> a_1, b_1; 1.jpg, 1.png -> 1_jpg, 1_png; numbers where that is not enough. Case does not tell
    names apart, since on some file systems it does not tell files apart.
    """
    kinds: list[Callable[[Path], str]] = [
        lambda path: path.stem,
        lambda path: f"{path.stem}_{path.suffix.lstrip('.')}",
        lambda path: f"{path.absolute().parent.name}_{path.stem}",
        lambda path: f"{path.absolute().parent.name}_{path.stem}_{path.suffix.lstrip('.')}",
    ]
    names: dict[int, str] = {}
    taken: set[str] = set()
    groups: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        groups.setdefault(path.stem.casefold(), []).append(index)
    for members in sorted(groups.values(), key=len):  # those with a stem to themselves keep it
        for kind in kinds:
            proposed = [kind(paths[index]) for index in members]
            keys = {name.casefold() for name in proposed}
            if len(keys) == len(members) and not keys & taken:
                break
        else:
            proposed, number = [], 0
            for index in members:
                while (name := f"{paths[index].stem}-{(number := number + 1)}").casefold() in taken:
                    pass
                proposed.append(name)
            keys = {name.casefold() for name in proposed}
        taken |= keys
        names.update(zip(members, proposed, strict=True))
    return [names[index] for index in range(len(paths))]


def read_image(path: str | Path) -> np.ndarray:
    """An image file as uint8 [H, W, 3] RGB, turned upright as its EXIF orientation says; of several frames, the first.

    Grey becomes three equal channels, 16 bits are scaled to 8, transparent parts are laid on white.
    Raises SourceError when the file is missing, empty, not an image, cut short, or of a kind without a defined RGB.
    """
    path = Path(path)
    if not path.exists():
        raise SourceError(f"there is no file {path}; give an image file")
    if path.is_dir():
        raise SourceError(f"{path} is a folder; give an image file")
    try:
        if path.stat().st_size == 0:
            raise SourceError(f"{path} is empty (0 bytes); give an image file")
        with Image.open(path) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except SourceError:
        raise
    except PermissionError:
        raise SourceError(f"{path} may not be read by this user; change its permissions") from None
    except UnidentifiedImageError:
        raise SourceError(f"{path} is not an image of a known kind; give a JPEG, PNG, TIFF or the like") from None
    except Image.DecompressionBombError:
        raise SourceError(f"{path} has too many pixels to be opened safely; cut or shrink it first") from None
    except _UnclearPixels as error:
        raise SourceError(f"{path} {error}; save it as an 8-bit RGB image first") from None
    except Exception as error:  # decoders raise nearly anything on a damaged file, and one file must not end a folder
        raise SourceError(f"{path} is damaged and could not be read ({_brief(error)}); leave it out") from None


class _UnclearPixels(ValueError):
    pass


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        return np.repeat(_to_8_bit(np.asarray(image))[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Grey of more than 8 bits: integers taken as 16-bit, floats as 0..1. Pillow's own conversion would clip at 255."""
    top = 1.0 if values.dtype.kind == "f" else 65535
    if not (values.min() >= 0 and values.max() <= top):  # also catches NaN
        raise _UnclearPixels(f"has grey values from {values.min()} to {values.max()} where 0 to {top:g} was expected")
    return np.rint(values.astype(np.float32) * (255.0 / top)).astype(np.uint8)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
