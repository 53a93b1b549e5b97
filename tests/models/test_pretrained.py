"""Pretrained encoders: which weights are meant, what is loaded and recorded. A fake stands in for timm's downloads."""

import json
import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import _builder
from torch import nn

import hyperseg
from hyperseg.models import CheckpointError, create_model, model_config, pretrained
from hyperseg.models.errors import EncoderDownloadError
from hyperseg.models.official_keys import efficientnet_names

S, VOC = "hyperseg-s-camvid", "hyperseg-l-voc"
load_pretrained = _builder.load_pretrained  # conftest.py replaces it in every test


def randomised(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return timm's state dict with values that no initialisation gives."""
    random = torch.Generator().manual_seed(1)
    return {
        key: torch.rand(value.shape, generator=random) + 0.1 if value.is_floating_point() else torch.tensor(12)
        for key, value in net.state_dict().items()
    }


@pytest.fixture(scope="module")
def b1():
    return randomised(timm.create_model("tf_efficientnet_b1"))


@pytest.fixture
def hub(monkeypatch):
    """Fake downloads: weights for every timm model. Returns the list of those asked for."""
    asked = []

    def download(model_id, **_):
        asked.append(model_id)
        return randomised(timm.create_model(model_id.removeprefix("timm/")))

    monkeypatch.setattr(_builder, "load_pretrained", load_pretrained)
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", download)
    monkeypatch.setattr("hyperseg.models.hub.unreachable", lambda: None)
    return asked


def assert_loaded(model, state):
    trunk = model.encoder.trunk.state_dict()
    assert len(trunk) > 400
    assert all(torch.equal(value, state[key]) for key, value in trunk.items())


def is_pytorch_default(weight):
    """Whether a convolution's weight has PyTorch's initialisation, which is uniform, and not a normal one."""
    bound = weight[0].numel() ** -0.5
    return 0.97 * bound < weight.abs().max() <= bound


B1, B3 = "tf_efficientnet_b1", "tf_efficientnet_b3"


@pytest.mark.parametrize(
    ("encoder", "given", "expected"),
    [
        (B1, True, f"{B1}.aa_in1k"),
        (B3, True, f"{B3}.aa_in1k"),
        (B1, B1, f"{B1}.aa_in1k"),
        (B1, "ns_jft_in1k", f"{B1}.ns_jft_in1k"),
        (B1, f"{B1}.in1k", f"{B1}.in1k"),
        (f"{B1}.ns_jft_in1k", True, f"{B1}.ns_jft_in1k"),
        (f"{B1}.in1k", "in1k", f"{B1}.in1k"),
        ("resnet18", True, "resnet18.a1_in1k"),
        ("resnet18", "tv_in1k", "resnet18.tv_in1k"),
        ("resnet18.gluon_in1k", True, "resnet18.gluon_in1k"),
        ("convnext_atto", True, "convnext_atto.d2_in1k"),
    ],
)
def test_which_weights(encoder, given, expected, monkeypatch):
    asked = []
    monkeypatch.setattr(pretrained, "_download", lambda name: asked.append(name) or {})
    monkeypatch.setattr(pretrained, "_fit", lambda state, name, source: state)
    assert pretrained.load_weights(encoder, given).record == expected
    assert asked == [expected]


@pytest.mark.parametrize("given", [False, None])
def test_no_weights(given):
    assert pretrained.load_weights(f"{B1}.aa_in1k", given) is None


@pytest.mark.parametrize(
    ("name", "encoder", "tag"), [(S, f"{B1}.ns_jft_in1k", f"{B1}.ns_jft_in1k"), (VOC, None, f"{B3}.aa_in1k")]
)
def test_a_published_encoder(name, encoder, tag, hub):
    model = create_model(name, encoder=encoder, pretrained_encoder=True)
    assert hub == [f"timm/{tag}"]
    assert model.config == model_config(name).replace(encoder_weights=tag), "with its static padding"
    assert_loaded(model, randomised(timm.create_model(tag)))


# The second's weights are renamed by timm, which recognises them by their classifier.
@pytest.mark.parametrize("encoder", ["resnet18.tv_in1k", "swin_tiny_patch4_window7_224.ms_in1k"])
def test_another_encoder(encoder, hub):
    model = create_model(S, encoder=encoder, pretrained_encoder=True)
    assert hub == [f"timm/{encoder}"]
    assert (model.config.encoder, model.config.encoder_weights) == (encoder, encoder)
    sums = {(value.shape, value.double().sum().item()) for value in randomised(timm.create_model(encoder)).values()}
    found = model.encoder.trunk.net.state_dict().values()
    assert all((value.shape, value.double().sum().item()) in sums for value in found)


def test_nothing_is_initialised_over_a_loaded_encoder(hub):
    """SPEC A.3: with ImageNet weights the rest keeps PyTorch's defaults."""
    torch.manual_seed(0)  # the largest of few uniform values may be well below the bound
    model = create_model(S, pretrained_encoder=True)
    rest = [model.context.reduce.conv.weight, *(reduce.conv.weight for reduce in model.encoder.reduce)]
    assert all(is_pytorch_default(weight) for weight in [*rest, *model.decoder.generators])
    assert not is_pytorch_default(create_model(S).context.reduce.conv.weight)


def test_the_rest_depends_on_the_seed_alone(hub, b1):
    contexts = []
    for given in (True, b1):
        torch.manual_seed(0)
        contexts.append(create_model(S, pretrained_encoder=given).context.reduce.conv.weight)
    assert torch.equal(*contexts)


def test_the_normalisation_of_the_weights(hub):
    model = create_model(S, pretrained_encoder="ap_in1k")
    assert (model.config.mean, model.config.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    imagenet = model_config(S).mean
    with pytest.warns(UserWarning, match=r"ap_in1k was trained with mean \(0\.5, 0\.5, 0\.5\), but .* given \[0\.485"):
        model = create_model(S, pretrained_encoder="ap_in1k", mean=list(imagenet))
    assert (model.config.mean, model.config.std) == (imagenet, (0.5, 0.5, 0.5))
    create_model(S, pretrained_encoder="ap_in1k", mean=torch.tensor([0.5, 0.5, 0.5]), std=(0.5, 0.5, 0.5))
    assert create_model(S, encoder="tf_efficientnet_b1.ap_in1k").config == model_config(S), "nothing is loaded"


def test_the_record_is_kept(hub, tmp_path):
    model = create_model(S, num_classes=3, pretrained_encoder=True)
    folder = hyperseg.save(model, tmp_path)
    assert json.loads((folder / "config.json").read_text())["encoder_weights"] == "tf_efficientnet_b1.aa_in1k"
    assert hyperseg.load(folder).config == model.config
    assert len(hub) == 1, "loading a checkpoint downloads nothing"


def official_layout(state):
    """Return the state dict as the official code's ImageNet files have it, with their classifier."""
    names = {ours: theirs for theirs, ours in efficientnet_names(timm.create_model("tf_efficientnet_b1"))}
    names |= {"classifier.weight": "_fc.weight", "classifier.bias": "_fc.bias"}
    return {names[key]: value for key, value in state.items()}


LAYOUTS = {
    "timm": lambda state: state,
    "without-classifier": lambda state: {k: v for k, v in state.items() if not k.startswith("classifier.")},
    "other-classifier": lambda state: (
        state | {"classifier.weight": torch.zeros(7, 1280), "classifier.bias": torch.zeros(7)}
    ),
    "without-counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "official": official_layout,
    "data-parallel": lambda state: {f"module.{key}": value for key, value in state.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_dicts(layout, b1):
    model = create_model(S, pretrained_encoder=LAYOUTS[layout](b1))
    assert model.config == model_config(S).replace(encoder_weights="a state dict")
    expected = b1 | {k: torch.tensor(0) for k in b1 if "tracked" in k} if layout == "without-counters" else b1
    assert_loaded(model, expected)


@pytest.mark.parametrize("name", ["timm.safetensors", "official.pth", "nested.tar"])
def test_files(name, b1, tmp_path):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(b1, path)
    else:
        torch.save({"epoch": 3, "state_dict": b1} if path.suffix == ".tar" else official_layout(b1), path)
    model = create_model(S, pretrained_encoder=str(path) if path.suffix == ".pth" else path)
    assert re.fullmatch(rf"{re.escape(name)} \(sha256 [0-9a-f]{{16}}\)", model.config.encoder_weights)
    assert_loaded(model, b1)


def test_a_file_for_another_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(_builder, "load_pretrained", load_pretrained)
    state = randomised(timm.create_model("resnet18"))
    torch.save(state, tmp_path / "resnet18.pth")
    model = create_model(S, encoder="resnet18", pretrained_encoder=tmp_path / "resnet18.pth")
    assert torch.equal(model.encoder.trunk.net.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda s: {k: v for k, v in s.items() if "conv_head" not in k}, "missing: conv_head", id="missing"
        ),
        pytest.param(lambda s: s | {"more.weight": torch.zeros(2)}, "surplus: more.weight", id="surplus"),
        pytest.param(lambda s: s | {"bn1.bias": torch.zeros(2)}, r"bn1\.bias is \(2,\), expected \(32,\)", id="shape"),
        pytest.param(lambda s: s | {"bn1.bias": torch.full((32,), torch.nan)}, r"bn1\.bias contains NaN", id="nan"),
        pytest.param(lambda s: {}, "is not a state dict", id="empty"),
        pytest.param(lambda s: {"epoch": 3}, "is not a state dict", id="numbers"),
    ],
)
def test_weights_that_do_not_fit(change, message, b1, tmp_path):
    torch.save(change(b1), tmp_path / "b1.pth")
    with pytest.raises(CheckpointError, match=rf"(?s)b1\.pth.*{message}"):
        create_model(S, pretrained_encoder=tmp_path / "b1.pth")


def test_files_are_not_executed(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "b1.pth")
    with pytest.raises(CheckpointError, match="was refused, and nothing in it was executed"):
        create_model(S, pretrained_encoder=tmp_path / "b1.pth")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"pretrained_encoder": "imagenet"},
            ValueError,
            "no weights 'imagenet' for tf_efficientnet_b1; it has aa_in1k, ap",
        ),
        ({"pretrained_encoder": "tf_efficientnet_b3.aa_in1k"}, ValueError, "for tf_efficientnet_b1; it has aa_in1k"),
        (
            {"pretrained_encoder": "b1.pth"},
            CheckpointError,
            r"b1\.pth, given as pretrained_encoder, does not exist; give a",
        ),
        ({"pretrained_encoder": "/"}, CheckpointError, "is a folder; give a"),
        (
            {"pretrained_encoder": 3},
            TypeError,
            "must be True, a tag such as 'aa_in1k', a file or a state dict, got int",
        ),
        (
            {"encoder": "tf_efficientnet_b1.zz"},
            ValueError,
            "no weights 'tf_efficientnet_b1.zz'; for tf_efficientnet_b1 it",
        ),
        ({"encoder": "resnet18.zz"}, ValueError, "timm has no weights 'resnet18.zz'; for resnet18 it has a1_in1k"),
        (
            {"encoder": "tf_efficientnet_b1.aa_in1k", "pretrained_encoder": "ap_in1k"},
            ValueError,
            "name different weights; give one",
        ),
        ({"encoder": "tf_efficientnetv2_l.zz", "pretrained_encoder": True}, ValueError, "timm has no weights"),
        ({"encoder_weights": "aa_in1k"}, ValueError, "create_model has no argument encoder_weights"),
    ],
)
def test_what_is_not_there(arguments, error, message):
    with pytest.raises(error, match=message):
        create_model(S, **arguments)


