"""Official checkpoints: reading all that the trainer writes, and writing files that the official code reads."""

import json

import numpy as np
import pytest
import torch

import hyperseg
from hyperseg.models import CheckpointError, create_model, load_official, model_config, official, save_official
from tests import golden
from tests.models import checkpoints
from tests.models.networks import NAMES, images

names = pytest.mark.parametrize("name", NAMES)
S = "hyperseg-s-camvid"


@names
def test_official_files_give_the_official_logits(name, tmp_path):
    """Weights, buffers, optimiser, scheduler and a NumPy scalar, in a file as SPEC A.4 describes it."""
    state = golden.official_state(name) | checkpoints.coordinates(name)
    path = checkpoints.write(tmp_path / "model_best.pth", checkpoints.trained(name, state))
    model = hyperseg.load_official(path)
    assert not model.training
    assert model.config == model_config(name)
    with torch.inference_mode():
        logits = model(golden.images())
    expected = golden.golden_figures(name)["logits"]
    error = np.abs(golden.subsample(logits, 20000) - expected).max() / np.abs(expected).max()
    assert error < 1e-4


@names
def test_keys_shapes_and_order(name):
    """They match the official ``state_dict()``, whose order its optimiser relies on."""
    stored = json.loads((golden.DATA / f"keys_{golden.VARIANTS[name]}.json").read_text())
    found = official.to_official(create_model(name))
    assert list(found) == list(stored)
    assert {key: list(value.shape) for key, value in found.items()} == {k: e["shape"] for k, e in stored.items()}
    assert {str(value.dtype).removeprefix("torch.") for value in found.values()} == {"float32", "int64"}
    for key, expected in checkpoints.coordinates(name).items():
        torch.testing.assert_close(found[key], expected)


def assert_same_weights(model, state):
    found = official.to_official(model)
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda c: c, id="as-trained"),
        pytest.param(lambda c: {k: c[k] for k in ("state_dict", "arch")}, id="eval-only"),
        pytest.param(lambda c: c | {"best_iou": 0}, id="before-the-first-validation"),
        pytest.param(lambda c: c | {"best_iou": np.float32(0.5)}, id="float32-iou"),
        pytest.param(lambda c: c | {"arch": checkpoints.ARCH[S].replace(",", ", ")}, id="arch-with-spaces"),
        pytest.param(
            lambda c: c | {"state_dict": {f"module.{k}": v for k, v in c["state_dict"].items()}}, id="data-parallel"
        ),
        pytest.param(
            lambda c: c | {"state_dict": {k: v for k, v in c["state_dict"].items() if "coord" not in k}},
            id="without-cached-coordinates",
        ),
        pytest.param(lambda c: c | {"state_dict": dict(reversed(c["state_dict"].items()))}, id="keys-in-another-order"),
    ],
)
def test_forms_of_a_checkpoint(change, tmp_path):
    path = checkpoints.write(tmp_path / "model.pth", change(checkpoints.trained()))
    assert_same_weights(load_official(path), checkpoints.weights())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before-torch-1.6"])
@pytest.mark.parametrize("core", ["numpy.core.multiarray", "numpy._core.multiarray"], ids=["numpy1", "numpy2"])
def test_numpy_scalars_of_either_version(core, legacy, tmp_path):
    path = checkpoints.write(tmp_path / "model.pth", checkpoints.trained(), core, legacy)
    assert_same_weights(load_official(path), checkpoints.weights())


def test_bare_state_dict(tmp_path):
    path = checkpoints.write(tmp_path / "model.pth", checkpoints.weights())
    assert_same_weights(load_official(path, "hyperseg-s-camvid"), checkpoints.weights())
    with pytest.raises(CheckpointError, match="does not say which network it is"):
        load_official(path)
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_official(path, "hyperseg-m")
    with pytest.raises(ValueError, match="There is no network 'camvid'"):
        load_official(path, "camvid")


