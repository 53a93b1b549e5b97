"""BatchPredictor on batches as Ray gives them, and the program of docs/scaling.md in Ray, where it is installed."""

import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hyperseg
from hyperseg.data import CAMVID, colorize
from hyperseg.predict.ray import BatchPredictor
from tests.predict.networks import NearestColor

SCALING = Path(__file__).parents[2] / "docs/scaling.md"
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra ray)")


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


def painted(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image in CamVid's colours, and its labels."""
    labels = np.random.default_rng(seed).integers(0, 12, (height, width), dtype=np.uint8)
    return colorize(labels, CAMVID), labels


def column(*values: object) -> np.ndarray:
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array


@pytest.fixture
def predictor(stand_in):
    return BatchPredictor(NearestColor().eval(), outputs=("labels", "png", "shares"), size="native", device="cpu")


def test_images_of_each_form_and_size(predictor):
    truth = [painted(20 + i, 31 - i, i) for i in range(5)]
    images = [image for image, _ in truth]
    batch = {
        "image": column(
            images[0],
            encoded(images[1]),
            {"bytes": encoded(images[2]), "path": None},
            images[3][::-1][::-1],
            memoryview(encoded(images[4])),
        ),
        "id": np.arange(5),
    }
    result = predictor(batch)
    assert list(result) == ["id", "labels", "png", "shares", "error"]
    assert list(result["id"]) == [0, 1, 2, 3, 4]
    assert list(result["error"]) == [""] * 5
    for row, (_, labels) in enumerate(truth):
        assert result["labels"][row].dtype == np.uint8
        assert np.array_equal(result["labels"][row], labels)
        assert np.array_equal(np.array(Image.open(io.BytesIO(result["png"][row]))), labels)
        shares = result["shares"][row]
        assert list(shares) == list(CAMVID.classes)
        assert sum(shares.values()) == pytest.approx(1)
        assert shares[CAMVID.classes[3]] == pytest.approx((labels == 3).mean())


def test_a_batch_of_one_array(predictor):
    images, labels = zip(*(painted(16, 24, seed) for seed in range(3)), strict=True)
    result = predictor({"image": np.stack(images)})
    assert result["labels"].dtype == object  # as in batches of several sizes: Ray makes one type of column of both
    assert all(map(np.array_equal, result["labels"], labels))


def test_a_damaged_image_is_a_row_with_an_error(predictor):
    image, labels = painted(16, 24)
    good = encoded(image)
    values = [
        good,
        b"",
        b"no image",
        good[: len(good) // 2],
        None,
        {"bytes": None},
        image / 255,
        image[0, 0],
        "a.png",
        good,
    ]
    result = predictor({"image": column(*values), "path": column(*(f"{i}.png" for i in range(len(values))))})
    reasons = ["", "0 bytes", "not an image", "damaged", "no image", "no image", "float64", r"uint8 \[3\]", "got", ""]
    for row, reason in enumerate(reasons):
        error = result["error"][row]
        if reason:
            assert error.startswith(f"{row}.png "), "an error names its row's file"
            assert re.search(reason, error)
            assert result["labels"][row].shape == (0, 0)
            assert result["labels"][row].dtype == np.uint8
            assert result["png"][row] == b""
            assert np.isnan(list(result["shares"][row].values())).all()
        else:
            assert error == ""
            assert np.array_equal(result["labels"][row], labels)


def test_grey_images(predictor):
    grey = np.zeros((9, 10), np.uint8)
    result = predictor({"image": column(grey, grey[:, :, None], np.zeros((9, 10, 3), np.uint8))})
    assert list(result["error"]) == ["", "", ""]
    assert np.array_equal(result["labels"][0], result["labels"][2])
    assert np.array_equal(result["labels"][1], result["labels"][2])


def test_an_image_that_does_not_fit_in_memory(predictor, monkeypatch):
    label = predictor.predictor.__class__.__call__

    def limited(self, image):
        if image.shape[0] > 16:
            raise MemoryError
        return label(self, image)

    monkeypatch.setattr(predictor.predictor.__class__, "__call__", limited)
    result = predictor({"image": column(painted(16, 24)[0], painted(17, 24)[0], painted(15, 24)[0])})
    assert list(result["error"]) == ["", "row 1 (17x24) does not fit in memory", ""]
    assert [labels.shape for labels in result["labels"]] == [(16, 24), (0, 0), (15, 24)]


def test_only_what_is_asked_for(stand_in):
    network = NearestColor().eval()
    result = BatchPredictor(network, ("shares",), "photo", device="cpu")({"photo": column(painted(9, 9)[0])})
    assert list(result) == ["shares", "error"]


def test_an_empty_batch(predictor):
    assert [len(values) for values in predictor({"image": column()}).values()] == [0, 0, 0, 0]


@pytest.mark.parametrize("outputs", ["labels", (), ("labels", "overlay")])
def test_unknown_outputs(outputs):
    with pytest.raises(ValueError, match="give some of labels, png, shares in a tuple"):
        BatchPredictor(NearestColor(), outputs)


def test_columns_that_do_not_fit(predictor):
    with pytest.raises(ValueError, match="no column 'image'; the batch has bytes, id; give column="):
        predictor({"bytes": column(b""), "id": column(1)})
    with pytest.raises(ValueError, match="has columns error, labels already; rename or drop them before"):
        predictor({"image": column(b""), "labels": column(1), "error": column(1)})


def program(folder: Path, size: str) -> Path:
    """The program of the document, for a smaller image."""
    code = re.search(r"^```python\n(.*?)^```$", SCALING.read_text(), re.DOTALL | re.MULTILINE)
    assert code
    assert '"size": "model"' in code[1]
    (folder / "label.py").write_text(code[1].replace('"size": "model"', f'"size": "{size}"'))
    return folder / "label.py"


def test_the_program_compiles(tmp_path):
    compile(program(tmp_path, "64x96").read_text(), "label.py", "exec")


@needs_ray
def test_the_program_runs_and_restarts(tmp_path):
    import pyarrow.dataset

    network = hyperseg.synthesize_weights(hyperseg.create_model("hyperseg-s-camvid")).eval()
    hyperseg.save(network, tmp_path / "network")
    (tmp_path / "images").mkdir()
    images = {f"{i}.png": painted(64 + 8 * i, 96, i)[0] for i in range(4)}
    for name, image in images.items():
        (tmp_path / "images" / name).write_bytes(encoded(image))
    (tmp_path / "images/damaged.jpg").write_bytes(encoded(images["0.png"], "JPEG")[:700])

    def run() -> str:
        command = [sys.executable, program(tmp_path, "64x96"), "images", "parquet", tmp_path / "network"]
        result = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def rows() -> dict[str, dict]:
        table = pyarrow.dataset.dataset(tmp_path / "parquet", exclude_invalid_files=True).to_table()
        found = {Path(row["path"]).name: row for row in table.to_pylist()}
        assert len(found) == len(table)
        return found

    assert "0 images are done, 5 are left" in run()
    found = rows()
    assert set(found) == {*images, "damaged.jpg"}
    expected = BatchPredictor(network, ("labels", "shares"), size="64x96")({"image": column(*images.values())})
    for row, name in enumerate(images):
        labels = np.array(Image.open(io.BytesIO(found[name]["png"])))
        assert np.array_equal(labels, expected["labels"][row])
        assert found[name]["shares"] == pytest.approx(expected["shares"][row])
        assert found[name]["error"] == ""
    assert "damaged" in found["damaged.jpg"]["error"]
    assert found["damaged.jpg"]["png"] == b""

    (tmp_path / "images/4.png").write_bytes(encoded(images["0.png"]))
    (tmp_path / "parquet/killed.parquet").write_bytes(b"PAR1 and no more")
    assert "5 images are done, 1 are left" in run()
    assert rows()["4.png"]["png"] == found["0.png"]["png"]
    assert "6 images are done, 0 are left" in run()
