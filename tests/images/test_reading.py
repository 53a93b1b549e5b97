"""Reading images: every mode and orientation becomes upright RGB; files that cannot be read get a clear message."""

import os
import socket
import struct
import sys
import warnings
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hyperseg.images import SourceError, decode_image, kinds, read_image, reading
from hyperseg.images.errors import TooManyPixelsError

ORIENTATION = 0x0112
# How a camera stores an upright image with orientation k. EXIF gives the sides of the scene that row 0 and column 0 of
# the file show: 1 top left, 2 top right, 3 bottom right, 4 bottom left, 5 left top, 6 right top, 7 right bottom,
# 8 left bottom.
STORED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: image[:, ::-1].transpose(1, 0, 2),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: image[::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("name", ["voc", "astronaut", "chelsea", "coffee", "rocket"])
def test_images_are_read_unchanged(images, tmp_path, name):
    Image.fromarray(images[name]).save(tmp_path / "image.png")
    image = read_image(tmp_path / "image.png")
    assert image.dtype == np.uint8
    assert np.array_equal(image, images[name])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(images, tmp_path, suffix, orientation):
    """An image that a turned camera wrote is read upright."""
    upright = Image.fromarray(images["chelsea"][:60, :100])
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(upright))))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"turned{suffix}"
    options = {".jpg": {"quality": 98, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    stored.save(path, exif=exif, **options)
    if orientation > 4 and suffix != ".tif":  # Pillow turns TIFF itself
        assert Image.open(path).size == (60, 100)
    image = read_image(path)
    assert image.shape == (60, 100, 3)
    difference = np.abs(image.astype(int) - np.asarray(upright))
    assert difference.max() <= (0 if suffix != ".jpg" else 40)
    assert difference.mean() < 2


def test_grey_and_two_colour(images, tmp_path):
    grey = np.asarray(Image.fromarray(images["coffee"]).convert("L"))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[:, :, None], 3, axis=2))
    Image.fromarray(grey > 99).save(tmp_path / "two.png")
    assert np.array_equal(read_image(tmp_path / "two.png")[:, :, 1], (grey > 99) * np.uint8(255))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_is_scaled_not_clipped(images, tmp_path, suffix):
    grey = np.asarray(Image.fromarray(images["coffee"]).convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / f"deep{suffix}")
    assert np.array_equal(read_image(tmp_path / f"deep{suffix}")[:, :, 2], grey)


def test_32_bit_and_float_grey(images, tmp_path):
    grey = np.asarray(Image.fromarray(images["coffee"]).convert("L"))
    Image.fromarray(grey.astype(np.int32) * 257).save(tmp_path / "int.tif")
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "float.tif")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "unclear.tif")
    assert np.array_equal(read_image(tmp_path / "int.tif")[:, :, 0], grey)
    assert np.array_equal(read_image(tmp_path / "float.tif")[:, :, 0], grey)
    with pytest.raises(SourceError, match=r"unclear\.tif has grey values from .* where 0 to 1 was expected"):
        read_image(tmp_path / "unclear.tif")


def test_transparency_is_blended_with_white(images, tmp_path):
    original = images["rocket"][:50, :70]
    alpha = np.full((50, 70, 1), 255, np.uint8)
    alpha[:, :35] = 0
    Image.fromarray(np.concatenate([original, alpha], axis=2)).save(tmp_path / "rgba.png")
    image = read_image(tmp_path / "rgba.png")
    assert (image[:, :35] == 255).all()
    assert np.array_equal(image[:, 35:], original[:, 35:])


def test_palette_images(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8))
    image.putpalette([10, 20, 30, 200, 100, 0, 7, 8, 9])
    image.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png").tolist() == [[[10, 20, 30], [200, 100, 0]], [[200, 100, 0], [7, 8, 9]]]
    image.save(tmp_path / "transparent.png", transparency=2)
    assert read_image(tmp_path / "transparent.png").tolist()[1] == [[200, 100, 0], [255, 255, 255]]


def test_cmyk(images, tmp_path):
    original = Image.fromarray(images["astronaut"][:64, :64])
    original.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").astype(int) - np.asarray(original)).mean() < 4


