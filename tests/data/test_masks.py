"""Label files of every encoding are decoded exactly or refused with a message that names the file."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from hyperseg.data import ColorDecoder, DataError, IndexDecoder, MaskDecoder
from hyperseg.data.masks import identity, read_indices

STRIPES = (np.indices((12, 16))[1] // 4 % 3).astype(np.uint8)  # classes 0 1 2 0
COLORS = {(0, 0, 0): 0, (200, 30, 30): 1, (30, 200, 60): 2}
GREYS = {(0, 0, 0): 0, (128, 128, 128): 1, (255, 255, 255): 2}
INDEX = identity(3)
COLOR = ColorDecoder(COLORS)
BOTH = MaskDecoder(INDEX, COLOR)


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def painted(labels: np.ndarray = STRIPES) -> np.ndarray:
    return np.array(list(COLORS), np.uint8)[labels]


def indexed(indices: np.ndarray, colors: list[tuple[int, int, int]]) -> Image.Image:
    """Return a palette image; `colors` are those of indices 0, 1, ..."""
    image = Image.fromarray(indices)
    image.putpalette([value for color in colors for value in color])
    return image


def smooth() -> np.ndarray:
    """Return the painted stripes with mixed colours at their borders."""
    large = Image.fromarray(painted().repeat(4, 0).repeat(4, 1)).rotate(5)
    return np.asarray(large.resize((16, 12), Image.Resampling.BILINEAR))


def test_grey():
    assert (INDEX(encoded(STRIPES), "index.png") == STRIPES).all()
    assert (BOTH(encoded(STRIPES), "index.png") == STRIPES).all()


@pytest.mark.parametrize("decoder", [INDEX, BOTH], ids=["index", "both"])
def test_palette_images_are_indices_even_if_their_colours_are_those_of_other_classes(decoder):
    image = indexed(STRIPES, list(COLORS)[::-1])
    assert (decoder(encoded(image), "palette.png") == STRIPES).all()


def test_a_renumbered_palette_is_read_by_colour_if_colours_are_known():
    indices = np.array([7, 9, 11], np.uint8)[STRIPES]
    palette = [(1, 1, 1)] * 256
    for index, color in zip((7, 9, 11), COLORS, strict=True):
        palette[index] = color
    data = encoded(indexed(indices, palette))
    assert (BOTH(data, "odd.png") == STRIPES).all()
    assert (COLOR(data, "odd.png") == STRIPES).all()
    with pytest.raises(DataError, match=r"^odd\.png contains 7, 9, 11 "):
        INDEX(data, "odd.png")


def test_a_renumbered_palette_with_unknown_colours_is_refused_by_both_readings():
    image = indexed(np.full((4, 4), 7, np.uint8), [(9, 9, 9)] * 8)
    with pytest.raises(DataError, match=r"^odd\.png: 16 of 16 .*\(9, 9, 9\).* by index, 7 is no class"):
        BOTH(encoded(image), "odd.png")
    ignoring = MaskDecoder(IndexDecoder(INDEX.values, unknown=255), ColorDecoder(COLORS, unknown=255))
    assert (ignoring(encoded(image), "odd.png") == 255).all()


def test_a_palette_is_read_by_colour_at_once_where_the_data_set_says_so():
    data = encoded(indexed(STRIPES, list(COLORS)[::-1]))
    assert (MaskDecoder(INDEX, COLOR, palette_first=True)(data, "x.png") == 2 - STRIPES).all()


@pytest.mark.parametrize("decoder", [COLOR, BOTH], ids=["color", "both"])
def test_colours(decoder):
    assert (decoder(encoded(painted()), "colour.png") == STRIPES).all()


def test_colours_without_a_table_are_refused():
    with pytest.raises(DataError, match=r"^colour\.png has colours \(mode RGB\), not class indices.*colour of each"):
        INDEX(encoded(painted()), "colour.png")
    with pytest.raises(DataError, match="its three channels are equal"):
        INDEX(encoded(STRIPES[:, :, None].repeat(3, 2)), "grey.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_mixed_colours_are_refused_with_their_number_and_an_example(kind):
    data = encoded(smooth() if kind == "PNG" else painted(), kind)
    stored = np.asarray(Image.open(io.BytesIO(data)))
    known = (stored[:, :, None] == np.array(list(COLORS))).all(3).any(2)
    count = int((~known).sum())
    assert 0 < count < known.size or kind == "JPEG"
    row, column = np.argwhere(~known)[0]
    example = tuple(map(int, stored[row, column]))
    with pytest.raises(DataError) as error:
        COLOR(data, "smooth.png")
    assert str(error.value).startswith(f"smooth.png: {count} of {known.size} pixels")
    assert f"{example} at row {row}, column {column}" in str(error.value)
    ignoring = ColorDecoder(COLORS, unknown=255)(data, "smooth.png")
    assert (ignoring == np.where(known, COLOR.decode(Image.fromarray(painted(ignoring % 255)), ""), 255)).all()
    assert (ignoring == 255).sum() == count


def test_alpha():
    alpha = np.full((12, 16, 1), 255, np.uint8)
    assert (COLOR(encoded(np.concatenate([painted(), alpha], 2)), "rgba.png") == STRIPES).all()
    alpha[:, 4:8] = 0
    data = encoded(np.concatenate([painted(), alpha], 2))
    with pytest.raises(DataError, match=r"^rgba\.png: 48 of 192 pixels are transparent .*row 0, column 4 \(alpha 0\)"):
        COLOR(data, "rgba.png")
    expected = STRIPES.copy()
    expected[:, 4:8] = 255
    assert (ColorDecoder(COLORS, unknown=255)(data, "rgba.png") == expected).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_not_scaled(kind):
    values = STRIPES.astype(np.uint16)
    assert (INDEX(encoded(values, kind), "deep.png") == STRIPES).all()
    wide = IndexDecoder({0: 0, 300: 1, 65535: 255})
    expected = np.array([0, 1, 255], np.uint8)[STRIPES]
    assert (wide(encoded(np.array([0, 300, 65535], np.uint16)[STRIPES], kind), "deep.png") == expected).all()
    with pytest.raises(DataError, match=r"^deep\.png contains 256 \(48 pixels\)"):
        INDEX(encoded(np.array([0, 256, 2], np.uint16)[STRIPES], kind), "deep.png")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit(kind):
    bits = STRIPES == 1
    assert (INDEX(encoded(bits, kind), "bits.png") == bits).all()


@pytest.mark.parametrize("bits", [2, 4])
def test_packed_bits_are_values_not_shades(bits):
    """Pillow reads a grey PNG of 2 bits with the value 1 as 85."""
    written = encoded(indexed(STRIPES, [(0, 0, 0)] * 3), bits=bits)
    header = written.index(b"IHDR")
    grey = bytearray(written)
    grey[header + 13] = 0  # palette indices become shades of grey
    grey[header + 17 : header + 21] = int.to_bytes(_crc(grey[header : header + 17]), 4, "big")
    assert Image.open(io.BytesIO(grey)).mode == "L"
    assert (INDEX(bytes(grey), "packed.png") == STRIPES).all()


def _crc(data: bytes) -> int:
    import zlib

    return zlib.crc32(data)


def test_floats():
    whole = STRIPES.astype(np.float32)
    assert (INDEX(encoded(whole, "TIFF"), "float.tif") == STRIPES).all()
    whole[3, 5] = 1.5
    with pytest.raises(DataError, match=r"^float\.tif has values that .* \(1 pixel\), such as 1\.5 at row 3, column 5"):
        INDEX(encoded(whole, "TIFF"), "float.tif")
    for bad in (np.nan, np.inf, -np.inf, 1e30):
        whole[3, 5] = bad
        with pytest.raises(DataError, match="whole numbers"):
            INDEX(encoded(whole, "TIFF"), "float.tif")


def test_an_unknown_colour_does_not_become_the_class_of_another_channel_order():
    with pytest.raises(DataError, match="30, 30, 200"):
        COLOR(encoded(painted()[:, :, ::-1].copy()), "bgr.png")


def test_grey_files_of_a_data_set_whose_colours_are_grey_are_colours():
    """An optimiser makes a grey file of an RGB file whose pixels are all grey."""
    both = MaskDecoder(INDEX, ColorDecoder(GREYS))
    shades = np.array([0, 128, 255], np.uint8)[STRIPES]
    assert (both(encoded(shades), "shades.png") == STRIPES).all()
    with pytest.raises(DataError, match=r"\(1, 1, 1\).*remove `colors` if they are indices"):
        both(encoded(STRIPES), "indices.png")


def test_files_that_would_be_read_differently_from_how_they_were_written():
    photograph = np.random.default_rng(0).integers(0, 3, (16, 16), dtype=np.uint8)
    cases = {
        "JPEG": encoded(photograph, "JPEG"),
        "frames": encoded(Image.fromarray(STRIPES), "TIFF", save_all=True, append_images=[Image.fromarray(STRIPES)]),
        "mode CMYK": encoded(Image.fromarray(painted()).convert("CMYK"), "TIFF"),
        "white as 0": encoded(STRIPES, "TIFF", tiffinfo={262: 0}),
        "EXIF orientation": encoded(STRIPES, exif=_turned()),
    }
    for reason, data in cases.items():
        with pytest.raises(DataError, match=f"^name .*{reason}"):
            MaskDecoder(INDEX, COLOR)(data, "name")


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 3
    return exif


def test_colours_of_16_bits_are_refused():
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + struct.pack(">12H", *([0x1234] * 12)) for _ in range(4))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    with pytest.raises(DataError, match=r"^deep\.png has colours of 16 bits"):
        COLOR(data, "deep.png")


@pytest.mark.parametrize("decoder", [INDEX, COLOR, BOTH], ids=["index", "color", "both"])
def test_damaged_files(decoder):
    data = encoded(np.random.default_rng(0).integers(0, 3, (64, 64), dtype=np.uint8))
    for broken in (data[: len(data) // 2], b"no image", data[:60] + b"\0\0\0" + data[63:]):
        with pytest.raises(DataError, match=r"^some\.png is damaged"):
            decoder(broken, "some.png")


VOID = np.repeat([2, 0, 1], [2, 3, 3])[:, None].repeat(8, 1)  # 2 stands for void


@pytest.mark.parametrize(
    ("stored", "dtype", "kind", "decoder"),
    [
        ({0: 0, 1: 1, 2: 255}, np.uint8, "PNG", identity(2)),
        ({0: 0, 1: 1, 2: -1}, np.int32, "TIFF", identity(2, ignored=(-1, 255))),
        ({0: 0, 1: 1, 2: 254}, np.uint8, "PNG", identity(2, ignored=(254, 255))),
        ({0: 1, 1: 2, 2: 0}, np.uint8, "PNG", IndexDecoder({0: 255, 1: 0, 2: 1, 255: 255})),
        ({0: 0, 1: 1, 2: 65535}, np.uint16, "PNG", identity(2, ignored=(65535, 255))),
        ({0: 0, 1: 1, 2: -(10**9)}, np.int32, "TIFF", identity(2, ignored=(-(10**9),))),
    ],
    ids=["255", "-1", "254", "ids-from-1", "65535", "far"],
)
def test_every_ignored_value_is_255_in_memory(stored, dtype, kind, decoder):
    values = np.array([stored[0], stored[1], stored[2]], dtype)[VOID]
    labels = decoder(encoded(values, kind), "void")
    assert labels.dtype == np.uint8
    assert labels.flags.writeable
    assert (labels == np.array([0, 1, 255], np.uint8)[VOID]).all()
    assert np.bincount(labels.ravel(), minlength=256)[[0, 1, 255]].tolist() == [24, 24, 16]


def test_a_shift_happens_once_and_keeps_255():
    shifted = IndexDecoder({0: 255, 1: 0, 2: 1, 255: 255})
    values = np.array([[0, 1, 2, 255]], np.uint8)
    assert shifted(encoded(values), "x.png").tolist() == [[255, 0, 1, 255]]
    with pytest.raises(DataError, match="contains 2 "):
        identity(2)(encoded(values), "x.png")


def test_unknown_values_are_ignored_if_asked():
    decoder = IndexDecoder({0: 0, 1: 1}, unknown=255)
    for values in (np.array([[0, 1, 7]], np.uint8), np.array([[0, 1, 700]], np.uint16)):
        assert decoder(encoded(values), "x.png").tolist() == [[0, 1, 255]]


def test_the_message_shows_few_of_many_values():
    with pytest.raises(
        DataError, match=r"contains 3, 4, 5, 6, 7, 8, 9, 10, \.\.\. \(252 pixels\).*known are 0-2, 255;"
    ):
        INDEX(encoded(np.arange(255, dtype=np.uint8)[None]), "x.png")


@pytest.mark.parametrize("decoder", [INDEX, COLOR, BOTH], ids=["index", "color", "both"])
def test_decoders_are_pickled_small_and_describe_themselves(decoder):
    decoder(encoded(painted()), "x.png") if decoder is COLOR else None  # its table exists now
    data = pickle.dumps(decoder)
    assert len(data) < 2000
    assert pickle.loads(data) == decoder
    assert decoder.description() == pickle.loads(data).description()
    other = ColorDecoder({**COLORS, (1, 2, 3): 2})
    assert COLOR.description() != other.description()


def test_read_indices_returns_the_stored_values():
    values = np.array([[-1, 70000]], np.int32)
    assert read_indices(encoded(values, "TIFF"), "x.tif").tolist() == [[-1, 70000]]
