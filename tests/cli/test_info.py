"""`hyperseg info --network`: text, JSON and SVG of a network."""

import functools
import json
import shlex
import socket
from pathlib import Path
from xml.etree import ElementTree

import pytest

import hyperseg
from hyperseg.cli import main
from hyperseg.cli._network_svg import network_svg
from hyperseg.cli._network_text import network_lines
from hyperseg.models import model_config
from hyperseg.models.describe import Description, describe

ROOT = Path(__file__).parents[2]


@functools.cache
def network(name: str, size: tuple[int, int] | None = None) -> Description:
    return describe(model_config(name), size)


def test_a_released_name_needs_no_weights(capsys, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "create_connection", no_network)
    assert main(["info", "--network", "hyperseg-m"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == list(network_lines(network("hyperseg-m")))
    assert "hyperseg-m-cityscapes: 19 classes (cityscapes), image 3 x 512x1024" in out
    level = next(" ".join(line.split()) for line in out.splitlines() if line.startswith("  level 5"))
    expected = "2+16+16=34 -> 68 -> 19 3x3 256x512 16x32 of 16x16 4,216 2,158,592 4.32 337,280 0.345 1.266"
    assert level == f"level 5 {expected}"
    assert "total              10,311,214  100.0  14.742  100.0" in out


def test_a_folder_as_json_and_svg(tmp_path, capsys):
    model = hyperseg.create_model("hyperseg-s-camvid", num_classes=4, encoder="resnet18")
    hyperseg.save(model, tmp_path / "mine")
    drawing = tmp_path / "new" / "mine.svg"
    command = ["info", "--network", str(tmp_path / "mine"), "--size", "50x71", "--json", "--svg", str(drawing)]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["encoder"] == "resnet18"
    assert (found["size"], found["padded_size"]) == ([50, 71], [64, 96])
    assert found["total"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["weights_per_frame"] == sum(level["weights_per_frame"] for level in found["levels"])
    assert sum(part["flops"] for part in found["parts"].values()) == found["total"]["flops"]
    assert ElementTree.parse(drawing).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--network hyperseg-x", 2, "--network: There is no network 'hyperseg-x'; choose from hyperseg-l-camvid"),
        ("--network ''", 2, "argument --network: the value is empty"),
        ("--network nowhere/mine", 1, "--network: there is no file or folder nowhere/mine"),
        ("--network best.pth", 1, "--network: there is no file or folder best.pth"),
        (f"--network {ROOT}/README.md", 1, "--network: {ROOT}/README.md is damaged or not a PyTorch checkpoint"),
        ("--network hyperseg-m --size 512", 2, "argument --size: '512' is no size; give HEIGHTxWIDTH such as"),
        ("--network hyperseg-m --size 0x512", 2, "argument --size: '0x512' is no size"),
        ("--network hyperseg-m --size 512x99999", 2, "argument --size: '512x99999' is no size"),
        ("--network hyperseg-m --verify", 2, "--verify is about kernels, not about a network"),
        (f"--network hyperseg-m --svg {ROOT}", 1, "--svg {ROOT} is a folder; give the name of a file"),
        ("--network hyperseg-m --verify --explain", 2, "--verify is about kernels, not about a network"),
        ("--network hyperseg-m --device cpu", 2, "--device is about running a network; add --explain"),
        ("--network hyperseg-m --mode eager", 2, "--mode is about running a network; add --explain"),
        ("--network hyperseg-m --explain --svg x.svg", 2, "--svg draws what a network is; leave one of"),
        ("--network hyperseg-m --explain --device gpu", 2, "--device: there is no device called gpu"),
        ("--network nowhere/mine --explain", 1, "--network: there is no file or folder nowhere/mine"),
        ("--network hyperseg-s --explain --device cpu --mode cudagraph", 1, "mode 'cudagraph' needs a CUDA device"),
        ("--explain", 2, "--explain is about a network; add --network NAME"),
        ("--dtype float32", 2, "--dtype is about a network; add --network NAME"),
        ("--size 512x512", 2, "--size is about a network; add --network NAME"),
        ("--svg x.svg", 2, "--svg is about a network; add --network NAME"),
    ],
)
def test_wrong_arguments(arguments, code, message, capsys):
    assert main(["info", *shlex.split(arguments)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"hyperseg info: error: {message.format(ROOT=ROOT)}")
    assert err.count("\n") == 1


def test_an_official_file_is_described(tmp_path, capsys):
    model = hyperseg.create_model("hyperseg-s-camvid")
    hyperseg.save_official(model, tmp_path / "best.pth")
    assert main(["info", "--network", str(tmp_path / "best.pth"), "--size", "64x64"]) == 0
    assert capsys.readouterr().out.startswith("hyperseg-s-camvid: 12 classes (camvid), image 3 x 64x64\n")


def test_text_says_what_is_special():
    text = "\n".join(network_lines(network("hyperseg-s", (100, 90))))
    assert "Levels 4 and 5 share a generator." in text
    assert "image 3 x 100x90, padded to 128x96" in text
    assert "logits 19 x 64x48 -> upsampled to 128x96, argmax, cropped to 100x90 -> labels" in text


@pytest.mark.parametrize(
    ("name", "size"), [("hyperseg-m", None), ("hyperseg-l-voc", (512, 2048)), ("hyperseg-s", (100, 90))]
)
def test_the_drawing_is_self_contained_and_within_its_frame(name, size):
    found = network(name, size)
    root = ElementTree.fromstring(network_svg(found))
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags == {"svg", "title", "rect", "path", "text"}
    assert not [key for element in root.iter() for key in element.attrib if "href" in key or key.startswith("on")]
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, w, h = (float(element.attrib[key]) for key in ("x", "y", "width", "height"))
        assert min(x, y, w, h) >= 0
        assert (x + w <= width, y + h <= height) == (True, True)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [f"level {i + 1}" in texts for i in range(len(found.levels))] == [True] * len(found.levels)


def test_the_drawing_in_the_readme_is_up_to_date():
    """To renew it: hyperseg info --network hyperseg-m --svg docs/images/hyperseg-m.svg"""
    file = ROOT / "docs/images/hyperseg-m.svg"
    assert file.read_text(encoding="utf-8") == network_svg(network("hyperseg-m"))


def test_explain_a_frame(tmp_path, capsys):
    command = ["info", "--network", "hyperseg-s-camvid", "--explain", "--size", "64x96", "--device", "cpu"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("hyperseg-s-camvid, 64x96, float32 on cpu, mode eager; medians of 9")
    assert "decoder.level 5" in out
    assert "(measured: a matrix multiplication and a copy)" in out
    hyperseg.save(network_with_weights(), tmp_path / "mine")
    assert main(["info", "--network", str(tmp_path / "mine"), *command[3:], "--dtype", "bfloat16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["size"], found["dtype"], found["mode"]) == ([64, 96], "bfloat16", "eager")
    assert all(call["milliseconds"] > 0 for call in found["calls"])


def network_with_weights():
    return hyperseg.synthesize_weights(hyperseg.create_model("hyperseg-s-camvid", num_classes=4)).eval()
