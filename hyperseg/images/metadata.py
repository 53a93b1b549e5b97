"""JPEG and PNG files without their metadata, and the orientation that the metadata gives.

A decoder that reads metadata along with the pixels refuses a whole photo for a broken EXIF block, a text of more than a
megabyte or a colour profile cut short. So it gets the parts of the file that the pixels depend on, and nothing else.
"""

import re
import struct
import zlib

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
# The start of a scan, and the markers without a length, which no file has before it.
_JPEG_PIXELS = [bytes([marker]) for marker in (0xDA, *range(0x00, 0xC0), *range(0xD0, 0xDA))]
_ORIENTATION = 0x0112
_MOST_TEXT = 2**20  # bytes of a compressed text in which an orientation is looked for


def without_metadata(data: bytes) -> tuple[bytes, int | None]:
    """Return the file of a JPEG or PNG without its metadata, and its orientation, 1 to 8 as in EXIF.

    Of a JPEG with several images and of an animated PNG only the first image stays. Files of another kind are returned
    unchanged, with None.

    Raises:
        ValueError: the pixels of a PNG do not match their checksum.
    """
    if data.startswith(_JPEG):
        return _without_jpeg_metadata(data)
    if data.startswith(_PNG):
        return _without_png_metadata(data)
    return data, None


def orientation(exif: list[bytes], xmp: list[bytes]) -> int:
    """Return the orientation, 1 to 8, in the first of these blocks that gives a valid one; 1 if none does."""
    found = [_exif_orientation(block) for block in exif] + [_xmp_orientation(block) for block in xmp]
    return next((value for value in found if 1 <= value <= 8), 1)


def _without_jpeg_metadata(data: bytes) -> tuple[bytes, int]:
    view, kept, at = memoryview(data), [data[:2]], 2
    exif, xmp = [], []
    while data[at : at + 1] == b"\xff":
        marker = data[at + 1 : at + 2]
        if marker == b"\xff":  # padding
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _JPEG_PIXELS or not at + 4 <= end <= len(data):  # the rest, damaged or not, is the decoder's
            break
        body = data[at + 4 : end]
        exif += [body] * (marker == b"\xe1" and body.startswith(b"Exif\0"))
        xmp += [body] * (marker == b"\xe1" and body.startswith(b"http://ns.adobe.com/xap/"))
        if _concerns_jpeg_pixels(marker, body):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, view[at:]]), orientation(exif, xmp)


def _concerns_jpeg_pixels(marker: bytes, body: bytes) -> bool:
    if marker == b"\xe0":
        return body.startswith(b"JFIF\0") and len(body) >= 14  # the colours are YCbCr
    if marker == b"\xee":
        return body.startswith(b"Adobe") and len(body) >= 12  # the colours are RGB, YCbCr, CMYK or YCCK
    return not (b"\xe0" <= marker <= b"\xef" or marker == b"\xfe")


def _without_png_metadata(data: bytes) -> tuple[bytes, int]:
    view, kept, at = memoryview(data), [memoryview(data)[: len(_PNG)]], len(_PNG)
    exif, xmp = [], []
    while at < len(data):
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        concerns_pixels = kind[:1].isupper() or kind == b"tRNS"
        if end > len(data) or not kind.isalpha():
            kept += [view[at:]] * (concerns_pixels or not kind.isalpha())  # for the decoder to refuse
            break
        if concerns_pixels:
            if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise ValueError(f"its {kind.decode()} chunk does not match its checksum")
            kept.append(view[at:end])
        elif kind == b"eXIf":
            exif.append(data[at + 8 : end - 4])
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            key, text = _png_text(kind, data[at + 8 : end - 4])
            exif += [_raw_profile(text)] * (key in (b"Raw profile type exif", b"Raw profile type APP1"))
            xmp += [text] * (key == b"XML:com.adobe.xmp")
        at = end
    return b"".join(kept), orientation(exif, xmp)


def _png_text(kind: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Return the key of a text chunk and the beginning of its text."""
    key, _, text = body.partition(b"\0")
    packed = kind == b"zTXt"
    if packed:
        text = text[1:]
    elif kind == b"iTXt":
        packed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
    if packed:
        try:
            text = zlib.decompressobj().decompress(text, _MOST_TEXT)
        except zlib.error:
            text = b""
    return key, text


def _raw_profile(text: bytes) -> bytes:
    """Return an EXIF block that ImageMagick wrote as text: its name, its length and hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
    except ValueError:
        return b""


def _exif_orientation(block: bytes) -> int:
    """Return the orientation in the first directory of an EXIF block; 0 if there is none, or not as EXIF has it."""
    block = re.sub(b"^(?:Exif\0.)+", b"", block, flags=re.DOTALL)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 0
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (entries,) = struct.unpack_from(f"{order}H", block, start)
        for entry in range(entries):
            at = start + 2 + 12 * entry
            tag, kind, values = struct.unpack_from(f"{order}HHI", block, at)
            if tag == _ORIENTATION and values == 1:
                form = {1: "B", 3: "H", 4: "I"}.get(kind)
                return 0 if form is None else struct.unpack_from(f"{order}{form}", block, at + 8)[0]
    except struct.error:  # the block is cut short
        pass
    return 0


def _xmp_orientation(block: bytes) -> int:
    found = re.search(rb"tiff:Orientation(?:=[\"']|>)([1-8])", block)
    return 0 if found is None else int(found[1])