def test_unreadable_files(images, tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(images["voc"]).save(tmp_path / "whole.jpg")
    Image.fromarray(images["voc"]).save(tmp_path / "whole.png")
    for whole, cut in (("whole.jpg", "cut.jpg"), ("whole.png", "cut.png")):
        content = (tmp_path / whole).read_bytes()
        (tmp_path / cut).write_bytes(content[: len(content) // 2])
    for name, message in {
        "missing.jpg": "there is no file .*missing.jpg; give an image file",
        "": "is a folder; give an image file",
        "empty.jpg": r"empty.jpg is empty \(0 bytes\)",
        "text.png": "text.png is not an image of a known kind",
        "cut.jpg": r"cut.jpg is damaged and could not be read \(.*truncated.*\)",
        "cut.png": r"cut.png is damaged and could not be read \(.*truncated.*\)",
    }.items():
        with pytest.raises(SourceError, match=message):
            read_image(tmp_path / name)


def test_too_many_pixels(images, tmp_path, monkeypatch):
    Image.fromarray(images["voc"]).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SourceError, match=r"large\.png has too many pixels"):
        read_image(tmp_path / "large.png")


# ---------------------------------------------------------------------------------------------------------------------
# Modes, depths and orientations of every container


@pytest.fixture
def scene():
    """A picture of smooth colours, uint8 [20, 30, 3], without any symmetry."""
    y, x = np.mgrid[:20, :30]
    return np.stack([x * 8, y * 12, x + y], axis=2).astype(np.uint8)


LOSSLESS = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "tif": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "LAB"),
    "bmp": ("1", "L", "P", "RGB"),
    "gif": ("L", "P"),
    "tga": ("L", "LA", "P", "RGB", "RGBA"),
    "sgi": ("L", "RGB", "RGBA"),
    "ppm": ("1", "L", "RGB"),
    "pcx": ("1", "L", "P", "RGB"),
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix in LOSSLESS for mode in LOSSLESS[suffix]])
def test_modes(scene, tmp_path, suffix, mode):
    """Pixels come back as Pillow's own conversion shows them."""
    image = Image.fromarray(scene).convert("P" if mode == "PA" else mode)
    expected = np.asarray(image.convert("RGB")).astype(int)
    path = tmp_path / f"a.{suffix}"
    image.convert(mode).save(path)
    difference = np.abs(read_image(path) - expected)
    assert difference.max() <= (3 if mode == "LAB" else 0)


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_turned_tiff(tmp_path, mode, compression):
    """Pillow maps some uncompressed TIFFs from the file and then turns them wrongly; they are decoded instead."""
    upright = np.zeros((6, 9, 3), np.uint8)
    upright[:3, :2] = 255
    for orientation, turn in STORED.items():
        grey = np.ascontiguousarray(turn(upright)[:, :, 0])
        deep = Image.fromarray(grey.astype(np.uint16) * 257)
        image = deep if mode == "I;16" else Image.fromarray(grey).convert(mode)
        image.save(tmp_path / "a.tif", compression=compression, tiffinfo={ORIENTATION: orientation})
        assert np.array_equal(read_image(tmp_path / "a.tif"), upright), orientation


def test_other_kinds_of_jpeg(scene, tmp_path):
    expected = scene.astype(int)
    for name, image, options in (
        ("cmyk", Image.fromarray(scene).convert("CMYK"), {}),
        ("rgb", Image.fromarray(scene), {"keep_rgb": True}),
        ("progressive", Image.fromarray(scene), {"progressive": True, "restart_marker_rows": 1}),
        (
            "several",
            Image.fromarray(scene),
            {"format": "MPO", "save_all": True, "append_images": [Image.new("L", (9, 9))]},
        ),
    ):
        image.save(tmp_path / f"{name}.jpg", quality=100, subsampling=0, **options)
        assert np.abs(read_image(tmp_path / f"{name}.jpg") - expected).max() <= 4, name