def test_without_a_network(monkeypatch):
    def fail(*_, **__):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nand more lines")

    monkeypatch.setattr(_builder, "load_pretrained", load_pretrained)
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", fail)
    expected = (
        r"tf_efficientnet_b1\.aa_in1k could not be loaded \(OSError: We couldn't connect .*'\)\. Without an internet "
        r"connection, get model\.safetensors from https://huggingface\.co/timm/tf_efficientnet_b1\.aa_in1k .*"
        r"pretrained_encoder='model\.safetensors'"
    )
    monkeypatch.setattr("hyperseg.models.hub.unreachable", lambda: None)
    with pytest.raises(CheckpointError, match=expected):
        create_model(S, pretrained_encoder=True)
    monkeypatch.setattr("hyperseg.models.hub.unreachable", lambda: "huggingface.co could not be found (no such name)")
    with pytest.raises(EncoderDownloadError, match=r"could not be loaded \(huggingface\.co could not be found"):
        create_model(S, pretrained_encoder=True)


def test_weights_that_timm_leaves_out(monkeypatch):
    """timm loads a network of features without complaint from a state dict with other names."""
    monkeypatch.setattr(_builder, "load_pretrained", lambda model, **_: None)
    state = randomised(timm.create_model("resnet18"))
    with pytest.raises(CheckpointError, match=r"timm did not load \d+ of the encoder's tensors, such as conv1\.weight"):
        create_model(S, encoder="resnet18", pretrained_encoder=state)
