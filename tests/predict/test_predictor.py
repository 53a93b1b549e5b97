"""Predictor: sizes and engines, the loop from a source to sinks, label sets; and the shares of classes."""

import gc
import textwrap
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import hyperseg.predict
from hyperseg.data import CAMVID, CAMVID_11, CITYSCAPES, VOC, colorize
from hyperseg.predict import (
    Frame,
    FrameError,
    FrameTooLargeError,
    ImageSource,
    LabelSink,
    OutputError,
    OverlaySink,
    Predictor,
    SinkError,
    SourceError,
    class_shares,
    find_images,
    label_set_of,
    parse_size,
)
from hyperseg.predict import predictor as predictor_module
from hyperseg.runtime import EngineError
from tests.predict.networks import Engine, NearestColor, segment


@pytest.fixture
def network():
    return NearestColor().eval()


@pytest.fixture
def painted():
    """An image in CamVid's colours, of odd size, and its labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 12, (7, 11), dtype=np.uint8).repeat(9, axis=0).repeat(9, axis=1)[:61, :97]
    return colorize(labels, CAMVID), labels


# ---------------------------------------------------------------------------------------------------------------------
# Sizes and engines


def test_native_size(stand_in, network, painted):
    image, labels = painted
    for found in (segment(network, image), Predictor(network)(image)):
        assert found.dtype == np.uint8
        assert np.array_equal(found, labels)


@pytest.mark.parametrize("size", [(32, 48), (128, 160), (61, 97)])
def test_resized(stand_in, network, painted, size):
    """The network gets the image resized with antialiasing, and logits, not labels, are resized back."""
    image, labels = painted
    seen = []
    predictor = Predictor(network, size)
    engine = predictor.engine(size)
    engine.logits = lambda frames, plain=engine.logits: seen.append(frames) or plain(frames)
    found = predictor(image)
    assert np.array_equal(found, segment(network, image, size))
    assert stand_in == [size]

    expected = F.interpolate(
        torch.tensor(image).permute(2, 0, 1)[None].float(), size=size, mode="bilinear", antialias=True
    )
    assert (seen[0].permute(0, 3, 1, 2).float() - expected).abs().max() <= 1, "both round, Pillow twice"
    logits = F.interpolate(engine.logits(seen[0]), size=labels.shape, mode="bilinear", align_corners=False)
    assert np.array_equal(found, logits[0].argmax(0).numpy())
    if size != (32, 48):
        assert (found == labels).mean() > 0.9


def test_labels_have_the_size_of_the_image(stand_in, network, images):
    predictor = Predictor(network, (33, 57))
    for name in ("voc", "rocket"):
        assert predictor(images[name]).shape == images[name].shape[:2]


def test_read_only_and_strided_images(stand_in, network, painted):
    image, labels = painted
    image.setflags(write=False)
    assert np.array_equal(Predictor(network)(image[::-1, ::-1]), labels[::-1, ::-1])
    assert np.array_equal(Predictor(network, (61, 97))(image[::-1, ::-1]), labels[::-1, ::-1])
    assert Predictor(network, (32, 48))(image[::-1, ::-1]).shape == (61, 97)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
def test_arrays_that_are_not_images(stand_in, network, shape):
    predictor = Predictor(network)
    with pytest.raises(ValueError, match=r"an image is uint8 \[H, W, 3\] RGB; got uint8"):
        predictor(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="got float64"):
        predictor(np.zeros((4, 4, 3)))
    for image, kind in (("photo.jpg", "builtins.str"), (Image.new("RGB", (4, 4)), "PIL.Image.Image")):
        with pytest.raises(TypeError, match=f"an image is a NumPy array, .*; got {kind}; read_image reads a file"):
            predictor(image)
    assert stand_in == []


def test_one_engine_per_size_and_the_oldest_is_dropped(stand_in, network):
    predictor = Predictor(network.train(), keep=2)
    assert not network.training
    assert predictor.label_set is CAMVID
    for side in (8, 9, 8, 10, 8, 9):
        assert predictor(np.zeros((side, 16, 3), np.uint8)).shape == (side, 16)
    assert stand_in == [(8, 16), (9, 16), (10, 16), (9, 16)]


def test_engines_of_all_sizes_share_the_weights():
    predictor = Predictor(hyperseg.synthesize_weights(hyperseg.create_model("hyperseg-s-camvid")), keep=1)
    first = predictor.engine((32, 48))
    other = predictor.at((40, 64))
    engines = [predictor.engine((64, 64)), other.engine((40, 64)), predictor.engine((32, 48))]
    assert all(engine.folded is first.folded for engine in engines)
    assert [engine.size for engine in engines] == [(64, 64), (40, 64), (32, 48)]
    assert (predictor.size, other.size) == (None, (40, 64))
    assert other(np.zeros((50, 70, 3), np.uint8)).shape == (50, 70)
    with pytest.raises(ValueError, match="size and batch must be positive"):
        predictor.at((0, 64))


def test_one_size_needs_one_engine(stand_in, network, images):
    predictor = Predictor(network, size=(48, 64))
    for name, image in images.items():
        assert predictor(image).shape == image.shape[:2], name
    assert stand_in == [(48, 64)]


def test_the_first_engine_that_is_built_is_compared_with_the_module(stand_in, network, monkeypatch):
    calls = []

    def build_engine(model, check, size, plain=predictor_module.build_engine, **settings):
        calls.append((check, settings))
        if len(calls) == 1:
            raise EngineError("no")
        return plain(model, size, check=check, **settings)

    monkeypatch.setattr(predictor_module, "build_engine", build_engine)
    predictor = Predictor(network, device="cpu", dtype="bfloat16")
    with pytest.raises(EngineError):
        predictor.engine((8, 8))
    monkeypatch.setattr(Engine, "at", lambda self, size, check: calls.append((check, None)) or self)
    for size in ((8, 8), (9, 9)):
        predictor.engine(size)
    other = predictor.at((8, 8))
    for size in ((8, 8), (9, 9)):
        other.engine(size)
    assert [check for check, _ in calls] == [True, True, False, True, False]
    calls = calls[:2]
    assert all(settings == {"dtype": torch.bfloat16, "device": torch.device("cpu")} for _, settings in calls)


def test_parse_size():
    assert parse_size("native", (5, 6)) is None
    assert parse_size(" Model ", (5, 6)) == (5, 6)
    assert parse_size("512X1024", (5, 6)) == (512, 1024)
    for text in ("512", "0x5", "-1x5", "axb", "512x1024x3", "99999x5", "1x1", ""):
        with pytest.raises(ValueError, match="give native, model, or HEIGHTxWIDTH such as 512x1024"):
            parse_size(text, (5, 6))


# ---------------------------------------------------------------------------------------------------------------------
# The loop


@pytest.fixture
def frames(painted):
    """Three frames of different sizes."""
    image, _ = painted
    return [Frame("a", image), Frame("b", image[:20]), Frame("c", image[:, :30])]


def fail_at(monkeypatch, height, error):
    """Have the predictor fail on images of this height."""

    def call(self, image, plain=Predictor.__call__):
        if image.shape[0] == height:
            raise error
        return plain(self, image)

    monkeypatch.setattr(Predictor, "__call__", call)


def test_run(stand_in, network, frames, painted, tmp_path):
    sinks = {"labels": LabelSink(tmp_path), "overlay": OverlaySink(tmp_path, kind="jpg")}
    results = list(Predictor(network).run(frames, sinks))
    assert [prediction.frame for prediction, _ in results] == frames
    assert [files for _, files in results] == [
        {"labels": tmp_path / f"{name}_labels.png", "overlay": tmp_path / f"{name}_overlay.jpg"} for name in "abc"
    ]
    for prediction, files in results:
        assert prediction.label_set is CAMVID
        assert prediction.shares == class_shares(prediction.labels, CAMVID)
        assert np.array_equal(np.asarray(Image.open(files["labels"])), prediction.labels)
        assert files["overlay"].is_file()
    assert np.array_equal(results[0][0].labels, painted[1])


def test_run_one_frame_at_a_time(stand_in, network, frames):
    """With ahead=0 the next frame is taken when the previous result was used."""
    taken = []
    results = Predictor(network).run((taken.append(frame.name) or frame for frame in frames), ahead=0)
    assert taken == []
    prediction, files = next(results)
    assert prediction.frame is frames[0]
    assert files == {}
    assert taken == ["a"]
    results.close()
    assert taken == ["a"]


def test_sinks_without_a_file_per_frame(stand_in, network, frames):
    """A window or a video has no file to name."""

    class Window:
        def __init__(self):
            self.shown = []

        def write(self, prediction):
            self.shown.append(prediction)

    window = Window()
    results = list(Predictor(network).run(frames, {"window": window}))
    assert [prediction for prediction, _ in results] == window.shown
    assert [files for _, files in results] == [{}, {}, {}]


def test_progress(stand_in, network, frames, monkeypatch):
    calls = []
    predictor = Predictor(network)
    list(predictor.run(frames, progress=lambda *call: calls.append(call)))
    assert calls == [(1, 3), (2, 3), (3, 3)]

    calls.clear()
    list(predictor.run((frame for frame in frames), progress=lambda *call: calls.append(call)))
    assert calls == [(1, None), (2, None), (3, None)], "a generator has no length"

    calls.clear()
    fail_at(monkeypatch, 20, MemoryError())
    list(predictor.run(frames, on_error=lambda error: None, progress=lambda *call: calls.append(call)))
    assert calls == [(1, 3), (2, 3), (3, 3)], "a failed frame is done"


def test_unreadable_files(stand_in, network, painted, tmp_path):
    for name in ("a", "c"):
        Image.fromarray(painted[0]).save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_text("no image")
    source = ImageSource(find_images([tmp_path]))
    predictor = Predictor(network)
    errors = []
    assert [prediction.frame.name for prediction, _ in predictor.run(source, on_error=errors.append)] == ["a", "c"]
    assert [type(error) for error in errors] == [SourceError]
    assert str(errors[0]).startswith(f"{tmp_path / 'b.png'} is not an image")

    results = predictor.run(source)
    assert next(results)[0].frame.name == "a"
    with pytest.raises(SourceError, match=r"b\.png is not an image"):
        next(results)


def test_a_source_that_ends_with_an_error(stand_in, network, frames):
    """A generator cannot go on after it has raised."""

    def source():
        yield frames[0]
        raise SourceError("the camera is unplugged")

    errors = []
    assert len(list(Predictor(network).run(source(), on_error=errors.append))) == 1
    assert [str(error) for error in errors] == ["the camera is unplugged"]


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),  # inside a native operator
    RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: f"{type(error).__name__}-{str(error)[:8]}")
def test_a_frame_that_does_not_fit_in_memory(stand_in, network, frames, monkeypatch, error):
    fail_at(monkeypatch, 20, error)
    errors = []
    results = Predictor(network).run(frames, on_error=errors.append)
    assert [prediction.frame.name for prediction, _ in results] == ["a", "c"]
    assert [type(error) for error in errors] == [FrameTooLargeError]
    assert [str(error) for error in errors] == ["b (20x97) does not fit in memory"]
    with pytest.raises(FrameTooLargeError, match=r"b \(20x97\) does not fit in memory"):
        list(Predictor(network).run(frames))


def test_an_engine_that_does_not_fit_in_memory(stand_in, network, frames, monkeypatch):
    def at(self, size, check, plain=Engine.at):
        if size[0] == 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, size, check)

    monkeypatch.setattr(Engine, "at", at)
    errors = []
    assert len(list(Predictor(network).run(frames, on_error=errors.append))) == 2
    assert [type(error) for error in errors] == [FrameTooLargeError]


def test_a_kept_error_does_not_keep_memory(stand_in, network, frames, monkeypatch):
    """The original error's traceback refers to the tensors that filled the memory."""
    held = []

    def call(self, image):
        activations = torch.zeros(4)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Predictor, "__call__", call)
    errors = []
    assert list(Predictor(network).run(frames, on_error=errors.append)) == []
    gc.collect()
    assert len(errors) == len(held) == 3
    assert [reference() for reference in held] == [None, None, None]


