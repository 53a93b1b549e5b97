"""NaN, infinity and negative variances in weights: one message that names the parameter and says what to do."""

import copy
import warnings

import pytest
import torch

import hyperseg
from hyperseg.cli import main
from hyperseg.models import CheckpointError, check_finite
from hyperseg.models.state import not_finite
from tests.models.networks import network

S = "hyperseg-s-camvid"
CASES = {
    "nan": ("decoder.generators.0", float("nan"), r"decoder\.generators\.0 contains NaN \(1 of 36736 values\)"),
    "inf": ("encoder.trunk.conv_stem.weight", float("inf"), r"conv_stem\.weight contains infinity \(1 of 864 values\)"),
    "minus": ("context.reduce.norm.bias", float("-inf"), r"context\.reduce\.norm\.bias contains infinity"),
    "statistics": ("encoder.trunk.bn1.running_mean", float("nan"), r"encoder\.trunk\.bn1\.running_mean contains NaN"),
    "variance": (
        "decoder.levels.4.norms.2.running_var",
        -0.25,
        r"levels\.4\.norms\.2\.running_var contains negative variances \(down to -0\.25\)",
    ),
}
cases = pytest.mark.parametrize(("key", "value", "message"), CASES.values(), ids=CASES)


def diverged(key, value, **more):
    model = copy.deepcopy(network(S))
    for name, number in {key: value, **more}.items():
        model.state_dict()[name].view(-1)[-1] = number
    return model


def test_finite_weights():
    check_finite(network(S))
    state = {"a": torch.tensor([-1e38, 3e38]), "b": torch.zeros(0), "c": torch.tensor(7), "running_var": torch.zeros(2)}
    state |= {"double": torch.tensor([1e300], dtype=torch.float64), "half": torch.tensor([6e4], dtype=torch.float16)}
    assert not_finite(state) == []


@cases
def test_engines(key, value, message):
    with pytest.raises(ValueError, match=rf"The network has unusable weights: .*{message}.*use an earlier checkpoint"):
        hyperseg.build_engine(diverged(key, value), size=(32, 64), device="cpu")


@pytest.mark.parametrize("write", [hyperseg.save, hyperseg.save_official])
def test_checkpoints(write, tmp_path):
    """Written with a warning, refused when loaded, and read if that is wanted."""
    key, value, message = CASES["variance"]
    path = tmp_path / "network.pth"
    with pytest.warns(
        UserWarning, match=rf"saved to .*network\.pth has unusable weights: .*{message}.* keep an earlier"
    ):
        write(diverged(key, value), path)
    with pytest.raises(CheckpointError, match=rf"network\.pth.* has unusable weights: .*{message}.*earlier checkpoint"):
        hyperseg.load(path)
    assert hyperseg.load(path, check_finite=False).state_dict()[key].view(-1)[-1] == value


def test_many_parameters_are_counted():
    nan = float("nan")
    keys = ("decoder.generators.0", "decoder.generators.1", "decoder.generators.2", "decoder.generators.3")
    model = diverged(keys[0], nan, **dict.fromkeys(keys[1:], nan))
    with pytest.raises(CheckpointError, match=r"generators\.0 .*generators\.1 .*generators\.2 .*; and 1 more\. The"):
        check_finite(model)


def test_the_command(tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hyperseg.save(diverged("decoder.generators.0", float("nan")), tmp_path / "net")
    (tmp_path / "a.png").write_bytes(b"")
    code = main(
        ["predict", str(tmp_path / "a.png"), "--weights", str(tmp_path / "net"), "--output", str(tmp_path / "out")]
    )
    assert code == 1
    error = capsys.readouterr().err
    assert "decoder.generators.0 contains NaN" in error
    assert "use an earlier checkpoint" in error
    assert not (tmp_path / "out").exists()
