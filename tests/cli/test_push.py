"""`hyperseg push` and weights from the Hub on the command line: outputs, exit codes and messages."""

import json

import pytest
from PIL import Image

from hyperseg.cli import main
from hyperseg.publish.card import is_unedited
from tests.cli.test_eval import SIZE
from tests.data.trees import camvid_tree

PUSH = ("me/streets", "--license", "mit")


def error_of(capsys, *argv, code=1):
    """Run a command that must fail; return its only line on stderr."""
    assert main(list(map(str, argv))) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"hyperseg {argv[0]}: error: ")
    return err


def test_scored_pushed_and_scored_again(hub, folder, true_network, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    camvid_tree(folder / "data", "camvid", {"val": 1}, size=SIZE)
    data = ("--data", "camvid", "--root", "data", "--split", "val", "--module")
    own = str(true_network.weights["folder"])
    assert main(["eval", *data, "--weights", str(true_network.weights["official"]), "--json", "own.json"]) == 0
    capsys.readouterr()

    assert main(["push", own, *PUSH, "--evaluation", "own.json"]) == 0
    out, _ = capsys.readouterr()
    commit = hub.repositories["me/streets"].refs["main"][:10]
    assert out.splitlines() == [
        f"{own} -> {hub.url}/me/streets (new), commit {commit}",
        "try it: hyperseg predict IMAGE --weights hf-hub:me/streets",
    ]
    assert main(["push", own, *PUSH, "--evaluation", "own.json"]) == 0
    assert capsys.readouterr().out == f"{hub.url}/me/streets has all of this already (commit {commit})\n"

    assert main(["eval", *data, "--weights", "hf-hub:me/streets", "--json", "again.json"]) == 0
    first, again = (json.loads((folder / name).read_text()) for name in ("own.json", "again.json"))
    assert again["protocols"] == first["protocols"]
    assert again["settings"]["weights"] == "hf-hub:me/streets"
    assert again["settings"]["weights_hash"] == first["settings"]["weights_hash"]
    assert f"weights_hash {first['settings']['weights_hash'][:16]};" in capsys.readouterr().out
    card = hub.repositories["me/streets"].files["README.md"].decode()
    assert f"| mIoU, protocol standard | {100 * first['protocols']['standard']['miou']:.2f} (" in card
    assert str(folder) not in card


def test_a_dry_run_prints_the_card(hub, true_network, capsys):
    assert main(["push", str(true_network.weights["folder"]), *PUSH, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert is_unedited(out)
    assert hub.requests == []


def test_errors(hub, folder, true_network, capsys):
    own = true_network.weights["folder"]
    assert "the following arguments are required: --license" in error_of(capsys, "push", own, "me/x", code=2)
    assert "needs --license-link URL" in error_of(capsys, "push", own, "me/x", "--license", "other", code=2)
    assert "give OWNER/NAME" in error_of(capsys, "push", own, "x", "--license", "mit", code=2)
    assert "nobody is logged in" in error_of(capsys, "push", own, *PUSH)
    assert "has no model.safetensors" in error_of(capsys, "push", folder, *PUSH)
    assert "none.json cannot be read" in error_of(capsys, "push", own, *PUSH, "--evaluation", "none.json")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--weights", "hf-hub:streets"], 2, "--weights: hf-hub:streets is not understood: it has no OWNER/"),
        (["--weights", "hf-hub:me/streets"], 1, "hf-hub:me/streets does not exist at"),
        (["--weights", "hf-hub:me/streets", "--offline"], 1, "hf-hub:me/streets is not in the cache"),
    ],
)
def test_weights_that_cannot_be_had(hub, folder, images, options, code, message, capsys):
    Image.fromarray(images["chelsea"]).save(folder / "cat.png")
    assert message in error_of(capsys, "predict", "cat.png", *options, code=code)