@pytest.mark.parametrize(
    "error", [EngineError("The engine ran out of memory"), RuntimeError("a bug"), ValueError("a bug")]
)
def test_other_errors_end_the_run(stand_in, network, frames, monkeypatch, error):
    fail_at(monkeypatch, 20, error)
    results = Predictor(network).run(frames, on_error=lambda error: pytest.fail("not an error of one frame"))
    assert next(results)[0].frame.name == "a"
    with pytest.raises(type(error)) as caught:
        next(results)
    assert caught.value is error


class FailsAt:
    """A sink that fails at one frame."""

    def __init__(self, name, error):
        self.name, self.error = name, error

    def write(self, prediction):
        if prediction.frame.name == self.name:
            raise self.error


@pytest.mark.parametrize("error", [OutputError("no"), *OUT_OF_MEMORY], ids=lambda error: type(error).__name__)
def test_an_output_that_cannot_be_written_is_an_error_of_its_frame(stand_in, network, frames, error):
    errors = []
    results = Predictor(network).run(frames, {"sink": FailsAt("b", error)}, errors.append)
    assert [prediction.frame.name for prediction, _ in results] == ["a", "c"]
    expected = OutputError if isinstance(error, OutputError) else FrameTooLargeError
    assert [type(found) for found in errors] == [expected]
    assert isinstance(errors[0], FrameError)


