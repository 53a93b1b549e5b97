"""AOTInductor packages, in Python and through the C++ runtime. One package for all, as making it takes long."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hyperseg
from hyperseg.data.labels import label_set_of
from hyperseg.export import ExportError, aoti, export_aoti, load_aoti
from hyperseg.models import synthesize_weights
from hyperseg.ops.backends.native import emulated, extension

ROOT = Path(__file__).resolve().parents[2]
SIZE = (72, 104)  # the network pads it

pytestmark = pytest.mark.skipif(extension()[0] is None or emulated(), reason="packages call operators in C++")


def frames(count: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, *SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def network():
    return synthesize_weights(hyperseg.create_model("hyperseg-s-camvid").eval())


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """A package for two frames at once."""
    return export_aoti(network, tmp_path_factory.mktemp("package") / "network.pt2", SIZE, batch=2, source="made up")


@pytest.fixture(scope="module")
def engine(network):
    return hyperseg.build_engine(network, SIZE, batch=2, device="cpu", check=False)


@pytest.fixture(scope="module")
def runtime():
    return pytest.importorskip("hyperseg.runtime_cpp", reason="the C++ runtime was not built")


@pytest.fixture(scope="module")
def segmenter(runtime, exported):
    return runtime.Segmenter(str(exported.file))


def test_labels_equal_the_engine(exported, engine):
    given = torch.from_numpy(frames(2))
    assert torch.equal(load_aoti(exported.file)(given), engine(given))
    assert exported.checks[0].agreement > 0.999
    assert exported.notes == (f"all {2 * SIZE[0] * SIZE[1]} labels equal the engine's",)


def test_the_sidecar_describes_it(exported):
    about = json.loads(exported.sidecar.read_text())
    assert about["format"] == "aoti"
    assert about["size"] == list(SIZE)
    assert about["batch"] == 2
    assert about["weights"]["source"] == "made up"


def test_operators_are_called_in_cpp(exported):
    """Nothing in the package needs Python: every operator is one of the extension's."""
    with zipfile.ZipFile(exported.file) as package:
        (name,) = [each for each in package.namelist() if each.endswith(".wrapper.json")]
        called = set(re.findall(r"hyperseg\w*::\w+", package.read(name).decode()))
    assert {"hyperseg_native::mbconv_chain", "hyperseg_native::decoder_level"} <= called
    assert all(each.startswith("hyperseg_native::") for each in called)


def test_an_operator_without_kernel_becomes_plain_pytorch():
    """As `context_head` on the CPU: a call that no compiled backend supports is replaced by its definition."""

    class Net(torch.nn.Module):
        def forward(self, x, weight, bias, down, up):
            return hyperseg.ops.context_head(x, weight, bias, [down], [bias], [up], [bias])

    c = 8
    args = (torch.randn(1, 2 * c, 4, 4), torch.randn(c, 2 * c), torch.randn(c), torch.randn(c, c, 2, 2))
    args = (*args, torch.randn(c, 2 * c))
    program = torch.export.export(Net(), args)
    expected = program.module()(*args)
    bound = aoti.bind(program)
    assert not [n for n in bound.graph.nodes if getattr(n.target, "namespace", "").startswith("hyperseg")]
    torch.testing.assert_close(bound.module()(*args), expected)


def test_dtypes_and_memory_formats_are_read_as_written(engine, tmp_path):
    """Also by torch 2.11, which reads other numbers than it writes, and has no sums of integers."""

    class Net(torch.nn.Module):
        def forward(self, x):
            large = torch.nn.functional.interpolate(x.float(), size=(9, 14), mode="nearest")
            return large.bfloat16().transpose(1, 3).contiguous().argmax(1).to(torch.uint8)

    program = torch.export.export(Net(), (torch.zeros(1, 5, 4, 6, dtype=torch.uint8),))
    with torch.no_grad():
        aoti.compile_package(program, engine, {}, tmp_path / "net.pt2")
    given = torch.randint(256, (1, 5, 4, 6), dtype=torch.uint8)
    assert torch.equal(load_aoti(tmp_path / "net.pt2")(given), Net()(given))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"file": "a.so"}, ValueError, "must end in .pt2, got a.so"),
        ({"returns": "logits"}, ValueError, "returns labels, not logits"),
        ({"precision": "int8"}, ValueError, "precision must be one of"),
        ({"size": (0, 10)}, ValueError, "size must be"),
        ({"device": "cuda:7"}, ExportError, "there is no cuda:7"),
    ],
)
def test_refused(network, tmp_path, arguments, error, message):
    given = {"file": "a.pt2", "size": SIZE, **arguments}
    with pytest.raises(error, match=re.escape(message)):
        export_aoti(network, tmp_path / given.pop("file"), **given)
    assert not list(tmp_path.iterdir())