def test_cached_coordinates_of_another_resolution(tmp_path):
    state = {k: v for k, v in checkpoints.weights().items() if "coord" not in k}
    x, y = torch.linspace(-1, 1, 60), torch.linspace(-1, 1, 36)
    state["decoder.coord36_60"] = torch.stack([x.expand(36, 60), y[:, None].expand(36, 60)])[None]
    path = checkpoints.write(tmp_path / "model.pth", checkpoints.trained(state=state))
    assert_same_weights(load_official(path), {k: v for k, v in state.items() if "coord" not in k})


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda t: t + 0.01, id="shifted"),
        pytest.param(lambda t: t.flip(1), id="y-then-x"),
        pytest.param(lambda t: t[:, :1], id="one-channel"),
        pytest.param(lambda t: t[0], id="3d"),
        pytest.param(lambda t: t.flatten(), id="1d"),
        pytest.param(lambda t: t.sum(), id="scalar"),
        pytest.param(lambda t: t * torch.nan, id="nan"),
    ],
)
def test_cached_coordinates_with_other_values(change, tmp_path):
    """The official code would use them, so the output would differ (SPEC F)."""
    state = dict(checkpoints.weights())
    state["decoder.coord288_384"] = change(state["decoder.coord288_384"])
    path = checkpoints.write(tmp_path / "model.pth", checkpoints.trained(state=state))
    with pytest.raises(CheckpointError, match=r"decoder\.coord288_384 does not contain coordinates from -1 to 1"):
        load_official(path)


def test_missing_surplus_and_misshapen_keys_are_listed(tmp_path):
    state = dict(checkpoints.weights())
    gone = ["backbone._conv_stem.weight", "weight_mapper.in_conv.1.running_var"]
    for key in gone:
        del state[key]
    state["backbone._fc.weight"] = torch.zeros(3)
    state["decoder.level_0.0.1.weight"] = torch.zeros(5)
    path = checkpoints.write(tmp_path / "model.pth", checkpoints.trained(state=state))
    with pytest.raises(CheckpointError) as caught:
        load_official(path)
    message = str(caught.value)
    assert f"{path} does not fit the network, 4 keys disagree" in message
    assert [line.strip() for line in message.splitlines()[1:]] == [
        "missing: backbone._conv_stem.weight (32, 3, 3, 3)",
        "missing: weight_mapper.in_conv.1.running_var (640,)",
        "surplus: backbone._fc.weight",
        "misshapen: decoder.level_0.0.1.weight is (5,), expected (64,)",
    ]


def test_a_long_list_of_keys_is_cut(tmp_path):
    path = checkpoints.write(tmp_path / "model.pth", checkpoints.trained(state={"a": torch.zeros(1)}))
    with pytest.raises(CheckpointError) as caught:
        load_official(path)
    # 614 keys (SPEC I), 10 of them cached coordinates, and one too many.
    assert "605 keys disagree" in str(caught.value)
    assert str(caught.value).endswith("... and 565 more")


def test_weights_of_v0_2_are_refused(tmp_path):
    """They divide the signal differently, which shows only in the width of one generator (SPEC D.4)."""
    key = "decoder.level_2.0.0.signal2weights.weight"
    state = dict(checkpoints.weights())
    assert state[key].shape == (704, 8, 1, 1)
    state[key] = state[key][:, :2]
    path = checkpoints.write(tmp_path / "model.pth", checkpoints.trained(state=state))
    with pytest.raises(CheckpointError, match=rf"1 keys disagree:\n  misshapen: {key} is \(704, 2, 1, 1\)"):
        load_official(path)
    arch = checkpoints.ARCH[S].replace("v1_0", "v0_2")
    path = checkpoints.write(tmp_path / "model.pth", checkpoints.trained(arch=arch))
    with pytest.raises(CheckpointError, match=r"hyperseg_v0_2.* which is none of"):
        load_official(path)


@pytest.mark.parametrize("classes", [None, 7], ids=["published", "7-classes"])
@names
def test_save_and_load(name, classes, tmp_path):
    model = hyperseg.synthesize_weights(create_model(name, num_classes=classes)).eval()
    path = tmp_path / "model.pth"
    save_official(model, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pth"]
    again = load_official(path)
    assert again.config == model.config
    x = images(32, 64)
    with torch.inference_mode():
        assert torch.equal(again(x), model(x))
    written = torch.load(path, weights_only=True)
    assert set(written) == {"state_dict", "arch", "epoch"}
    assert written["arch"].endswith(f"num_classes={classes or model.config.num_classes})")


def test_other_networks_cannot_be_written(tmp_path):
    model = create_model("hyperseg-s", num_classes=2, encoder="mobilenetv3_small_100")
    with pytest.raises(ValueError, match="official code has no network like 'hyperseg-s-cityscapes'"):
        save_official(model, tmp_path / "model.pth")
    assert list(tmp_path.iterdir()) == []


def test_equal_networks_give_equal_files(tmp_path):
    model = create_model(S)
    for name in ("a.pth", "b.pth"):
        save_official(model, tmp_path / name)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()
