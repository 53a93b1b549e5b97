"""What a request may say: the parameters in its query, and the bytes of an image. Nothing in it is a path."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from hyperseg._text import parse_sides
from hyperseg.serve.errors import RequestError, shown
from hyperseg.serve.limits import Limits

Size = tuple[int, int]

# The formats that browsers write and show, by their first bytes, and the names of Pillow's decoders.
KINDS: dict[str, re.Pattern[bytes]] = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "AVIF": re.compile(rb"....ftyp(?:avif|avis)", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
}
_NAMES = "JPEG, PNG, WebP, AVIF or GIF"
_STEP = 32  # of the sides of a fitted size
PARAMETERS = ("network", "backend", "size")


@dataclass(frozen=True)
class Query:
    """The parameters of a request. size: "fit", "model", "native" or (H, W)."""

    network: str
    backend: str
    size: str | Size


def parse_query(
    items: Sequence[tuple[str, str]], networks: Collection[str], backends: Collection[str], default: Query
) -> Query:
    """Return the parameters of a request, each at most once, with those of `default` where it gives none.

    Raises RequestError: a parameter is unknown, given twice, or out of range.
    """
    given: dict[str, str] = {}
    for name, value in items:
        if name not in PARAMETERS:
            message = f"there is no parameter {shown(name)}; the parameters are {', '.join(PARAMETERS)}"
            raise RequestError(400, "unknown_parameter", message)
        if name in given:
            raise RequestError(400, "repeated_parameter", f"{name} is given twice; give it once")
        given[name] = value
    network = _choice("network", given.get("network", default.network), networks)
    backend = _choice("backend", given.get("backend", default.backend), backends)
    return Query(network, backend, parse_size(given["size"]) if "size" in given else default.size)


def parse_size(text: str) -> str | Size:
    """Parse "fit", "model", "native" or HEIGHTxWIDTH. Raises RequestError."""
    if text in ("fit", "model", "native"):
        return text
    # Digits are counted before they are parsed: a long number would take its time.
    sides = parse_sides(text) if len(text) <= 11 and text.isascii() else None
    if sides is None:
        message = f"size {shown(text)} is not understood; give fit, model, native or HEIGHTxWIDTH such as 512x1024"
        raise RequestError(400, "bad_size", message)
    return sides


def network_size(size: str | Size, image: Size, resolution: Size, limits: Limits) -> Size:
    """Return the size (H, W) that the network runs at for an image.

    "fit": about as many pixels as `resolution`, in the shape of the image, and not larger than it.
    Raises RequestError: the size is too small or too large.
    """
    if size == "fit":
        return fitted(image, resolution[0] * resolution[1], limits)
    chosen = {"model": resolution, "native": image}[size] if isinstance(size, str) else size
    height, width = chosen
    if not limits.least_side <= min(chosen) <= max(chosen) <= limits.most_side:
        what = "the image" if size == "native" else "size"
        message = f"{what} is {height}x{width}; each side may have {limits.least_side} to {limits.most_side} pixels"
        raise RequestError(422, "bad_size", f"{message}; size=fit takes any image")
    if height * width > limits.network_pixels:
        most = f"the network runs at {limits.network_pixels:,} pixels at most"
        raise RequestError(422, "bad_size", f"{height}x{width} are {height * width:,} pixels; {most}; give size=fit")
    return chosen


def fitted(image: Size, pixels: int, limits: Limits) -> Size:
    """Return a size of about `pixels` in the shape of the image, with sides that are multiples of 32."""
    scale = min((pixels / (image[0] * image[1])) ** 0.5, 1.0)
    most = limits.most_side // _STEP * _STEP
    least = -(-limits.least_side // _STEP) * _STEP
    height, width = (min(max(round(side * scale / _STEP) * _STEP, least), most) for side in image)
    return height, width


def check_kind(head: bytes) -> None:
    """Check the first bytes of an image file. Raises RequestError for any other kind than those of `KINDS`."""
    if not head:
        raise RequestError(400, "empty", "the request has no body; send the bytes of an image file")
    if not any(pattern.match(head) for pattern in KINDS.values()):
        message = f"this is no image of a kind that is read here; send {_NAMES}"
        raise RequestError(415, "unknown_kind", message)


def check_content_type(value: str | None) -> None:
    """Check the Content-Type, which may be left out. Raises RequestError."""
    kind = (value or "").partition(";")[0].strip().lower()
    if not kind or kind == "application/octet-stream" or re.fullmatch(r"image/[a-z0-9.+-]+", kind):
        return
    advice = "send the bytes of the file as the body, with Content-Type: image/jpeg or application/octet-stream"
    raise RequestError(415, "content_type", f"the body is {shown(kind)}; {advice}")


def _choice(what: str, value: str, known: Collection[str]) -> str:
    if value not in known:
        names = ", ".join(known)
        raise RequestError(400, f"unknown_{what}", f"there is no {what} {shown(value)} here; give {names}")
    return value
