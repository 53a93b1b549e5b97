"""`hyperseg eval --report`: the page has the numbers of the JSON file, the pictures and the command."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image

from hyperseg.cli import main
from hyperseg.data import open_dataset
from hyperseg.evaluation.report import read_report
from tests.data.trees import folder_tree, save


@pytest.fixture
def command(tmp_path):
    """A command that scores label files, which are right but for their upper half."""
    dataset = open_dataset("synthetic", tmp_path, "val", images=5, size="64x128")
    for index, item in enumerate(dataset.items):
        labels = np.array(dataset.labels(index))
        labels[: 8 * index] = 0
        Image.fromarray(labels).save(tmp_path / f"{item.name}.png")
    options = ["--option", "images=5", "--option", "size=64x128", "--predictions", str(tmp_path)]
    return ["eval", "--data", "synthetic", *options]


def test_page_and_json_agree(command, tmp_path):
    page, document = tmp_path / "a report & more.html", tmp_path / "scores.json"
    command += ["--report", str(page), "--json", str(document)]
    assert main(command) == 0
    found = json.loads(document.read_text())
    assert read_report(page).document() == found
    assert 0 < found["protocols"]["standard"]["miou"] < 1
    text = page.read_text()
    assert text.count("data:image/") == 4 * 5
    assert "The best images" in text
    assert "a report &amp; more.html" in text  # in the command
    assert shlex.join(command).partition(" --report")[0] in text


@pytest.mark.parametrize("damage", ["size", "bytes"])
def test_an_image_that_cannot_be_shown_is_left_out(tmp_path, capsys, damage):
    """Scores of predictions that are files need no images; pictures do."""
    labels = folder_tree(tmp_path / "data", {"val": 4})
    for name, each in labels.items():
        save(np.where(each == 255, 0, each).astype(np.uint8), tmp_path / "predictions" / f"{name}.png")
    image = tmp_path / "data/images/val/val_1.jpg"
    assert image.exists()
    if damage == "size":
        save(np.zeros((8, 8, 3), np.uint8), image)
    else:
        image.write_bytes(b"")
    page = tmp_path / "report.html"
    data = ["--data", "folder", "--root", str(tmp_path / "data"), "--predictions", str(tmp_path / "predictions")]
    assert main(["eval", *data, "--report", str(page)]) == 0
    assert "the report has no pictures of val_1: " in capsys.readouterr().err
    assert page.read_text().count("data:image/") == 4 * 3
    assert len(read_report(page).document()["images"]) == 4


def test_a_report_that_cannot_be_written_is_an_error(command, tmp_path, capsys):
    (tmp_path / "report.html").mkdir()
    assert main([*command, "--report", str(tmp_path / "report.html")]) == 1
    assert "is a folder; give a file" in capsys.readouterr().err
