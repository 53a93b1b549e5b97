"""find_images: what is found, left out, skipped and refused; and the names of outputs."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hyperseg.data import CAMVID
from hyperseg.images import kinds
from hyperseg.predict import (
    Frame,
    ImageSource,
    LabelSink,
    OverlaySink,
    Prediction,
    SourceError,
    find_images,
    unique_names,
)
from hyperseg.predict.finding import find_media


@pytest.fixture
def some(tmp_path, monkeypatch):
    """A function that writes files of these names with contents that no one reads; the current directory is theirs."""
    monkeypatch.chdir(tmp_path)

    def write(*names, content=b"x"):
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(content)

    return write


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
        tmp_path: "the folder .* contains no image; files ending in .jpg",
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


# ---------------------------------------------------------------------------------------------------------------------
# Kinds of files in a folder


def found(*inputs):
    """The names found, and the messages about files that are skipped."""
    skipped = []
    return [path.name for path in find_images(inputs, on_skip=skipped.append)], skipped


def test_every_suffix_that_pillow_decodes_is_an_image(some):
    names = ["a.JPG", "b.jfif", "c.jpe", "d.tga", "e.jp2", "f.psd", "g.mpo", "h.webp", "i.qoi", "j.pgm"]
    some(*names, "k.txt", "l.json", "m.mp4", "n.pdf", "o.mpg", "p.h5", ".a.jpg", "Thumbs.db", "README")
    assert found(".") == (names, [])
    assert found("*") == (names, [])
    assert {"EPS", "MPEG", "HDF5", "WMF", "FITS"}.isdisjoint(kinds.readable_formats())


def test_images_of_other_kinds_are_named(some):
    some("a.jpg", "b.dng", "c.CR2", "d.exr", "e.svg", "f.eps", "g.jxl")
    names, skipped = found(".")
    assert names == ["a.jpg"]
    assert [message.partition(" ")[0] for message in skipped] == ["b.dng", "c.CR2", "d.exr", "e.svg", "f.eps", "g.jxl"]
    assert skipped[0] == "b.dng is skipped: it is a raw photo; convert it to JPEG, PNG or TIFF first"
    assert skipped[2].endswith(".exr files are not read here; convert it to JPEG, PNG or TIFF first")
    assert skipped[5].endswith("need pillow-jxl-plugin; run pip install 'hyperseg[images]'")


def test_images_without_a_suffix_of_one_are_named(some):
    some("a.jpg", "download", "b.jpg~", "c.jpg_large", "d.jpg.1", content=b"\xff\xd8\xff\xe0rest of a JPEG")
    some("LICENSE", "notes.jpg~")
    names, skipped = found(".")
    assert names == ["a.jpg"]
    assert [message.partition(" ")[0] for message in skipped] == ["b.jpg~", "c.jpg_large", "d.jpg.1", "download"]
    assert "rename it, or name the file itself" in skipped[0]


def test_skipped_files_are_logged_if_nobody_asks(some, caplog):
    some("a.jpg", "b.nef")
    find_images(["."])
    assert [record.message.partition(" ")[0] for record in caplog.records] == ["b.nef"]


def test_a_plugin_of_pillow_adds_its_suffix(some, monkeypatch):
    some("a.heic", "b.jpg")
    monkeypatch.setattr(kinds, "_load_plugins", lambda: None)
    monkeypatch.setattr(Image, "EXTENSION", {**Image.registered_extensions()})
    Image.EXTENSION.pop(".heic", None)
    names, (message,) = found(".")
    assert names == ["b.jpg"]
    assert message == "a.heic is skipped: .heic files need pillow-heif; run pip install 'hyperseg[images]'"
    Image.EXTENSION[".heic"] = "PNG"  # as the plugin registers its own format
    assert found(".") == (["a.heic", "b.jpg"], [])


def test_outputs_of_an_earlier_run_are_left_out(some):
    """They are recognised by a mark, so a photo whose name looks like an output's is an image."""
    image = np.zeros((4, 6, 3), np.uint8)
    for name in ("a.png", "a_labels.png", "b_overlay.jpg"):
        Image.fromarray(image).save(name)
    prediction = Prediction(Frame("b", image), image[:, :, 0], CAMVID)
    for sink in (LabelSink("."), OverlaySink("out"), OverlaySink("out", kind="jpg")):
        sink.write(prediction)
    assert found(".") == (["a.png", "a_labels.png", "b_overlay.jpg"], [])
    assert found("**/*.*")[0] == ["a.png", "a_labels.png", "b_overlay.jpg"]
    assert found("out") == ([], [])
    assert found("out/b_overlay.png")[0] == ["b_overlay.png"], "a file given by name is taken as it is"


def test_a_folder_of_folders_says_how_to_name_them(some):
    some("a/b/c.jpg")
    with pytest.raises(SourceError, match=r"for those in its 1 folders, give the pattern 'a/\*\*/\*'"):
        find_images(["a"])