def test_animations_and_pages_give_the_first(scene, tmp_path):
    image, other = Image.fromarray(scene), Image.new("RGB", (30, 20), "red")
    for name in ("a.png", "a.gif", "a.tif", "a.webp"):
        first = image.quantize(200) if name == "a.gif" else image
        options = {"lossless": True} if name == "a.webp" else {}
        first.save(tmp_path / name, save_all=True, append_images=[other, image], **options)
        assert np.array_equal(read_image(tmp_path / name), np.asarray(first.convert("RGB"))), name


def test_one_pixel(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        Image.new(mode, (1, 1)).save(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png").shape == (1, 1, 3)


def test_premultiplied_alpha(tmp_path):
    """TIFFs have it; Pillow converts it in steps."""
    rgba = Image.fromarray(np.array([[[200, 100, 0, 255], [200, 100, 0, 0]]], np.uint8))
    assert reading._to_rgb(rgba.convert("RGBa"), 8).tolist() == [[[200, 100, 0], [255, 255, 255]]]
    grey = Image.fromarray(np.array([[[200, 255], [200, 0]]], np.uint8), "LA")
    assert reading._to_rgb(grey.convert("La"), 8).tolist() == [[[200] * 3, [255] * 3]]


def test_transparent_colours_of_png(tmp_path):
    grey = np.array([[0, 40, 200]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "8.png", transparency=40)
    assert read_image(tmp_path / "8.png")[0, :, 0].tolist() == [0, 255, 200]
    row = b"\0" + struct.pack(">3H", 0, 40 * 257, 200 * 257)
    (tmp_path / "16.png").write_bytes(png(row, 3, 1, 16, 0, (b"tRNS", struct.pack(">H", 40 * 257))))
    assert read_image(tmp_path / "16.png")[0, :, 0].tolist() == [0, 255, 200]
    deep = png(b"\0" + struct.pack(">6H", 0, 0, 0, 4660, 0, 0), 2, 1, 16, 2, (b"tRNS", struct.pack(">3H", 4660, 0, 0)))
    (tmp_path / "rgb16.png").write_bytes(deep)
    with pytest.raises(SourceError, match=r"rgb16\.png has a transparent colour of 16 bits; save it as an 8-bit RGB"):
        read_image(tmp_path / "rgb16.png")


def test_16_bit_colour(tmp_path):
    row = struct.pack(">6H", 0, 257 * 7, 65535, 257 * 200, 257, 0)
    (tmp_path / "a.png").write_bytes(png(b"\0" + row, 2, 1, 16, 2))
    assert read_image(tmp_path / "a.png").tolist() == [[[0, 7, 255], [200, 1, 0]]]


def tiff(pixels, width, height, **tags):
    """An uncompressed TIFF, with the numbers of tags as t256=..."""
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(pixels)}
    entries |= {int(tag[1:]): value for tag, value in tags.items()}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(pixels))
        + pixels
        + struct.pack("<H", len(entries))
        + directory
        + bytes(4)
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff(bytes([10, 20, 30]), 3, 1), [10, 20, 30]),
        (tiff(bytes([10, 20, 30]), 3, 1, t262=0), [245, 235, 225]),
        (tiff(struct.pack("<2H", 65535, 257), 2, 1, t258=16), [255, 1]),
        (tiff(b"\xff\xf0\x00", 2, 1, t258=12), [255, 0]),
        (tiff(b"\x80\x08\x00", 2, 1, t258=12), [128, 128]),
        (tiff(struct.pack("<2H", 65535, 257), 2, 1, t258=16, t262=0), "stores white as 0 in more than 8 bits"),
        (tiff(struct.pack("<2i", 3, 200), 2, 1, t258=32, t339=2), "has 32-bit grey values from 3 to 200"),
        (tiff(struct.pack("<2i", 3, 70000), 2, 1, t258=32, t339=2), "has grey values from 3 to 70000 where 0 to 65535"),
        (tiff(struct.pack("<2f", 0, float("nan")), 2, 1, t258=32, t339=3), "has grey values from nan to nan"),
        (tiff(bytes([10, 20, 30]), 3, 1, t254=1), "begins with a preview, as raw photos do"),
        (tiff(bytes([10, 20, 30]), 3, 1, t50706=1), "begins with a preview, as raw photos do"),
        (tiff(bytes([10, 20, 30]), 3, 1, t262=9), "begins like an image, but is damaged or of an unusual form"),
    ],
)
def test_kinds_of_tiff(tmp_path, content, expected):
    """Right pixels, or a refusal that says why; Pillow itself reads some of these wrongly without an error."""
    (tmp_path / "a.tif").write_bytes(content)
    if isinstance(expected, str):
        with pytest.raises(SourceError, match=rf"a\.tif {expected}.*; save it as an 8-bit RGB image first"):
            read_image(tmp_path / "a.tif")
    else:
        assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == expected


