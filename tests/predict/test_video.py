"""Videos as sources and sinks: times, rotation, odd sides, colours, sound, damage."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av")

from hyperseg.data import CAMVID  # noqa: E402 - after the package that may be missing
from hyperseg.predict import Prediction, SinkError, SourceError, VideoSink, VideoSource  # noqa: E402
from hyperseg.predict.video.pictures import turned  # noqa: E402
from tests.predict.videos import (  # noqa: E402
    BT601,
    BT709,
    BT2020,
    FULL,
    LIMITED,
    PQ,
    TICK,
    flat,
    number_of,
    packets_of_sound,
    write_sound,
    write_video,
)


def copy(path, target, **options):
    """Write the frames of a video to another, as they are. Return the source, its frames and the sink."""
    source = VideoSource(path)
    frames = []
    sink = VideoSink(target, lambda prediction: prediction.frame.image, source.rate, source.time_base, **options)
    with sink:
        for frame in source:
            frames.append(frame)
            sink.write(Prediction(frame, np.zeros(frame.image.shape[:2], np.uint8), CAMVID))
    return source, frames, sink


def checked_copy(path, tmp_path, **options):
    """Copy a video, and check that all 12 frames come out in order at their times. Return the copy's frames too."""
    source, frames, sink = copy(path, tmp_path / "out.mp4", **options)
    again = list(VideoSource(sink.file))
    assert [number_of(frame.image) for frame in frames] == list(range(12))
    assert [number_of(frame.image) for frame in again] == list(range(12))
    assert [frame.index for frame in again] == list(range(12))
    for before, after in zip(frames, again, strict=True):
        assert abs(before.time - after.time) <= TICK
    return source, frames, sink, again


def test_variable_frame_rate(tmp_path):
    times = [0, 33, 66, 500, 533, 1000, 1033, 1500, 1600, 1700, 1800, 3000]
    video = write_video(tmp_path / "phone.mp4", times=times, time_base=TICK)
    _, frames, _, again = checked_copy(video, tmp_path)
    assert [float(frame.time) for frame in frames] == pytest.approx([time / 1000 for time in times], abs=1e-3)
    assert [frame.name for frame in frames[:2]] == ["phone_000000", "phone_000001"]
    end = [frames[-1].time + frames[-1].duration, again[-1].time + again[-1].duration]
    assert abs(end[0] - end[1]) <= TICK


def test_rotation(tmp_path):
    """A quarter turn clockwise: the first bar, on the left, is shown at the top. The output is not turned again."""
    video = write_video(tmp_path / "turned.mp4", rotation=-90)
    source, frames, sink = copy(video, tmp_path / "out.mp4")
    for each in (frames, list(VideoSource(sink.file))):
        assert [frame.image.shape for frame in each] == [(64, 48, 3)] * 12
        assert [number_of(np.rot90(frame.image)) for frame in each] == list(range(12))
    with av.open(str(sink.file)) as container:
        assert {frame.rotation for frame in container.decode(video=0)} == {0}
    assert source.notes == sink.notes == []


@pytest.mark.parametrize("mirror", [1, -1])
@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_display_matrices(quarter, mirror):
    """A pixel at (x, y) is shown at (a x + c y, b x + d y), up to a shift."""
    a, b, c, d = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)][quarter]
    a, c = a * mirror, c * mirror
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    expected = {}
    for y in range(2):
        for x in range(3):
            expected[a * x + c * y, b * x + d * y] = image[y, x]
    left, top = (min(place[axis] for place in expected) for axis in (0, 1))
    found, exchanged = turned(image, (a << 16, b << 16, c << 16, d << 16))
    assert exchanged == bool(quarter % 2)
    for (x, y), pixel in expected.items():
        assert np.array_equal(found[y - top, x - left], pixel)
    assert turned(image, (1, 1, -1, 1))[0] is image, "no quarter turn: as it is"


@pytest.mark.parametrize("size", [(47, 63), (48, 63), (47, 64)])
def test_odd_sides(tmp_path, size):
    """The right column and the bottom row are repeated; everything else stays in place."""
    video = write_video(tmp_path / "odd.mkv", size=size, pixels="yuv444p")
    _, frames, sink, again = checked_copy(video, tmp_path)
    height, width = size
    assert frames[0].image.shape == (*size, 3)
    assert again[0].image.shape == (height + height % 2, width + width % 2, 3)
    assert sink.notes == [
        f"H.264 has even sides: {width}x{height} is stored as {width + width % 2}x{height + height % 2}"
    ]
    difference = np.abs(again[5].image[:height, :width].astype(int) - frames[5].image)
    assert (difference > 60).mean() < 0.1, "but for the edges of bars, where chroma is half as fine"


