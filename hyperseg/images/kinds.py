"""Kinds of image files: those that are read, and those that look like images but are not read, with what helps."""

import contextlib
import functools
import importlib
import logging
import re
from pathlib import PurePath

from PIL import Image, ImageFile

logger = logging.getLogger("hyperseg.images")

# Formats that Pillow opens and that are no images of a scene: pages for a printer, which another program draws,
# measurements without a range of values, and videos. Formats that Pillow only names (stubs) are left out too.
_NO_PHOTOS = ("EPS", "FITS", "FLI", "IPTC", "MPEG")

# Packages that add a format to Pillow: the module, the function that registers it (None: the import does), the package
# to install, the suffixes.
_PLUGINS = (
    ("pillow_heif", "register_heif_opener", "pillow-heif", (".heic", ".heif", ".hif")),
    ("pillow_jxl", None, "pillow-jxl-plugin", (".jxl",)),
)
_RAW = re.compile(
    r"\.(3fr|arw|cr2|cr3|crw|dcr|dng|erf|fff|iiq|k25|kdc|mef|mos|mrw|nef|nrw|orf|pef|raf|raw|rw2|rwl|sr2|srf|srw|x3f)"
)
_OTHERS = re.compile(r"\.(ai|avif|eps|exr|fit|fits|hdr|jng|jxr|pict|psb|svg|wdp|webp|xcf)")

# The first bytes of the formats that cameras, phones and browsers write.
_HEADS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|II\*\0|MM\0\*|RIFF....WEBP|\0\0\0\x0cjP  |....ftyp(?:avif|avis)",
    re.DOTALL,
)
_HEIF = re.compile(rb"....ftyp(?:hei[cmsx]|hev[cmx]|mif1|msf1)", re.DOTALL)


def readable_suffixes() -> dict[str, str]:
    """Return the suffixes of the files that are read, in lower case with their dot, and the name of their format."""
    _load_plugins()
    formats = {suffix: kind for suffix, kind in Image.registered_extensions().items() if _is_readable(kind)}
    return {**formats, ".mpo": "JPEG"}  # a JPEG with further images, which Pillow opens as one


def readable_formats() -> list[str]:
    """Return the names of Pillow's formats that are read, in its order of trying them."""
    readable = set(readable_suffixes().values())
    return [kind for kind in Image.ID if kind in readable]


def reason_unread(name: str) -> str | None:
    """Return why a file with this name is an image that cannot be read, and what helps; None for any other file."""
    suffix = PurePath(name).suffix.lower()
    if suffix in readable_suffixes():
        return None
    for _, _, package, suffixes in _PLUGINS:
        if suffix in suffixes:
            return f"{suffix} files need {package}; run pip install 'hyperseg[images]'"
    if is_raw(name):
        return "it is a raw photo; convert it to JPEG, PNG or TIFF first"
    if _OTHERS.fullmatch(suffix):
        return f"{suffix} files are not read here; convert it to JPEG, PNG or TIFF first"
    return None


def is_raw(name: str) -> bool:
    """Return whether a file with this name is a camera's raw data, of which Pillow would read a small preview."""
    return _RAW.fullmatch(PurePath(name).suffix.lower()) is not None


def has_odd_suffix(name: str) -> bool:
    """Return whether a name says nothing about the kind of file: photo, photo.jpg~, photo.jpg_large, photo.jpg.1."""
    return re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]{0,9}", PurePath(name).suffix) is None


def begins_like_an_image(head: bytes) -> bool:
    """Return whether a file with these first 16 bytes is an image of a common kind."""
    return bool(_HEADS.match(head)) or is_heif(head)


def is_heif(head: bytes) -> bool:
    """Return whether a file with these first 16 bytes is a HEIC or HEIF photo, whatever its name."""
    return bool(_HEIF.match(head))


def _is_readable(kind: str) -> bool:
    if kind in _NO_PHOTOS or kind not in Image.OPEN:
        return False
    opener = Image.OPEN[kind][0]
    return not (isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile))


@functools.cache
def _load_plugins() -> None:
    for module, register, package, _ in _PLUGINS:
        with contextlib.suppress(ImportError, OSError):
            plugin = importlib.import_module(module)
            if register is not None:
                getattr(plugin, register)()
            logger.debug("%s is used", package)