# ---------------------------------------------------------------------------------------------------------------------
# Metadata


def png(rows, width, height, depth, color, *chunks):
    """A PNG of these filtered rows, with chunks before and, if their kind ends in "+", after the pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    before = [chunk(kind, data) for kind, data in chunks if not kind.endswith(b"+")]
    after = [chunk(kind[:-1], data) for kind, data in chunks if kind.endswith(b"+")]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    body = [header, *before, chunk(b"IDAT", zlib.compress(rows)), *after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def exif(orientation, order="<", kind=3, header=b"Exif\0\0", **more):
    """An EXIF block with an orientation of a type: 1 byte, 3 short, 4 long."""
    form = {1: "B3x", 3: "H2x", 4: "I"}[kind]
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return header + mark + struct.pack(f"{order}IHHHI{form}I", 8, 1, ORIENTATION, kind, 1, orientation, 0)


def gps_of_zero_fractions():
    block = b"II*\0" + struct.pack("<IHHHIHHHHIII", 8, 2, ORIENTATION, 3, 1, 6, 0, 0x8825, 4, 1, 38, 0)
    return b"Exif\0\0" + block + struct.pack("<HHHIII", 1, 2, 5, 3, 56, 0) + bytes(24)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
BLOCKS = {
    "little endian": (exif(6), 6),
    "big endian": (exif(6, ">"), 6),
    "long": (exif(6, ">", kind=4), 6),
    "byte": (exif(6, kind=1), 6),
    "doubled header": (exif(6, header=b"Exif\0\0Exif\0\0"), 6),
    "zero fractions": (gps_of_zero_fractions(), 6),
    "cut after the orientation": (exif(6)[:-4], 6),
    "cut within the orientation": (exif(6)[:-9], 1),
    "cut in the header": (exif(6)[:9], 1),
    "empty": (b"Exif\0\0", 1),
    "noise": (b"Exif\0\0" + bytes(range(7, 167)), 1),
    "no such orientation": (exif(77), 1),
    "orientation 0": (exif(0), 1),
    "directory outside": (b"Exif\0\0II*\0" + struct.pack("<I", 2**31), 1),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_blocks(scene, tmp_path, suffix, name):
    """A photo with whole pixels is read, and turned if its block says so, whatever else the block contains."""
    block, orientation = BLOCKS[name]
    path = tmp_path / f"a.{suffix}"
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(scene).save(path, exif=block, **options)
    expected = scene if orientation == 1 else np.rot90(scene, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(read_image(path) - expected.astype(int)).max() <= (4 if suffix == "jpg" else 0)


def test_orientation_in_other_metadata_of_png(scene, tmp_path):
    """XMP, and EXIF as text, which ImageMagick writes. EXIF comes first."""
    rows = b"".join(b"\0" + row.tobytes() for row in scene)
    raw = b"\nexif\n      %d\n%s\n" % (len(exif(6)), exif(6).hex().encode())
    for chunks in (
        [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)],
        [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP))],
        [(b"tEXt", b"Raw profile type exif\0" + raw)],
        [(b"zTXt+", b"Raw profile type APP1\0\0" + zlib.compress(raw))],
        [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.replace(b"6", b"3")), (b"eXIf+", exif(6, header=b""))],
    ):
        (tmp_path / "a.png").write_bytes(png(rows, 30, 20, 8, 2, *chunks))
        assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(scene, -1)), chunks


def test_xmp_of_jpeg(scene, tmp_path):
    Image.fromarray(scene).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP) + data[2:])
    assert read_image(tmp_path / "a.jpg").shape == (30, 20, 3)


def segment(marker, body):
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"note\0\0" + zlib.compress(bytes(3_000_000))),
        (b"zTXt+", b"note\0\0" + zlib.compress(bytes(3_000_000))),
        (b"iTXt", b"note\0\1\0\0\0" + zlib.compress(b"a" * 3_000_000)),
        (b"zTXt", b"note\0\7unknown compression"),
        (b"tEXt", b""),
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(3_000_000))),
        (b"iCCP", b"profile"),
        (b"gAMA", b"\1"),
        (b"pHYs", b"\1"),
        (b"acTL", b""),
        (b"fcTL", b"\0"),
        (b"eXIf", b"\0" * 9),
    ],
    ids=lambda chunk: chunk[0].decode(),
)
def test_metadata_of_png(scene, tmp_path, chunk):
    rows = b"".join(b"\0" + row.tobytes() for row in scene)
    data = png(rows, 30, 20, 8, 2, chunk)
    (tmp_path / "a.png").write_bytes(data)
    assert np.array_equal(read_image(tmp_path / "a.png"), scene)
    kind, body = chunk[0].strip(b"+"), chunk[1]
    if body:
        (tmp_path / "a.png").write_bytes(data.replace(kind + body, kind + bytes([body[0] ^ 1]) + body[1:]))
        assert np.array_equal(read_image(tmp_path / "a.png"), scene), "a wrong checksum of metadata does not matter"


@pytest.mark.parametrize(
    "body",
    [
        (0xE0, b"JFIF\0"),
        (0xE0, b"JFXX\0"),
        (0xE1, b"Exif\0"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"ICC_PROFILE\0\1\2" + bytes(9)),
        (0xE2, b"MPF\0II*\0"),
        (0xE2, b"FPXR\0"),
        (0xED, b"Photoshop 3.0\0" + b"8BIM\4\4"),
        (0xEE, b"Adobe"),
        (0xFE, b""),
    ],
    ids=lambda body: repr(body[1][:9]),
)
def test_metadata_of_jpeg(scene, tmp_path, body):
    Image.fromarray(scene).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment(*body) + b"\xff" + data[2:])
    assert np.abs(read_image(tmp_path / "a.jpg") - scene.astype(int)).max() <= 4


def test_damaged_pixels_of_png(scene, tmp_path):
    """Pillow does not compare checksums of pixels; without that, some changes would give other pixels silently."""
    rows = b"".join(b"\0" + row.tobytes() for row in scene)
    data = bytearray(png(rows, 30, 20, 8, 2))
    data[-20] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(SourceError, match=r"damaged .*its IDAT chunk does not match its checksum"):
        read_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "gif", "bmp", "jp2"])
def test_truncated_files(images, tmp_path, suffix):
    """Cut anywhere, a file is refused, or gives all of its pixels because only metadata is missing."""
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(images["voc"][:40, :50]).save(path)
    data, whole = path.read_bytes(), read_image(path)
    for end in [*range(1, 64), *range(64, len(data) - 12, len(data) // 23)]:
        path.write_bytes(data[:end])
        try:
            found = read_image(path)
        except SourceError:
            continue
        assert np.array_equal(found, whole), end


# ---------------------------------------------------------------------------------------------------------------------
# Files that are no image files


def test_pipes_sockets_and_devices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name in ("pipe", "socket", os.devnull):
            with pytest.raises(SourceError, match=f"{name} is a pipe, socket or device; give an image file"):
                read_image(name)


def test_files_that_may_not_be_read_or_fail(images, tmp_path, monkeypatch):
    """As an ordinary user, a broken disk or a full memory gives them; the tests may run as root."""
    path = tmp_path / "a.png"
    Image.fromarray(images["voc"]).save(path)
    for error, message in {
        PermissionError(13, "Permission denied"): "may not be read by this user; change its permissions",
        OSError(5, "Input/output error"): r"could not be read \(Input/output error\)",
        MemoryError(): "does not fit in memory; shrink it first",
    }.items():
        monkeypatch.setattr("pathlib.Path.read_bytes", raiser(error))
        with pytest.raises(SourceError, match=rf"a\.png {message}"):
            read_image(path)
    monkeypatch.undo()
    monkeypatch.setattr(reading, "_to_rgb", raiser(MemoryError()))
    with pytest.raises(SourceError, match="does not fit in memory"):
        read_image(path)
    monkeypatch.setattr(reading, "_MOST_BYTES", 1000)
    with pytest.raises(SourceError, match="give a still image of less than 4 GiB"):
        read_image(path)


def raiser(error):
    def call(*arguments):
        raise error

    return call


@pytest.mark.parametrize("limit", [1, 2])
def test_large_images_and_pillows_limits(images, tmp_path, monkeypatch, limit):
    """Up to twice its limit Pillow gives a warning and the image is read; above that it is refused."""
    Image.fromarray(images["voc"]).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 375 * 500 * limit // 2 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        if limit == 2:
            assert np.array_equal(read_image(tmp_path / "large.png"), images["voc"])
        else:
            with pytest.raises(SourceError, match="has too many pixels to be opened safely"):
                read_image(tmp_path / "large.png")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(SourceError, match="has too many pixels to be opened safely"):
            read_image(tmp_path / "large.png")


def test_raw_photos_and_other_kinds(images, tmp_path):
    """Pillow would read the small preview of a raw photo."""
    Image.fromarray(images["voc"]).save(tmp_path / "a.nef", "TIFF")
    (tmp_path / "b.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))
    (tmp_path / "c.exr").write_bytes(b"v/1\1" + bytes(200))
    (tmp_path / "d.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.fromarray(images["voc"]).save(tmp_path / "e.heic", "PNG")
    for name, message in {
        "a.nef": r"a\.nef cannot be read: it is a raw photo",
        "b.jpg": r"b\.jpg cannot be read: \.heic files need pillow-heif; run pip install 'hyperseg\[images\]'",
        "c.exr": r"c\.exr cannot be read: \.exr files are not read here; convert it to JPEG",
        "d.eps": r"d\.eps cannot be read: \.eps files are not read here",
    }.items():
        with pytest.raises(SourceError, match=message):
            read_image(tmp_path / name)
    assert np.array_equal(read_image(tmp_path / "e.heic"), images["voc"]), "the contents decide"


def test_plugins_of_pillow_are_used(monkeypatch):
    registered = []
    plugin = SimpleNamespace(register_heif_opener=lambda: registered.append("heif"))
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    kinds._load_plugins.__wrapped__()
    assert registered == ["heif"]
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # the import fails
    kinds._load_plugins.__wrapped__()
    assert registered == ["heif"]


def test_messages_can_be_printed(tmp_path):
    (tmp_path / "caf\udce9\x1b[31m\n.png").touch()
    with pytest.raises(SourceError, match=r"caf\\xe9\\x1b\[31m\\n\.png is empty") as caught:
        read_image(tmp_path / "caf\udce9\x1b[31m\n.png")
    str(caught.value).encode()


def test_pixels_are_counted_before_they_are_decoded(images, tmp_path):
    Image.fromarray(images["coffee"]).save(tmp_path / "image.png")
    data = (tmp_path / "image.png").read_bytes()
    height, width = images["coffee"].shape[:2]
    assert np.array_equal(decode_image(data, "it", most_pixels=height * width), images["coffee"])
    with pytest.raises(TooManyPixelsError, match=rf"it has 240,000 pixels \({height}x{width}\), more than 239,999"):
        decode_image(data[:100], "it", most_pixels=height * width - 1)  # nothing but its head is here


def test_only_the_given_formats_are_tried(images, tmp_path):
    Image.fromarray(images["coffee"]).save(tmp_path / "image.png")
    data = (tmp_path / "image.png").read_bytes()
    assert decode_image(data, "it", formats=["PNG"]).shape == images["coffee"].shape
    with pytest.raises(SourceError, match="begins like an image, but is damaged or of an unusual form"):
        decode_image(data, "it", formats=["JPEG", "EPS"])