def test_a_sink_that_cannot_write_any_more_ends_the_run(stand_in, network, frames):
    results = Predictor(network).run(frames, {"sink": FailsAt("b", SinkError("disk full"))}, pytest.fail)
    assert next(results)[0].frame.name == "a"
    with pytest.raises(SinkError, match="disk full"):
        next(results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "512x1024"}, r"size is '512x1024'; give \(height, width\)"),
        ({"size": 512}, r"size must be \(height, width\) of the frames, got 512"),
        ({"size": (0, 5)}, "size and batch must be positive, got 0x5"),
        ({"dtype": "int8"}, "dtype must be one of torch.float32, torch.float16, torch.bfloat16, got 'int8'"),
        ({"dtype": "nn"}, "dtype must be one of torch.float32"),
        ({"dtype": torch.float64}, "dtype must be one of torch.float32"),
        ({"device": ""}, "there is no device called"),
        ({"device": "abacus"}, "there is no device called abacus"),
        ({"keep": 0}, "keep is 0; give the number of engines kept, at least 1"),
    ],
)
def test_wrong_arguments(network, arguments, message):
    with pytest.raises(ValueError, match=message):
        Predictor(network, **arguments)


def test_the_example_of_the_package(folder, images, true_network, capsys):
    """The code in the docstring of hyperseg.predict, unchanged. One of the image files cannot be read."""
    lines = hyperseg.predict.__doc__.splitlines()
    code = textwrap.dedent("\n".join(line for line in lines if not line or line.startswith("    ")))
    (folder / "my-network").symlink_to(true_network.weights["folder"])
    (folder / "images").mkdir()
    Image.fromarray(images["coffee"][:64, :96]).save("images/cup.png")
    (folder / "images" / "empty.png").touch()
    names = {}
    exec(code, names)
    expected = segment(true_network.model, images["coffee"][:64, :96])
    assert (np.asarray(Image.open("out/cup_labels.png")) == expected).mean() > 0.999
    line, error = capsys.readouterr().out.splitlines()
    assert line.startswith("out/cup_overlay.png [('")
    assert error == "images/empty.png is empty (0 bytes); give an image file"
    assert np.array_equal(names["predictor"](images["coffee"][:64, :96]), names["prediction"].labels)


def test_label_set_of():
    def config(dataset, num_classes, class_names=None):
        return SimpleNamespace(dataset=dataset, num_classes=num_classes, class_names=class_names)

    assert label_set_of(config("cityscapes", 19)) is CITYSCAPES
    assert label_set_of(config("camvid", 12, CAMVID.classes)) is CAMVID
    assert label_set_of(config("custom", 11, list(CAMVID_11.classes))) is CAMVID_11, "as a network is trained on it"
    renamed = label_set_of(config("voc", 21, tuple("abcdefghijklmnopqrstu")))
    assert renamed.classes[20] == "u"
    assert renamed.colors == VOC.colors
    assert len(label_set_of(config("cityscapes", 3))) == 3
    assert label_set_of(config("mine", 2, ["cat", "dog"])).classes == ("cat", "dog")
