"""Reading images: every mode and orientation becomes upright RGB; files that cannot be read get a clear message."""

import gc
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hyperseg.predict import ImageSource, SourceError, find_images, read_image, sources, unique_names

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


def test_source_reads_in_order_and_goes_on_after_broken_files(images, tmp_path):
    Image.fromarray(images["voc"]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    Image.fromarray(images["chelsea"]).save(tmp_path / "c.png")
    source = ImageSource(find_images([tmp_path]))
    assert len(source) == 3
    for _ in range(2):  # a source can be read again
        reader = iter(source)
        frames = [next(reader)]
        with pytest.raises(SourceError, match=r"b\.png is not an image"):
            next(reader)
        frames += reader
        assert [frame.name for frame in frames] == ["a", "c"]
        assert [frame.image.shape for frame in frames] == [images["voc"].shape, images["chelsea"].shape]
        assert frames[1].path == tmp_path / "c.png"
    with pytest.raises(SourceError, match=r"b\.png is not an image"):
        list(source)
    assert list(ImageSource([])) == []


def test_source_reads_one_file_ahead(tmp_path, monkeypatch):
    started = []
    reads = threading.Semaphore(0)

    def read(path):
        started.append(path.name)
        reads.release()
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(sources, "read_image", read)
    threads = threading.active_count()
    reader = iter(ImageSource([tmp_path / name for name in "abcd"]))
    next(reader)
    for _ in range(2):
        assert reads.acquire(timeout=60)
    assert started == ["a", "b"]
    next(reader)
    assert reads.acquire(timeout=60)
    assert started == ["a", "b", "c"]
    del reader
    gc.collect()
    assert threading.active_count() == threads, "a reader that is dropped ends its thread"


def test_find_images(tmp_path, monkeypatch):
    for name in ("b.PNG", "a.jpg", "c.txt", ".hidden.jpg", "sub/d.jpg", "odd[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def names(*inputs):
        return [path.relative_to(tmp_path).as_posix() for path in find_images(inputs)]

    assert names(tmp_path) == ["a.jpg", "b.PNG", "odd[1].jpg"]
    assert names(f"{tmp_path}/*") == ["a.jpg", "b.PNG", "odd[1].jpg"]
    assert names(f"{tmp_path}/**/*.jpg") == ["a.jpg", "odd[1].jpg", "sub/d.jpg"]
    assert names(tmp_path / "odd[1].jpg") == ["odd[1].jpg"], "an existing file is no pattern"
    assert names(tmp_path / "c.txt") == ["c.txt"], "a file given by name is taken as it is"
    assert names(tmp_path / "b.PNG", tmp_path) == ["b.PNG", "a.jpg", "odd[1].jpg"], "listed once, at its first place"
    monkeypatch.chdir(tmp_path)
    assert find_images(["a.jpg", "./a.jpg", str(tmp_path / "a.jpg")]) == [Path("a.jpg")]


def test_find_images_finds_nothing(tmp_path):
    for given, message in {
        tmp_path / "x.jpg": "there is no file .*x.jpg; give an image",
        tmp_path: "the folder .* contains no image; files ending in .avif",
        tmp_path / "*.jpg": r"the pattern .*\*\.jpg matches no image",
    }.items():
        with pytest.raises(SourceError, match=message):
            find_images([given])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["d/a.jpg", "d/b.jpg"], ["a", "b"]),
        (["d/a.jpg", "d/a.png", "d/c.png"], ["a_jpg", "a_png", "c"]),
        (["d/a.jpg", "e/a.jpg"], ["d_a", "e_a"]),
        (["d/A.jpg", "e/a.jpg"], ["d_A", "e_a"]),
        (["d/a.jpg", "e/a.jpg", "e/a.png"], ["d_a_jpg", "e_a_jpg", "e_a_png"]),
        (["d/a.jpg", "d/a.png", "d/a_jpg.png"], ["d_a_jpg", "d_a_png", "a_jpg"]),
        (["d/e/a.jpg", "x/e/a.jpg", "x/a-1.jpg"], ["a-2", "a-3", "a-1"]),
    ],
)
def test_unique_names(paths, names):
    assert unique_names([Path(path) for path in paths]) == names
