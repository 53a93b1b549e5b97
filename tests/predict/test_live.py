"""Raw frames, cameras, windows and addresses, with what stands for the devices."""

import io
import os
import sys
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from hyperseg._extras import MissingPackageError
from hyperseg.predict import CameraSource, RawLabelSink, RawSource, SourceError
from hyperseg.predict.addresses import is_address, is_stream, name_of
from hyperseg.predict.inputs import sort_inputs
from hyperseg.predict.window import Window, WindowError


class Pipe(io.RawIOBase):
    """Gives at most so many bytes at a time, as pipes do."""

    def __init__(self, data, most=100):
        self.data, self.most = data, most

    def read(self, size):
        part, self.data = self.data[: min(size, self.most)], self.data[min(size, self.most) :]
        return part


@pytest.mark.parametrize("pixels", ["rgb24", "bgr24", "gray"])
def test_raw_frames(pixels):
    values = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 1 if pixels == "gray" else 3), np.uint8)
    frames = list(RawSource(Pipe(values.tobytes()), (5, 7), pixels, Fraction(30000, 1001)))
    assert [frame.name for frame in frames] == ["stdin_000000", "stdin_000001", "stdin_000002"]
    assert frames[2].time == Fraction(2 * 1001, 30000)
    for frame, each in zip(frames, values, strict=True):
        expected = each[..., ::-1] if pixels == "bgr24" else np.broadcast_to(each, (5, 7, 3))
        assert np.array_equal(frame.image, expected)
        assert frame.image.flags.c_contiguous


def test_raw_frames_that_end_early():
    source = iter(RawSource(Pipe(bytes(5 * 7 * 3 + 4)), (5, 7)))
    next(source)
    message = r"stdin: the stream ends within frame 1 \(4 of 105 bytes\); are its frames 5x7 in rgb24\?"
    with pytest.raises(SourceError, match=message):
        next(source)
    assert list(RawSource(Pipe(b""), (5, 7))) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixels": "yuv"}, "pixels is 'yuv'; give one of rgb24, bgr24, gray"),
        ({"size": (0, 5)}, "give the height and width"),
        ({"rate": 0}, "rate is 0; give frames per second"),
    ],
)
def test_wrong_arguments_of_raw_frames(arguments, message):
    with pytest.raises(ValueError, match=message):
        RawSource(**{"stream": Pipe(b""), "size": (5, 7), **arguments})


def test_raw_labels():
    stream = io.BytesIO()
    labels = np.arange(35, dtype=np.uint8).reshape(7, 5).T
    RawLabelSink(stream).write(SimpleNamespace(labels=labels))
    assert stream.getvalue() == labels.tobytes()


@pytest.fixture
def cv2(monkeypatch):
    """OpenCV with one camera, number 1, which gives three frames and is lost then."""

    class VideoCapture:
        def __init__(self, index):
            self.opened, self.left, self.settings, self.released = index == 1, 3, {}, False
            module.captures.append(self)

        def isOpened(self):
            return self.opened

        def set(self, what, value):
            self.settings[what] = value

        def read(self):
            if not self.left:
                return False, None
            self.left -= 1
            return True, np.full((4, 6, 3), (1, 2, 3), np.uint8)

        def release(self):
            self.released = True

    names = {"CAP_PROP_FRAME_HEIGHT": "height", "CAP_PROP_FRAME_WIDTH": "width", "CAP_PROP_FPS": "rate"}
    module = SimpleNamespace(VideoCapture=VideoCapture, captures=[], **names)
    monkeypatch.setitem(sys.modules, "cv2", module)
    return module


def test_a_camera(cv2):
    camera = CameraSource(1, size=(480, 640), rate=15)
    assert camera.live
    reader = iter(camera)
    frames = [next(reader) for _ in range(3)]
    with pytest.raises(SourceError, match="camera 1 was lost after 3 frames"):
        next(reader)
    assert [frame.name for frame in frames] == ["camera1_000000", "camera1_000001", "camera1_000002"]
    assert frames[0].time == 0 <= frames[1].time <= frames[2].time
    assert (frames[0].image == (3, 2, 1)).all(), "OpenCV gives blue first"
    assert cv2.captures[0].settings == {"height": 480, "width": 640, "rate": 15}
    assert cv2.captures[0].released


def test_a_camera_that_is_not_there(cv2):
    with pytest.raises(SourceError, match="camera 0 cannot be opened; is it connected"):
        CameraSource(0)
    assert cv2.captures[0].released


def test_without_opencv(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingPackageError, match=r"a camera needs cv2; run pip install 'hyperseg\[webcam\]'"):
        CameraSource(0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is always a display")
def test_a_window_without_a_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(WindowError, match="there is no display"):
        Window("test")
    pytest.importorskip("tkinter")
    monkeypatch.setenv("DISPLAY", ":987")
    with pytest.raises(WindowError, match="the display cannot be used"):
        Window("test")


@pytest.mark.parametrize(
    ("text", "address", "stream", "name"),
    [
        ("https://a.org/x/street%20one.jpg?size=2", True, False, "street_one.jpg"),
        ("http://a.org", True, False, "a.org"),
        ("https://a.org/..%2F..%2Fetc%2Fpasswd", True, False, "_.._etc_passwd"),
        ("rtsp://user:secret@camera:554/live", True, True, "live"),
        ("https://a.org/live.m3u8", True, True, "live.m3u8"),
        ("street.jpg", False, False, None),
        ("C:\\street.jpg", False, False, None),
    ],
)
def test_addresses(text, address, stream, name):
    assert is_address(text) == address
    if address:
        assert is_stream(text) == stream
        assert name_of(text) == name


def test_inputs_are_sorted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    heads = {
        "a.png": b"\x89PNG\r\n\x1a\n",
        "b.mp4": b"",
        "folder/c.MOV": b"",
        "folder/d.jpg": b"",
        "folder/e.ts": b"let x;",
    }
    heads |= {"7": b"\x89PNG\r\n\x1a\n", "clip": b"\0\0\0\x20ftypisom\0\0\2\0", "folder/g.txt": b""}
    for name, data in heads.items():
        (tmp_path / name).write_bytes(data)
    errors = []
    inputs = ["a.png", "b.mp4", "folder", "0", "7", "clip", "-", "rtsp://a.org/b", "ftp://a.org/x.jpg", "no.png"]
    found = sort_inputs(inputs, tmp_path, errors.append, pytest.fail)
    assert [os.fspath(path) for path in found.images] == ["a.png", "folder/d.jpg", "7"]
    assert [os.fspath(path) for path in found.videos] == ["b.mp4", "folder/c.MOV", "clip"]
    assert (found.cameras, found.streams, found.pipe, len(found)) == ([0], ["rtsp://a.org/b"], True, 9)
    assert [str(error).partition(";")[0] for error in errors] == [
        "ftp://a.org/x.jpg is no address of a file",
        "there is no file no.png",
    ]