# ---------------------------------------------------------------------------------------------------------------------
# Inputs that cannot be found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "an empty name was given; give an image file, or '.' for the current folder"),
        ("x" * 300 + ".jpg", "no file name can be so long"),
        ("a\0b.jpg", r"'a\\x00b.jpg' is not a possible file name"),
        ("\ud800.jpg", r"'\\ud800.jpg' is not a possible file name"),
        ("loop", "loop is a symbolic link that leads back to itself"),
        ("dangling.jpg", "there is no file dangling.jpg"),
        ("a.jpg/b.jpg", "there is no file a.jpg/b.jpg"),
        ("\x1bred\n.jpg", r"there is no file \\x1bred\\n.jpg"),
        ("caf\udce9.jpg", r"there is no file caf\\xe9.jpg"),
    ],
)
def test_an_input_that_cannot_be_found_does_not_end_the_others(some, given, message):
    some("a.jpg")
    os.symlink("loop", "loop")
    os.symlink("nothing", "dangling.jpg")
    with pytest.raises(SourceError, match=message):
        find_images([given])
    errors = []
    assert find_images([given, "a.jpg"], errors.append) == [Path("a.jpg")]
    assert [type(error) for error in errors] == [SourceError]
    str(errors[0]).encode()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "an empty name was given; give an image or video file, or"),
        ("none.mp4", "there is no file none.mp4; give an image or video file, a folder of them or a pattern like"),
        ("a.jpg/b.mp4", "there is no file a.jpg/b.mp4; give an image or video file"),
        ("notes", "the folder notes contains no image or video; files ending in .*, or in .mp4, .*, were looked for"),
        ("*.avi", "matches no image or video; files ending in .*, or in .mp4"),
    ],
)
def test_where_a_video_would_do_messages_say_so(some, given, message):
    some("a.jpg", "notes/a.txt")
    with pytest.raises(SourceError, match=message):
        find_media([given])


def test_links_and_pipes_with_the_name_of_an_image_are_not_lost(some):
    """They are found, and reading them gives the reason; nothing waits for the writer of a pipe."""
    os.symlink("nothing", "a.jpg")
    os.mkfifo("b.jpg")
    os.mkfifo("c_labels.png")
    os.mkfifo("d")
    assert found(".") == (["a.jpg", "b.jpg", "c_labels.png"], [])


def test_folders_that_may_not_be_read(some, monkeypatch):
    """As an ordinary user meets them; these tests may run as root, who may read everything."""
    some("closed/a.jpg", "open/b.jpg")
    stat, scandir = os.stat, os.scandir

    def denied(call):
        def wrapper(path=".", *args, **kwargs):
            if str(path).startswith("closed"):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, *args, **kwargs)

        return wrapper

    monkeypatch.setattr(os, "scandir", denied(scandir))
    monkeypatch.setattr(os, "listdir", denied(os.listdir))
    monkeypatch.setattr(Path, "iterdir", denied(Path.iterdir))  # of Python 3.10, which took os.listdir at its import
    with pytest.raises(SourceError, match="closed may not be read by this user; change its permissions"):
        find_images(["closed"])
    monkeypatch.setattr(os, "stat", denied(stat))
    with pytest.raises(SourceError, match=r"closed/a\.jpg may not be read by this user"):
        find_images(["closed/a.jpg"])
    errors = []
    assert find_images(["closed", "open"], errors.append) == [Path("open/b.jpg")]
    assert len(errors) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Names of outputs


@pytest.mark.parametrize("letter", ["o", "é", "写", "\udce9"])
def test_long_names_are_cut(tmp_path, letter):
    """The outputs' names fit, differ, and are the same in every run."""
    longest = "".join([letter] * (251 // len(os.fsencode(letter))))
    paths = [tmp_path / f"{longest[:-1]}{end}.jpg" for end in ("a", "b")]
    paths[0].touch()
    names = unique_names([*paths, Path("z.jpg")])
    assert names == unique_names([*paths, Path("z.jpg")])
    assert len(set(names)) == 3
    for name in names:
        (tmp_path / f"{name}_overlay.png").touch()


def test_long_names_that_differ_at_the_end(tmp_path):
    paths = [Path(f"{'o' * 246}{number}.jpg") for number in range(12)] + [Path(f"x/{'o' * 246}1.jpg")]
    names = unique_names(paths)
    assert len(set(names)) == len(paths)
    assert max(map(len, names)) <= 240


def test_names_that_some_file_systems_do_not_tell_apart():
    names = unique_names(["caf\u00e9.jpg", "cafe\u0301.png", "CAFÉ.tif"])
    assert names == ["caf\u00e9_jpg", "cafe\u0301_png", "CAFÉ_tif"]


def test_names_with_every_character_that_a_file_can_have(tmp_path):
    image = np.zeros((3, 4, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    odd = ["[1, 2]", "a*", "-a", "new\nline", "\x1b[31m", "caf\udce9", "a.b.c", "~a", "null", "  "]
    for name in odd:
        shutil.copy(tmp_path / "a.png", tmp_path / f"{name}.png")
    source = ImageSource(find_images([tmp_path]))
    assert sorted(frame.name for frame in source) == sorted([*odd, "a"])
    for frame in source:
        assert LabelSink(tmp_path / "out").write(Prediction(frame, image[:, :, 0], CAMVID)).exists()
