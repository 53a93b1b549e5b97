"""`hyperseg predict` with videos, pipes, addresses and cameras: outputs, messages, exit codes, resumption, shares.

The network is a stand-in whose output is known. tests/predict/test_video.py checks times, colours and sound.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av")

from hyperseg.cli import main  # noqa: E402 - after the package that may be missing
from hyperseg.data import CAMVID  # noqa: E402
from hyperseg.predict import Predictor, VideoSource  # noqa: E402
from tests.predict.videos import flat, number_of, packets_of_sound, write_video  # noqa: E402
from tests.server import Page, serve  # noqa: E402

pytestmark = pytest.mark.usefixtures("stand_in")

ROAD, SKY = CAMVID.colors[3], CAMVID.colors[0]


def half_sky(number, width, height):
    """Draw road with sky above."""
    picture = flat(ROAD)(number, width, height)
    picture[: height // 2] = SKY
    return picture


def predict(*arguments):
    return main(["predict", "--model", "hyperseg-s-camvid", *map(str, arguments)])


def messages(capsys):
    """Return what was printed, and the messages but for the one about random weights."""
    out, err = capsys.readouterr()
    return out, [line.removeprefix("hyperseg predict: ") for line in err.splitlines() if "no --weights" not in line]


def written(folder="predictions"):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_a_video(folder, capsys):
    write_video("street.mp4", draw=half_sky, sound="aac")
    assert predict("street.mp4") == 0
    out, err = messages(capsys)
    first, *classes = out.splitlines()
    assert first.startswith("street.mp4 (12 frames of 48x64, 0.5 s) -> predictions/street_overlay.mp4, ")
    assert first.endswith(" frames per second")
    assert classes == ["  Sky     50.0%", "  Road    50.0%"]
    assert err == []
    assert written() == ["street_overlay.mp4"]
    frames = list(VideoSource("predictions/street_overlay.mp4"))
    assert len(frames) == 12
    assert np.abs(frames[3].image[40, 30].astype(int) - ROAD).max() <= 4
    assert packets_of_sound("predictions/street_overlay.mp4") == packets_of_sound("street.mp4")


def test_every_kind_of_output(folder, capsys):
    write_video("street.mp4", draw=half_sky, frames=3)
    Image.fromarray(half_sky(0, 60, 40)).save("photo.png")
    kinds = "labels,index,colors,overlay,side,json"
    assert predict("street.mp4", "photo.png", "--write", kinds, "--legend", "--json") == 0
    document = json.loads(messages(capsys)[0])
    (image,), (video,) = document["images"], document["videos"]
    assert set(kinds.split(",")) < set(image)
    assert video["frames"] == 3
    assert video["labels"] == "predictions/street"
    assert written() == [
        *(f"photo{end}" for end in (".json", "_colors.png", "_index.png", "_labels.png", "_overlay.png", "_side.png")),
        "street.jsonl",
        *(f"street/street_00000{index}_{kind}.png" for index in range(3) for kind in ("index", "labels")),
        *(f"street{end}" for end in ("_colors.mp4", "_overlay.mp4", "_side.mp4")),
    ]
    labels = np.where(np.arange(40)[:, None] < 20, 0, 3) + np.zeros((40, 60), int)
    for kind, mode in (("labels", "P"), ("index", "L")):
        found = Image.open(f"predictions/photo_{kind}.png")
        assert found.mode == mode
        assert np.array_equal(np.asarray(found), labels)
    assert np.array_equal(np.asarray(Image.open("predictions/photo_colors.png"))[[0, -1], 0], [SKY, ROAD])
    assert Image.open("predictions/photo_side.png").width >= 120
    photo = json.loads(Path("predictions/photo.json").read_text())
    assert [share["name"] for share in photo["classes"]] == ["Sky", "Road"]
    lines = [json.loads(line) for line in Path("predictions/street.jsonl").read_text().splitlines()]
    assert [(line["frame"], line["time"]) for line in lines] == [(0, 0.0), (1, 0.04), (2, 0.08)]
    side = next(iter(VideoSource("predictions/street_side.mp4"))).image
    assert side.shape[1] == 128
    assert side.shape[0] > 48, "the legend is below"


def test_a_folder_with_images_and_videos(folder, capsys):
    Path("in").mkdir()
    write_video("in/a.mp4", draw=half_sky, frames=2)
    Image.fromarray(half_sky(0, 60, 40)).save("in/a.png")
    for _ in range(2):  # outputs of the first run are not inputs of the second
        assert predict("in", "--output", "in") == 0
        assert written("in") == ["a.mp4", "a.png", "a_mp4_overlay.mp4", "a_png_labels.png", "a_png_overlay.png"]
    _, err = messages(capsys)
    assert "several files are called a; the outputs of in/a.mp4 are called a_mp4" in err


def test_a_video_that_ends_early_keeps_what_is_done(folder, capsys):
    data = write_video(Path("whole.mkv"), frames=100, draw=half_sky, options={"g": "10"}).read_bytes()
    Path("cut.mkv").write_bytes(data[: len(data) * 6 // 10])
    write_video("next.mp4", frames=2, draw=half_sky)
    assert predict("cut.mkv", "next.mp4") == 1
    out, err = messages(capsys)
    assert err[0].startswith("cut.mkv ends early")
    assert err[-1] == "1 of 2 inputs done; 1 failed"
    done = len(list(VideoSource("predictions/cut_overlay.mp4")))
    assert 10 <= done < 100
    assert out.startswith(f"cut.mkv ({done} frames of 48x64")
    assert len(list(VideoSource("predictions/next_overlay.mp4"))) == 2


def test_inputs_that_cannot_be_read(folder, capsys):
    Path("text.mp4").write_text("no video")
    assert predict("text.mp4", "no.mp4", "https://127.0.0.1:1/x.jpg", "77") == 1
    out, err = messages(capsys)
    assert out == ""
    assert len(err) == 5
    for part in ("no.mp4", "127.0.0.1:1/x.jpg could not be downloaded", "text.mp4 is not a video"):
        assert sum(part in line for line in err) == 1
    assert err[-1] == "0 of 4 inputs done; 4 failed"
    assert not os.path.exists("predictions")


def test_an_output_that_is_an_input(folder, capsys):
    write_video("a_overlay.mp4")
    before = Path("a_overlay.mp4").read_bytes()
    os.rename("a_overlay.mp4", "a.mp4")
    os.makedirs("b")
    os.symlink("../a.mp4", "b/a_overlay.mp4")
    assert predict("a.mp4", "--output", "b") == 1
    assert "is one of the input images and would be overwritten; give another --output" in messages(capsys)[1][-1]
    assert Path("a.mp4").read_bytes() == before


def test_frames_limit(folder):
    write_video("a.mp4", draw=half_sky)
    assert predict("a.mp4", "--frames", "5") == 0
    assert len(list(VideoSource("predictions/a_overlay.mp4"))) == 5


def test_frames_of_a_pipe_and_labels_to_one(folder, monkeypatch, capsys):
    pictures = np.stack([half_sky(0, 60, 40), flat(ROAD)(0, 60, 40)])
    output = io.BytesIO()

    def run(*arguments):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pictures.tobytes())))
        return predict("-", "--raw-size", "40x60", *arguments)

    assert run("--rate", "5/2", "--write", "overlay,json") == 0
    assert written() == ["stdin.jsonl", "stdin_overlay.mp4"]
    assert [float(frame.time) for frame in VideoSource("predictions/stdin_overlay.mp4")] == [0, 0.4]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output))
    assert run("--output", "-") == 0
    sys.stdout.flush()
    labels = np.frombuffer(output.getvalue(), np.uint8).reshape(2, 40, 60)
    assert labels[0, 0, 0] == 0
    assert (labels[1] == 3).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-"], "raw frames (-) have no size of their own; give --raw-size HEIGHTxWIDTH"),
        (["-", "--raw-size", "x"], "'x' is no size"),
        (["-", "--raw-size", "5x5", "--rate", "0"], "'0' is no rate"),
        (["a.png", "--write", "masks"], "--write masks: give one or more of labels, index, colors"),
        (["a.png", "--write", ","], "give one or more of"),
        (["a.png", "--quality", "52"], "'52' is no quality"),
        (["a.png", "--json", "--output", "-"], "--json and --output - both write to standard output"),
        (["a.png", "--frames", "0"], "'0' is no whole number from 1"),
    ],
)
def test_invalid_command_lines(folder, capsys, arguments, message):
    assert predict(*arguments) == 2
    assert message in messages(capsys)[1][0]


def test_resume(folder, capsys, stand_in, monkeypatch):
    """What an earlier run wrote with the same settings is not computed again; everything else is."""
    Path("in").mkdir()
    for name in "abc":
        Image.fromarray(half_sky(0, 60, 40)).save(f"in/{name}.png")
    write_video("in/d.mp4", draw=half_sky, frames=2)
    labelled = []
    monkeypatch.setattr(
        Predictor, "__call__", lambda self, image, plain=Predictor.__call__: labelled.append(1) or plain(self, image)
    )

    def run(*more):
        labelled.clear()
        assert predict("in", "--resume", *more) == 0
        return len(labelled), messages(capsys)[1]

    assert run() == (5, [])
    assert run() == (0, ["4 inputs had been done before"])
    os.unlink("predictions/b_overlay.png")
    os.unlink("predictions/d_overlay.mp4")
    assert run() == (3, ["2 inputs had been done before"])
    assert run("--alpha", "0.3")[0] == 5, "other settings"
    Image.fromarray(half_sky(0, 60, 40)).save("predictions/a_labels.png")
    assert run("--alpha", "0.3")[0] == 1, "a file of somebody else"
    assert run("--alpha", "0.3", "--write", "json")[0] == 5
    assert run("--alpha", "0.3", "--write", "json")[0] == 0


def test_several_processes_share_the_inputs(folder, capsys, monkeypatch):
    Path("in").mkdir()
    for name in "abcde":
        Image.fromarray(half_sky(0, 60, 40)).save(f"in/{name}.png")
    for index in range(3):
        write_video(f"in/v{index}.mp4", draw=half_sky, frames=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert predict("in", "--write", "index,json") == 0
        done.append(set(written()))
        assert predict("-", "--raw-size", "4x4") == 1
        assert predict("in", "--json") == 2
    assert {name[0] for name in done[0]} == {"a", "c", "e", "v"}
    assert {name for name in done[1] if name.endswith("json") or name.endswith("jsonl")} == {
        *(f"{name}.json" for name in "abcde"),
        *(f"v{index}.jsonl" for index in range(3)),
    }
    err = capsys.readouterr().err
    assert "hyperseg predict (rank 1): no --weights" in err
    assert "several processes cannot share a camera, a stream or a pipe" in err
    monkeypatch.setenv("RANK", "7")
    assert predict("in") == 1
    assert "RANK=7 and WORLD_SIZE=2 do not name a process of a group" in capsys.readouterr().err


def test_addresses(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    write_video("clip.mp4", draw=half_sky, frames=2)
    Image.fromarray(half_sky(0, 60, 40)).save("photo.png")
    files = {"/a/clip.mp4": Path("clip.mp4").read_bytes(), "/photo.png": Path("photo.png").read_bytes()}
    with serve() as server:
        server.pages = {path: Page(data) for path, data in files.items()}
        assert predict(f"{server.url}/a/clip.mp4", f"{server.url}/photo.png", f"{server.url}/none.jpg") == 1
    _, err = messages(capsys)
    assert written() == ["clip_overlay.mp4", "photo_labels.png", "photo_overlay.png"]
    assert "none.jpg is not there (404" in err[0]


def test_where_the_time_went(folder, capsys):
    write_video("a.mp4", draw=half_sky, frames=3)
    assert predict("a.mp4", "--explain") == 0
    built, line = messages(capsys)[1]
    assert built.startswith("building and checking the engine, once per size: ")
    assert line.startswith("per frame: read ")
    for stage in ("network", "write", "the network waited"):
        assert stage in line


def test_show(folder, monkeypatch, capsys):
    """Pictures are shown in order; closing the window ends the run, and keeps what is done."""
    shown = []

    class Window:
        closed = False

        def __init__(self, title):
            pass

        def show(self, picture):
            shown.append(picture)
            self.closed = len(shown) == 4

    write_video("a.mp4")
    write_video("b.mp4")
    monkeypatch.setattr("hyperseg.predict.window.Window", Window)
    assert predict("a.mp4", "b.mp4", "--show", "--alpha", "0") == 0
    assert [number_of(picture) for picture in shown] == [0, 1, 2, 3]
    assert len(list(VideoSource("predictions/a_overlay.mp4"))) >= 4
    assert written() == ["a_overlay.mp4"]


def test_without_pyav(folder, monkeypatch, capsys):
    write_video("a.mp4")
    Image.fromarray(half_sky(0, 60, 40)).save("b.png")
    monkeypatch.setitem(sys.modules, "av", None)
    assert predict("a.mp4", "b.png") == 1
    assert "a video needs av; run pip install 'hyperseg[video]'" in messages(capsys)[1]
    assert "b_labels.png" in written()


def test_the_frames_of_an_interrupted_video_are_counted(folder, capsys, monkeypatch):
    calls, label = [], Predictor.__call__

    def interrupt(self, image):
        calls.append(image)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return label(self, image)

    monkeypatch.setattr(Predictor, "__call__", interrupt)
    write_video("street.mp4", draw=half_sky)
    assert predict("street.mp4") == 130
    out, err = messages(capsys)
    frames = len(list(VideoSource("predictions/street_overlay.mp4")))
    assert out.startswith(f"street.mp4 ({frames} frames of 48x64")
    assert err[-1] == "error: interrupted (0 of 1 input done; 1 not finished); --resume leaves out what is done"


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_video_is_completed(folder, number):
    """A pipe that gives a frame and then nothing: the process is ended by a signal, and its video can be played."""
    command = [sys.executable, "-m", "hyperseg", "predict", "-", "--raw-size", "32x32", "--model", "hyperseg-s-camvid"]
    process = subprocess.Popen(
        [*command, "--write", "json,overlay"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "HYPERSEG_VERIFY": "0"},
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a job in the background ignores Ctrl-C
    )
    for _ in range(3):
        process.stdin.write(bytes(32 * 32 * 3))
    process.stdin.flush()
    deadline = time.monotonic() + 120
    while not list(Path().glob("predictions/*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)  # for the other frames
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert written() == ["stdin.jsonl", "stdin_overlay.mp4"]
    assert 1 <= len(list(VideoSource("predictions/stdin_overlay.mp4"))) <= 3