def test_rates_are_fractions(tmp_path):
    video = write_video(tmp_path / "ntsc.mp4", rate=Fraction(30000, 1001))
    source, *_ = checked_copy(video, tmp_path)
    assert source.rate == VideoSource(tmp_path / "out.mp4").rate == Fraction(30000, 1001)


def test_sound_is_kept_bit_for_bit(tmp_path):
    video = write_video(tmp_path / "talk.mp4", sound="aac")
    source, _, sink, _ = checked_copy(video, tmp_path, sound=str(video))
    assert source.audio == "aac"
    assert packets_of_sound(sink.file) == packets_of_sound(video)
    assert sink.notes == []
    checked_copy(video, tmp_path)
    assert VideoSource(tmp_path / "out.mp4").audio is None, "without the sound it is not there"


def test_sound_that_an_mp4_cannot_hold_is_left_out_with_a_note(tmp_path):
    video = write_video(tmp_path / "talk.mkv", sound="pcm_s16le")
    _, _, sink, _ = checked_copy(video, tmp_path, sound=str(video))
    assert VideoSource(sink.file).audio is None
    assert sink.notes == ["its sound (pcm_s16le) cannot be stored in an MP4 that plays everywhere; it is left out"]


@pytest.mark.parametrize("range_", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", [BT601, BT709])
def test_colours_and_shapes_of_pixels(tmp_path, matrix, range_):
    red = (200, 30, 30)
    settings = {"matrix": matrix, "range_": range_, "aspect": Fraction(4, 3), "draw": flat(red)}
    video = write_video(tmp_path / "red.mp4", **settings)
    _, frames, sink = copy(video, tmp_path / "out.mp4")
    for each in (frames, list(VideoSource(sink.file))):
        assert {frame.pixel_aspect for frame in each} == {Fraction(4, 3)}
        for frame in each:
            assert np.abs(frame.image.astype(int) - red).max() <= 3


def test_turned_pixels_are_not_square_the_other_way(tmp_path):
    video = write_video(tmp_path / "turned.mp4", rotation=-90, aspect=Fraction(4, 3))
    assert next(iter(VideoSource(video))).pixel_aspect == Fraction(3, 4)


def test_ten_bits(tmp_path):
    video = write_video(
        tmp_path / "hdr.mp4", pixels="yuv420p10le", matrix=BT2020, range_=LIMITED, transfer=PQ, codec="libx265"
    )
    source, frames, _, _ = checked_copy(video, tmp_path)
    assert source.notes == [
        "it has a high dynamic range (PQ), reduced to 8 bits without tone mapping: colours are pale"
    ]
    white = frames[1].image[24, 8].astype(int)
    assert white.min() > 240
    assert np.ptp(white) <= 3, "grey stays grey"


@pytest.mark.parametrize("start", [-3, 50])
def test_the_first_time_is_not_zero(tmp_path, start):
    """Times begin at 0; B-frames, which are stored in another order, are shown in theirs."""
    video = write_video(tmp_path / "late.ts", times=[start + index for index in range(12)], sound="mp2")
    source, frames, _, _ = checked_copy(video, tmp_path)
    assert source.origin != 0
    assert frames[0].time == 0


def test_sound_begins_where_the_pictures_begin(tmp_path):
    video = write_video(tmp_path / "late.mkv", times=[25 + index for index in range(12)], sound="aac", sound_from=1)
    source, _, sink, _ = checked_copy(video, tmp_path, sound=str(video))
    shift = float(source.origin)
    before, after = packets_of_sound(video), packets_of_sound(sink.file)
    assert [data for _, data in after] == [data for _, data in before]
    with av.open(str(sink.file)) as container:
        first = next(container.decode(video=0))
        pictures = float(first.pts * first.time_base)
    gaps = after[0][0] - pictures, before[0][0] - shift
    assert gaps[0] == pytest.approx(gaps[1], abs=0.03)


def test_length(tmp_path):
    source = VideoSource(write_video(tmp_path / "a.mp4"))
    assert source.__length_hint__() == 12
    assert len(list(source)) == len(list(source)) == 12, "it can be read again"
    assert VideoSource(write_video(tmp_path / "a.mkv")).__length_hint__() == 12, "from the duration"


# ---------------------------------------------------------------------------------------------------------------------
# Damage


def read_all(path):
    """Return the frames of a video, and the error after them."""
    frames = []
    try:
        for frame in VideoSource(path):
            frames.append(frame)  # noqa: PERF402 - those before an error count
    except SourceError as error:
        return frames, str(error)
    return frames, None


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts", "avi"])
def test_a_truncated_video_gives_the_frames_that_are_there(tmp_path, kind):
    codec = {"avi": "mpeg4"}.get(kind, "libx264")
    options = {"g": "10", **({"movflags": "+faststart"} if kind == "mp4" else {})}
    video = write_video(tmp_path / f"whole.{kind}", frames=100, codec=codec, options=options)
    if kind == "mp4":  # the index first, as in a video of the web
        with (
            av.open(str(video)) as old,
            av.open(str(tmp_path / "fast.mp4"), "w", container_options={"movflags": "+faststart"}) as new,
        ):
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(old.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    new.mux(packet)
        video = tmp_path / "fast.mp4"
    data = video.read_bytes()
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(data[: len(data) * 6 // 10])
    with av.open(str(video)) as file:
        whole = sum(p.size > 0 and p.pos + p.size <= cut.stat().st_size for p in file.demux(video=0))
    frames, message = read_all(cut)
    assert 10 <= len(frames) == whole < 100
    assert [number_of(frame.image) for frame in frames[:9]] == list(range(9))
    if kind != "ts":  # which does not say how long it is
        assert message is not None
        assert message.startswith(f"{cut} ")
        assert f"{len(frames)} frames could be read, and are done" in message


def test_a_damaged_part_is_left_out(tmp_path):
    video = write_video(tmp_path / "a.ts", frames=60, options={"g": "6"})
    data = bytearray(video.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = bytes(600)
    video.write_bytes(data)
    frames, _ = read_all(video)
    assert 30 < len(frames) <= 60
    assert [number_of(frame.image) for frame in frames[:9]] == list(range(9))
    assert all(b.time > a.time for a, b in itertools.pairwise(frames))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("no.mp4", None, "there is no file "),
        ("empty.mp4", b"", "is empty (0 bytes); give a video file"),
        ("text.mp4", b"hello " * 100, "is not a video of a known kind"),
        (
            "cut.mp4",
            b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41\0\0\0\x08free\0\1\0\0mdat" + b"\1" * 999,
            "begins like a video",
        ),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", "is not a video of a known kind"),
        ("list.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n", "is not a video of a known kind"),
        ("noise.mkv", b"\x1a\x45\xdf\xa3" + bytes(range(256)) * 9, "begins like a video, but is damaged or incomplete"),
    ],
)
def test_files_that_are_no_videos(tmp_path, name, data, message):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(SourceError) as caught:
        list(VideoSource(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_video(tmp_path):
    with pytest.raises(SourceError, match="is no regular file; give a video file"):
        VideoSource(tmp_path)


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as output:
        write_sound(output, output.add_stream("aac", rate=44100))
    with pytest.raises(SourceError, match=r"song\.mp4 has no pictures, only sound or data; give a video"):
        VideoSource(tmp_path / "song.mp4")


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def test_an_unfinished_video_is_completed_and_never_half_written(tmp_path):
    video = write_video(tmp_path / "a.mp4")
    target = tmp_path / "out" / "b.mp4"
    sink = VideoSink(target, lambda prediction: prediction.frame.image)
    frames = list(VideoSource(video))
    for frame in frames[:5]:
        sink.write(Prediction(frame, np.zeros((48, 64), np.uint8), CAMVID))
        assert not target.exists()
    assert sink.close() == target
    assert len(list(VideoSource(target))) == 5
    assert [path.name for path in target.parent.iterdir()] == ["b.mp4"]
    assert sink.close() is None, "once"

    assert VideoSink(tmp_path / "none.mp4", lambda prediction: None).close() is None
    assert not (tmp_path / "none.mp4").exists()


def test_frames_that_change_their_size(tmp_path):
    sink = VideoSink(tmp_path / "b.mp4", lambda prediction: prediction.frame.image)
    video = write_video(tmp_path / "a.mp4")
    with sink:
        for index, frame in enumerate(VideoSource(video)):
            image = frame.image if index < 6 else np.repeat(frame.image, 2, axis=0)
            changed = type(frame)(frame.name, image, None, frame.index, frame.time)
            sink.write(Prediction(changed, np.zeros(image.shape[:2], np.uint8), CAMVID))
    assert [number_of(frame.image) for frame in VideoSource(tmp_path / "b.mp4")] == list(range(12))
    assert sink.notes == ["its frames change their size; all are stored in the size of the first"]


def test_a_video_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    frame = next(iter(VideoSource(write_video(tmp_path / "a.mp4"))))
    sink = VideoSink(tmp_path / "file" / "b.mp4", lambda prediction: prediction.frame.image)
    with pytest.raises(SinkError, match=r"file/b\.mp4 could not be written"):
        sink.write(Prediction(frame, np.zeros((48, 64), np.uint8), CAMVID))
    assert sink.close() is None


@pytest.mark.parametrize(
    ("arguments", "message"), [({"quality": 99}, "quality is 99"), ({"path": "a.avi"}, "a.avi does not end in .mp4")]
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VideoSink(**{"path": "a.mp4", "draw": lambda prediction: None, **arguments})
