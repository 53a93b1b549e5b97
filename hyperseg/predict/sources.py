"""Sources yield frames. `ImageSource` reads image files; a video or a camera is a class of its own."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class SourceError(ValueError):
    """An input cannot be read. The message names the input and says what was expected."""


@dataclass(frozen=True)
class Frame:
    """An image to segment.

    name: the name of its outputs, without a suffix; unique within the source.
    image: uint8 [H, W, 3], RGB, upright.
    path: the file that it was read from, if any.
    """

    name: str
    image: np.ndarray
    path: Path | None = None


class Source(Protocol):
    """Any iterable of frames. A length (`len`), if it has one, is used to report progress.

    If one frame cannot be read, the iterator raises SourceError, and goes on with the next frame if it can.
    """

    def __iter__(self) -> Iterator[Frame]: ...


class ImageSource:
    """Image files. A thread reads the next file while the caller works on the current one.

    names: of the frames, see `unique_names`.
    A file that cannot be read raises SourceError; the same iterator then goes on with the next file.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.paths = [Path(path) for path in paths]
        self.names = unique_names(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        return map(_frame, self._read_ahead())  # not a generator, which an exception would end for good

    def _read_ahead(self) -> "Iterator[_Reading]":
        files = zip(self.names, self.paths, strict=True)
        with ThreadPoolExecutor(max_workers=1) as reader:
            readings = ((name, path, reader.submit(read_image, path)) for name, path in files)
            current = next(readings, None)
            while current is not None:
                following = next(readings, None)
                yield current
                current = following


_Reading = tuple[str, Path, Future[np.ndarray]]


def _frame(reading: _Reading) -> Frame:
    name, path, image = reading
    return Frame(name, image.result(), path)


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """Return the image files for `inputs`: files as given, the images directly in a folder, the matches of a pattern.

    The images of a folder or pattern are sorted; a file named twice is listed once.
    Raises SourceError for a missing file, and for a folder or pattern without images.
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
            raise SourceError(f"the folder {given} contains no image; {_EXPECTED}")
        return images
    if path.exists():
        return [path]
    if glob.has_magic(given):
        images = _only_images(map(Path, glob.glob(given, recursive=True)))
        if not images:
            raise SourceError(f"the pattern {given} matches no image; {_EXPECTED}")
        return images
    raise SourceError(f"there is no file {given}; give an image, a folder of images or a pattern like 'images/*.jpg'")


_EXPECTED = f"files ending in {' '.join(IMAGE_SUFFIXES)} were looked for"


def _only_images(paths: Iterable[Path]) -> list[Path]:
    named = (path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in named if path.is_file())


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for the outputs of each file: its stem, or more of its path if several files have the same stem.

    a/1.jpg, b/1.jpg -> a_1, b_1; 1.jpg, 1.png -> 1_jpg, 1_png; numbers if that is not enough. Names differ in more than
    case, because some file systems ignore it.
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
    for members in sorted(groups.values(), key=len):  # files whose stem is unique keep it
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
    """Read an image file as uint8 [H, W, 3] RGB, upright (its EXIF orientation is applied); of an animation, the start.

    Grey becomes three equal channels, 16 bits are scaled to 8, transparent parts are blended with white.
    Raises SourceError if the file is missing, empty, not an image, truncated, or has values that do not map to RGB.
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
        raise SourceError(f"{path} has too many pixels to be opened safely; crop or shrink it first") from None
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
    """Scale grey values to 8 bits: integers from 16 bits, floats from 0..1. Pillow's conversion would clip at 255."""
    top = 1.0 if values.dtype.kind == "f" else 65535
    if not (values.min() >= 0 and values.max() <= top):  # also catches NaN
        raise _UnclearPixels(f"has grey values from {values.min()} to {values.max()} where 0 to {top:g} was expected")
    return np.rint(values.astype(np.float32) * (255.0 / top)).astype(np.uint8)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
