"""Malicious files and files that are not checkpoints: nothing in them is executed, and each gets a clear message."""

import builtins
import io
import os
import pickle
import subprocess
import zipfile

import numpy as np
import pytest
import torch

from hyperseg.models import CheckpointError, load_official
from tests.models import checkpoints

FACTORY = "hyperseg.models.hyperseg_v1_0.hyperseg_efficientnet"
SMALL = {"state_dict": {"w": torch.zeros(2)}, "arch": checkpoints.ARCH_CAMVID_S}


@pytest.fixture
def canary(tmp_path):
    """A file that exists only if code from a checkpoint has run."""
    return tmp_path / "canary"


class Call:
    """An object that pickles as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touch(canary):
    """Return calls that would create the canary, by name."""
    command = f"touch {canary}"
    return {
        "os.system": Call(os.system, command),
        "eval": Call(builtins.eval, f"open({str(canary)!r}, 'w')"),
        "exec": Call(builtins.exec, f"open({str(canary)!r}, 'w')"),
        "open": Call(builtins.open, str(canary), "w"),
        "subprocess": Call(subprocess.call, ["touch", str(canary)]),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
    }


CALLS = [*touch("canary")]


def refused(path, match):
    """Check that loading fails with a message that names the file, and creates no other file. Return the message."""
    before = set(path.parent.iterdir())
    with pytest.raises(CheckpointError, match=match) as caught:
        load_official(path)
    assert set(path.parent.iterdir()) == before, "something was executed"
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_canary_works(canary, tmp_path):
    """The files below would run commands if they were unpickled without restrictions."""
    path = checkpoints.write(tmp_path / "model.pth", SMALL | {"best_iou": touch(canary)["open"]})
    torch.load(path, weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before-torch-1.6"])
@pytest.mark.parametrize("call", CALLS)
def test_calls_in_a_pickle(call, legacy, canary, tmp_path):
    evil = touch(canary)[call]
    path = checkpoints.write(tmp_path / "model.pth", SMALL | {"best_iou": evil}, legacy=legacy)
    message = refused(path, "was refused, and nothing in it was executed: it contains more than tensors and plain data")
    assert "weights_only" not in message, "no advice to read it all the same"


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(lambda evil: SMALL | {"state_dict": {"w": evil}}, id="value"),
        pytest.param(lambda evil: SMALL | {"state_dict": evil}, id="state-dict"),
        pytest.param(lambda evil: SMALL | {"optimizer": {"state": {0: {"step": evil}}}}, id="optimizer"),
        pytest.param(lambda evil: SMALL | {"scheduler": [evil]}, id="scheduler"),
        pytest.param(lambda evil: SMALL | {"arch": evil}, id="arch"),
        pytest.param(lambda evil: {"w": evil}, id="bare"),
        pytest.param(lambda evil: evil, id="whole"),
    ],
)
def test_calls_anywhere_in_a_file(place, canary, tmp_path):
    path = checkpoints.write(tmp_path / "model.pth", place(touch(canary)["os.system"]))
    refused(path, "nothing in it was executed")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_bare_pickles(protocol, canary, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps(SMALL | {"best_iou": touch(canary)["os.system"]}, protocol))
    refused(path, "was refused|is damaged")


def test_a_pickle_written_by_hand(canary, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"cposix\nsystem\n(Vtouch " + str(canary).encode() + b"\ntR.")
    refused(path, "was refused|is damaged")


def test_a_zip_with_another_pickle(canary, tmp_path):
    path = checkpoints.write(tmp_path / "model.pth", SMALL)
    evil = pickle.dumps(touch(canary)["os.system"], 2)
    path.write_bytes(checkpoints.rewrite(path.read_bytes(), lambda _: evil))
    refused(path, "nothing in it was executed")


def test_the_allowed_numpy_names_are_no_way_in(canary, tmp_path):
    """``scalar`` with an object dtype would unpickle its argument."""
    inner = pickle.dumps(touch(canary)["os.system"])
    scalar = np.float64(0).__reduce__()[0]
    path = checkpoints.write(tmp_path / "model.pth", SMALL | {"best_iou": Call(scalar, np.dtype("O"), inner)})
    with pytest.raises(CheckpointError):
        load_official(path)
    assert not canary.exists()


# Expressions for an argument, then for the whole string.
EXPRESSIONS = {
    "call": "__import__('os').system('touch {canary}')",
    "nested-call": "[__import__('os').system('touch {canary}')]",
    "comprehension": "[__import__('os').system('touch {canary}')for i in range(1)]",
    "attribute": "().__class__.__base__.__subclasses__",
    "lambda": "lambda:__import__('os').system('touch {canary}')",
    "f-string": "f\"{{__import__('os').system('touch {canary}')}}\"",
    "walrus": "(x:=__import__('os').system('touch {canary}'))",
    "name": "exit",
    "subscript": "[1][0]",
    "product": "9**9**9",
    "repeat": "'a'*10**9",
    "set-call": "set(open('{canary}','w'))",
}
ARCH = {
    **dict.fromkeys(EXPRESSIONS, "__argument__"),
    "import": "__import__('os').system('touch {canary}')",
    "function": "(lambda:__import__('os').system('touch {canary}'))()",
    "factory-by-call": "getattr(__import__('os'),'system')('touch {canary}')",
    "other-module": "os.system('touch {canary}')",
    "other-factory": "hyperseg.models.hyperseg_v1_0.hyperseg_resnet('resnet18')",
    "subclass-of-name": FACTORY + ".__call__('efficientnet-b1')",
    "statements": "import os;os.system('touch {canary}')",
    "no-call": FACTORY,
    "star": FACTORY + "(*['efficientnet-b1'])",
    "double-star": FACTORY + "('efficientnet-b1',**{{'levels':2}})",
    "two-positional": FACTORY + "('efficientnet-b1',True)",
    "empty": "",
    "text": "HyperSeg, the small one",
    "nul": "hyperseg.models\0",
    "brackets": "(" * 100_000,
    "deep-list": FACTORY + "('efficientnet-b1',levels=" + "[" * 5000 + "]" * 5000 + ")",
    "deep-unary": FACTORY + "('efficientnet-b1',levels=" + "-" * 50_000 + "1)",
    "deep-attribute": "a" + ".a" * 50_000 + "()",
}


@pytest.mark.parametrize("case", ARCH)
def test_arch_strings_that_are_not_literal_calls(case, canary, tmp_path):
    if case in EXPRESSIONS:
        expression = EXPRESSIONS[case].format(canary=canary)
        arch = checkpoints.ARCH_CAMVID_S.replace("levels=2", f"levels={expression}")
    else:
        arch = ARCH[case].format(canary=canary)
    path = checkpoints.write(tmp_path / "model.pth", SMALL | {"arch": arch})
    message = refused(path, "was refused, and nothing in it was executed: its arch")
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("num_classes=12", "num_classes=" + "9" * 100_000, "its arch is not a function call"),
        ("num_classes=12", "num_classes=" + "9" * 4000, "num_classes must be an integer from 1 to 65536"),
        ("num_classes=12", "num_classes=0x" + "f" * 100_000, "was refused"),
        ("num_classes=12", "num_classes=-1", "num_classes must be an integer from 1"),
        ("num_classes=12", "num_classes=2.5", "num_classes must be an integer"),
        ("num_classes=12", "num_classes='12'", "num_classes must be an integer"),
        ("num_classes=12", "num_classes=None", "num_classes must be an integer"),
        (",num_classes=12", "", "lacks the argument 'num_classes'"),
        ("levels=2", "levels=10000", "context_levels must be at most"),
        ("levels=2", "levels='a'", "context_levels must be an integer"),
        ("expand_ratio=2", "expand_ratio=1e999", "expand_ratio must be a number"),
        ("expand_ratio=2", "expand_ratio='a'", "expand_ratio must be a number"),
        ("kernel_sizes=(1,1,1,3,3)", "kernel_sizes=3", "argument of the wrong kind"),
        ("kernel_sizes=(1,1,1,3,3)", "kernel_sizes=(1,1,1,3,'a')", "kernel_sizes must be a tuple of integers"),
        ("kernel_sizes=(1,1,1,3,3)", "kernel_sizes=(1,1,1,3,5)", "kernel_sizes can be 1 or 3"),
        ("level_channels=[64,", "level_channels=[{},", "level_channels must be a tuple of integers"),
        ("level_channels=[64,", "level_channels=[10**9,", "arguments that are not literals"),
        ("weight_groups=[64,", "weight_groups=[0,", "weight_groups must be a tuple of integers"),
        ("weight_groups=[64,", "weight_groups=[63,", "does not divide into units of 63"),
        ("weight_groups=[64,32,32,16,8]", "weight_groups=16", "argument of the wrong kind"),
        ("levels=2", "levels=2,out_feat_scale=[1]", "zip"),
        ("levels=2", "levels=2,out_feat_scale='12345'", "argument of the wrong kind"),
        ("levels=2", "levels=2,out_feat_scale=0", "feature_channels must be a tuple of integers"),
        ("levels=2", "levels=2,out_feat_scale=1e300", "feature_channels must be a tuple of integers"),
        ("levels=2", "levels=2,out_feat_scale=1e999", "argument of the wrong kind"),
        ("levels=2", "levels=2,groups=2", "sets groups=2; only 1 is supported"),
        ("levels=2", "levels=2,with_attention=True", "unknown arguments with_attention"),
        ("'efficientnet-b1'", "'efficientnet-b99'", "names the encoder 'efficientnet-b99'; known are"),
        ("'efficientnet-b1'", "['efficientnet-b1']", "names the encoder|wrong kind"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_arch_strings_with_unusable_values(old, new, match, tmp_path):
    assert old in checkpoints.ARCH_CAMVID_S
    arch = checkpoints.ARCH_CAMVID_S.replace(old, new)
    path = checkpoints.write(tmp_path / "model.pth", SMALL | {"arch": arch})
    assert len(refused(path, match)) < 1000


def archive(pickled, name="data.pkl"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(f"a/{name}", pickled)
        file.writestr("a/version", b"3\n")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        pytest.param(b"", "is damaged or not a PyTorch checkpoint: it is empty", id="empty"),
        pytest.param(b"<!doctype html><title>404</title>", "so the download failed", id="a-web-page"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer", id="an-lfs-pointer"),
        pytest.param(bytes(range(256)) * 10, r"checkpoint: it has another format\.$", id="bytes"),
        pytest.param(b"\x80", r"changed; copy or download it again\.$", id="one-byte"),
        pytest.param(b"PK\x03\x04 not really", "parts of it are missing or changed", id="zip-header"),
        pytest.param(archive(b"}.", "readme"), "is damaged", id="another-zip"),
        pytest.param(archive(b"not a pickle"), "is damaged", id="bad-pickle"),
        pytest.param(archive(b""), "is damaged", id="empty-pickle"),
        pytest.param(archive(b"}."), "does not say which", id="empty-dict"),
    ],
)
def test_files_that_are_not_checkpoints(data, match, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    refused(path, match)


@pytest.mark.parametrize("part", [0.001, 0.5, 0.9, 0.99999])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before-torch-1.6"])
def test_truncated_files(legacy, part, tmp_path):
    path = checkpoints.write(tmp_path / "model.pth", SMALL | {"w": torch.zeros(20_000)}, legacy=legacy)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    refused(path, "is damaged or not a PyTorch checkpoint")


def test_a_missing_file_and_a_directory(tmp_path):
    refused(tmp_path / "model.pth", "model.pth does not exist")
    (tmp_path / "folder.pth").mkdir()
    refused(tmp_path / "folder.pth", "is a directory")


@pytest.mark.parametrize(
    ("checkpoint", "match"),
    [
        pytest.param([torch.zeros(1)], "is not a HyperSeg checkpoint: it contains a list", id="list"),
        pytest.param(torch.zeros(1), "it contains a Tensor", id="tensor"),
        pytest.param("text", "it contains a str", id="text"),
        pytest.param({"state_dict": [1]}, "it has no state_dict of tensors", id="list-of-weights"),
        pytest.param({"state_dict": {"w": 1.0}}, "it has no state_dict of tensors", id="numbers"),
        pytest.param({"state_dict": {}}, "does not say which network it is", id="no-weights"),
        pytest.param(SMALL | {"state_dict": {1: torch.zeros(1)}}, "it has no state_dict of tensors", id="numbered"),
        pytest.param({"epoch": 1, "arch": SMALL["arch"]}, "it has no state_dict of tensors", id="no-state-dict"),
        pytest.param(SMALL | {"arch": 5}, "does not say which network it is", id="arch-of-another-kind"),
        pytest.param(SMALL, "does not fit the network", id="another-network"),
    ],
)
def test_checkpoints_of_something_else(checkpoint, match, tmp_path):
    refused(checkpoints.write(tmp_path / "model.pth", checkpoint), match)