def test_without_a_compiler(network, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ExportError, match=r"there is no C\+\+ compiler"):
        export_aoti(network, tmp_path / "a.pt2", SIZE)
    assert not list(tmp_path.iterdir())


class TestRuntime:
    """hyperseg.runtime_cpp, the C++ runtime in Python."""

    def test_labels_equal_the_engine(self, segmenter, engine):
        given = frames(2)
        assert np.array_equal(segmenter(given), engine(torch.from_numpy(given)).numpy())

    def test_a_short_batch(self, segmenter):
        given = frames(2)
        both = segmenter(given)
        assert np.array_equal(segmenter(given[:1]), both[:1])
        assert np.array_equal(segmenter(given[1]), both[1])

    def test_any_strides(self, segmenter):
        wide = np.random.default_rng(1).integers(256, size=(2, SIZE[0] + 9, SIZE[1] + 5, 3), dtype=np.uint8)
        part = wide[:, 4:-5, 2:-3]
        for view in (part, part[:, ::-1], part[:, :, ::-1], part[..., ::-1], part[::-1]):
            assert np.array_equal(segmenter(view), segmenter(view.copy()))

    def test_info(self, segmenter, network, runtime, exported):
        info = segmenter.info
        table = label_set_of(network.config)
        assert info == runtime.read_info(str(exported.file))
        assert info["classes"] == list(table.classes)
        assert [tuple(color) for color in info["palette"]] == list(table.colors)
        assert (info["height"], info["width"], info["batch"]) == (*SIZE, 2)

    def test_threads_share_it(self, runtime, exported):
        segmenter = runtime.Segmenter(str(exported.file), concurrency=2)
        given = [frames(2, seed) for seed in range(4)]
        expected = [segmenter(each) for each in given]
        wrong = []

        def work(index: int) -> None:
            for _ in range(3):
                if not np.array_equal(segmenter(given[index]), expected[index]):
                    wrong.append(index)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not wrong

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            (np.zeros((*SIZE, 3), np.float32), TypeError, "frames must have dtype uint8, got float32"),
            (np.zeros((*SIZE, 4), np.uint8), ValueError, "[H, W, 3] or [N, H, W, 3], got (72, 104, 4)"),
            (np.zeros((0, *SIZE, 3), np.uint8), ValueError, "got (0, 72, 104, 3)"),
            (
                np.zeros((64, 64, 3), np.uint8),
                RuntimeError,
                "is for images of 72x104 (height x width), the image is 64",
            ),
            (np.zeros((3, *SIZE, 3), np.uint8), RuntimeError, "takes at most 2 images per call, got 3"),
        ],
    )
    def test_wrong_frames(self, segmenter, given, error, message):
        with pytest.raises(error, match=re.escape(message)):
            segmenter(given)

    @pytest.mark.parametrize(
        ("entry", "value", "message"),
        [
            ("format", "2", "has format 2, this library reads format 1"),
            ("torch", "2.3.0", "was made with PyTorch 2.3.0, and this library was built with"),
            ("height", "-1", "is damaged: its height is -1, not a number"),
            ("palette", "1,2", "its palette has the colour 1,2"),
            ("device", "cuda", "is for CUDA devices, and PyTorch finds none here"),
            (None, "", "is not a package of `hyperseg export aoti`"),
        ],
    )
    def test_packages_for_something_else(self, runtime, exported, tmp_path, entry, value, message):
        changed = tmp_path / "changed.pt2"
        with zipfile.ZipFile(exported.file) as old, zipfile.ZipFile(changed, "w") as new:
            for item in old.infolist():
                data = old.read(item)
                if item.filename.endswith("wrapper_metadata.json"):
                    found = json.loads(data)
                    if entry is None:
                        found = {name: each for name, each in found.items() if not name.startswith("hyperseg.")}
                    else:
                        found[f"hyperseg.{entry}"] = value
                    data = json.dumps(found).encode()
                new.writestr(item.filename.replace("network/", "changed/"), data, zipfile.ZIP_STORED)
        if entry == "device" and torch.cuda.is_available():
            pytest.skip("there is a GPU")
        with pytest.raises(runtime.Error, match=re.escape(message)):
            runtime.Segmenter(str(changed))

    def test_no_package(self, runtime, tmp_path, exported):
        with pytest.raises(runtime.Error, match="There is no file"):
            runtime.Segmenter(str(tmp_path))
        cut = tmp_path / "cut.pt2"
        cut.write_bytes(exported.file.read_bytes()[:100_000])
        with pytest.raises(runtime.Error, match=r"cut.pt2 is cut off or damaged; copy it again"):
            runtime.Segmenter(cut)
        damaged = bytearray(exported.file.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        cut.write_bytes(damaged)
        with pytest.raises(runtime.Error, match=r"cut.pt2 is damaged: its contents do not have their checksums"):
            runtime.Segmenter(cut)
        cut.write_bytes(b"a text, and no archive at all")
        with pytest.raises(runtime.Error, match=r"cut.pt2 is no package of `hyperseg export aoti`"):
            runtime.Segmenter(cut)
        with pytest.raises(runtime.Error, match="is for the CPU: leave out device, got 0"):
            runtime.Segmenter(exported.file, device=0)
        with pytest.raises(runtime.Error, match="concurrency must be 1 or more, got 0"):
            runtime.Segmenter(str(exported.file), concurrency=0)

    def test_a_program_of_pt2(self, runtime, tmp_path):
        with zipfile.ZipFile(tmp_path / "program.pt2", "w") as program:
            program.writestr("program/archive_format", "pt2")
        with pytest.raises(runtime.Error, match="programs of `hyperseg export pt2` run in Python alone") as raised:
            runtime.Segmenter(tmp_path / "program.pt2")
        assert "\n" not in str(raised.value)

    def test_no_folder_for_temporary_files(self, runtime, exported, monkeypatch):
        monkeypatch.setenv("TMPDIR", "/nonexistent")
        with pytest.raises(runtime.Error, match=r"/nonexistent cannot be written.* Set TMPDIR to another one"):
            runtime.Segmenter(exported.file)

    def test_unpacked_files_are_removed_at_once(self, runtime, exported, monkeypatch, tmp_path):
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        first, second = runtime.Segmenter(exported.file), runtime.Segmenter(exported.file)
        assert not list(tmp_path.iterdir())
        image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
        assert np.array_equal(first(image), second(image))

    def test_without_importing_torch(self, runtime, exported):
        code = (
            "import sys; from hyperseg.runtime_cpp import Segmenter; import numpy as np\n"
            f"print(Segmenter({str(exported.file)!r})(np.zeros(({SIZE[0]}, {SIZE[1]}, 3), np.uint8)).shape)\n"
            "assert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.strip() == str(SIZE), done.stderr


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_other_encoders_run_without_python(runtime, tmp_path, precision):
    """The operators that the compiler writes exist in C++."""
    network = synthesize_weights(hyperseg.create_model("hyperseg-s-camvid", encoder="test_efficientnet").eval())
    exported = export_aoti(network, tmp_path / "network.pt2", SIZE, precision=precision, check=False)
    np.save(tmp_path / "frames.npy", frames())
    code = (
        "import numpy as np, sys; from hyperseg.runtime_cpp import Segmenter\n"
        f"np.save('labels.npy', Segmenter({str(exported.file)!r})(np.load('frames.npy')))\n"
        "assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    engine = hyperseg.build_engine(network, SIZE, getattr(torch, precision), device="cpu", check=False)
    assert np.array_equal(np.load(tmp_path / "labels.npy"), engine(torch.from_numpy(frames())).numpy())


def test_operators_of_python_alone_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "package.pt2", "w") as package:
        package.writestr("model/a.wrapper.json", '{"nodes": [{"target": "aten::add"}, {"target": "prims::fma"}]}')
    with pytest.raises(ExportError, match="this network calls prims::fma, which programs without Python do not have"):
        aoti._require_known_in_cpp(tmp_path / "package.pt2")


@pytest.fixture(scope="module")
def program(runtime, tmp_path_factory) -> Path:
    """The example program, built as a user does: the library is installed, and found by CMake."""
    cmake, ninja = shutil.which("cmake", path=_path()), shutil.which("ninja", path=_path())
    builds = [path.parents[2] for path in ROOT.glob("build/cmake-*/csrc/runtime/libhyperseg.so")]
    if not (cmake and ninja and builds):
        pytest.skip("the C++ runtime was not built in this checkout")
    folder = tmp_path_factory.mktemp("cpp")
    newest = max(builds, key=lambda path: (path / "csrc/runtime/libhyperseg.so").stat().st_mtime)
    source = ROOT / "csrc/runtime/example"
    options = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DCMAKE_PREFIX_PATH={folder / 'installed'}"]
    for command in (
        [cmake, "--install", newest, "--prefix", folder / "installed"],
        [cmake, "-S", source, "-B", folder / "example", *options],
        [cmake, "--build", folder / "example"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "example/segment"


def _path() -> str:
    """Where CMake is: beside this Python, in a virtual environment that is not activated too."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def test_the_program_segments_raw_frames(program, exported, segmenter):
    given = frames(3, seed=5)
    done = subprocess.run([program, exported.file, "-"], input=given.tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr
    expected = np.concatenate([segmenter(frame[None]) for frame in given])
    assert np.array_equal(np.frombuffer(done.stdout, np.uint8).reshape(expected.shape), expected)
    assert b"3 frames, " in done.stderr


def test_the_program_says_where_a_stream_was_cut(program, exported):
    given = frames(2).tobytes()[:-10]
    done = subprocess.run([program, exported.file, "-"], input=given, capture_output=True)
    assert done.returncode == 1
    assert len(done.stdout) == SIZE[0] * SIZE[1]
    assert b"The input ended within frame 2" in done.stderr


def test_the_program_segments_a_png(program, exported, segmenter, tmp_path, network):
    image, labels = tmp_path / "image.png", tmp_path / "labels.png"
    (given,) = frames()
    Image.fromarray(given).save(image)
    done = subprocess.run([program, exported.file, image, labels], capture_output=True, text=True)
    if "built without libpng" in done.stderr:
        pytest.skip("libpng is not installed")
    assert done.returncode == 0, done.stderr
    with Image.open(labels) as written:
        assert written.mode == "P"
        assert np.array_equal(np.asarray(written), segmenter(given))
        colors = written.getpalette()[: 3 * network.config.num_classes]
    assert colors == [value for color in label_set_of(network.config).colors for value in color]
    for name, contents, message in (
        ("none.png", None, "none.png cannot be read: No such file or directory"),
        ("text.png", b"no image", "text.png is not a PNG image"),
        ("cut.png", image.read_bytes()[:3000], "cut.png is damaged: "),
    ):
        if contents:
            (tmp_path / name).write_bytes(contents)
        done = subprocess.run([program, exported.file, tmp_path / name, labels], capture_output=True, text=True)
        assert done.returncode == 1
        assert message in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hyperseg-m", "hyperseg-s", "hyperseg-l-camvid", "hyperseg-l-voc"])
def test_every_network(name, tmp_path):
    network = synthesize_weights(hyperseg.create_model(name).eval())
    exported = export_aoti(network, tmp_path / "network.pt2", (128, 192))
    assert exported.notes == (f"all {128 * 192} labels equal the engine's",)
