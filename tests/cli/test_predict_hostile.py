"""`hyperseg predict` with a hundred broken or hostile sources in one command: a message for each, and nothing else."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av")

from hyperseg.cli import main
from tests.predict.videos import write_video

pytestmark = pytest.mark.usefixtures("stand_in")


def encoded(kind):
    """Return a small photo as a file of this kind."""
    values = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


def png_of_size(width, height):
    """Return a PNG that says that it has this size, and has no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + chunk


def broken_files():
    """Yield the names and contents of files that cannot be read."""
    for kind, suffix in (
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("TIFF", "tif"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
    ):
        data = encoded(kind)
        for share in (1, 3, 5):
            yield f"cut{share}.{suffix}", data[: len(data) * share // 100 + 4]
        yield f"text.{suffix}", b"<html>404 not found</html>"
        yield f"empty.{suffix}", b""
        yield f"zeros.{suffix}", bytes(1000)
        yield f"other_{suffix}.mp4", data[:40]
    for width, height in ((10**6, 10**6), (2**31 - 1, 2**31 - 1), (0, 10), (2**20, 2**14)):
        yield f"bomb{width}x{height}.png", png_of_size(width, height)
    video = write_video(Path("whole.mp4")).read_bytes()
    os.unlink("whole.mp4")
    for suffix in ("mp4", "mov", "mkv", "webm", "avi", "ts", "flv", "wmv"):
        yield f"cut.{suffix}", video[: len(video) // 3]
        yield f"text.{suffix}", b"<html>404 not found</html>"
        yield f"empty_video.{suffix}", b""
        yield f"noise.{suffix}", np.random.default_rng(1).bytes(3000)
    secret = os.path.abspath("secret.txt")
    yield "playlist.mp4", f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n".encode()
    yield "list.mp4", f"ffconcat version 1.0\nfile {secret}\n".encode()
    yield "manifest.mp4", f"<MPD><BaseURL>file://{secret}</BaseURL></MPD>".encode()
    yield "script.mp4", b"AviSynth script\n"
    yield "sdp.mp4", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"


ADDRESSES = [
    "http://127.0.0.1:1/x.jpg",
    "http://[::bad/x.jpg",
    "http:///x.jpg",
    "https://127.0.0.1:99999/x.jpg",
    "file:///etc/passwd",
    "ftp://127.0.0.1/x.jpg",
    "data://text/plain,hello",
    "gopher://127.0.0.1/x",
    "rtsp://127.0.0.1:1/live",
    "concat:a.mp4|b.mp4",
    "subfile,,start,0,end,9,,:a.mp4",
    "http://127.0.0.1:1/\n\x1b[2J.mp4",
]
NAMES = [
    "missing.jpg",
    "\0.jpg",
    "x" * 300 + ".mp4",
    "../../../../no/such.png",
    "no/*/*.mp4",
    "~/no.jpg",
    "C:\\no.jpg",
    "./-.mp4",
]


def test_a_hundred_sources_that_cannot_be_done(folder, capsys):
    Path("secret.txt").write_text("secret")
    Path("in").mkdir()
    files = []
    for name, data in broken_files():
        Path("in", name).write_bytes(data)
        files.append(f"in/{name}")
    os.mkfifo("in/pipe.mp4")
    os.mkdir("in/folder.mp4")
    os.symlink("loop.mp4", "in/loop.mp4")
    files += ["in/pipe.mp4", "in/folder.mp4", "in/loop.mp4"]
    sources = [*files, *ADDRESSES, *NAMES]
    assert len(sources) >= 100
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save("good.png")
    assert main(["predict", "--model", "hyperseg-s-camvid", *sources, "good.png"]) == 1
    out, err = capsys.readouterr()
    lines = [line.removeprefix("hyperseg predict: ") for line in err.splitlines()]
    assert sorted(path.name for path in Path("predictions").rglob("*")) == ["good_labels.png", "good_overlay.png"]
    assert out.startswith("good.png (40x60)")
    assert "\x1b" not in err
    assert "secret" not in err.replace("secret.txt", "")
    assert "Traceback" not in err
    assert lines[-1] == f"1 of {len(sources) + 1} inputs done; {len(sources)} failed"
    for file in files:
        assert sum(line.startswith(f"{file} ") or f" {file} " in line or f" {file};" in line for line in lines) >= 1, (
            file
        )
