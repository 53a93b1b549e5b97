"""The library's own checkpoints: ``config.json`` and ``model.safetensors``."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import hyperseg
from hyperseg.models import CheckpointError, create_model, synthesize_weights
from tests.models.networks import NAMES, images, network

S = "hyperseg-s-camvid"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint that tests copy and damage."""
    return hyperseg.save(network(S), tmp_path_factory.mktemp("saved") / "network")


@pytest.fixture(scope="module")
def old(saved):
    """The same as older versions wrote it: the weights do not contain the configuration."""
    directory = saved.with_name("old")
    directory.mkdir()
    shutil.copy(saved / "config.json", directory)
    save_file(load_file(saved / "model.safetensors"), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture
def damaged(old, tmp_path):
    directory = tmp_path / "network"
    directory.mkdir()
    (directory / "config.json").write_bytes((old / "config.json").read_bytes())
    os.link(old / "model.safetensors", directory / "model.safetensors")
    return directory


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        hyperseg.load(path)
    return str(caught.value)


def rewrite_config(directory, change):
    values = json.loads((directory / "config.json").read_text())
    change(values)
    (directory / "config.json").write_text(json.dumps(values))


def rewrite_weights(directory, change):
    state = load_file(directory / "model.safetensors")
    change(state)
    (directory / "model.safetensors").unlink()
    save_file(state, directory / "model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name, tmp_path):
    directory = hyperseg.save(network(name), tmp_path / "deep" / "folder")
    assert sorted(os.listdir(directory)) == ["config.json", "model.safetensors"]
    model = hyperseg.load(directory)
    assert not model.training
    assert model.config == network(name).config
    x = images(32, 64)
    with torch.inference_mode():
        assert torch.equal(model(x), network(name)(x))


def test_round_trip_of_a_custom_network(tmp_path):
    model = create_model(
        "hyperseg-m", num_classes=2, encoder="mobilenetv3_small_100", class_names=("no", "yes"), mean=(0.5, 0.5, 0.5)
    )
    synthesize_weights(model).eval()
    again = hyperseg.load(hyperseg.save(model, tmp_path))
    assert again.config == model.config
    assert again.config.class_names == ("no", "yes")
    x = images(33, 64)
    with torch.inference_mode():
        assert torch.equal(again(x), model(x))


def test_the_weights_file_can_be_given_instead_of_its_directory(saved):
    found = hyperseg.load(saved / "model.safetensors").state_dict()
    assert all(torch.equal(found[key], value) for key, value in network(S).state_dict().items())
    assert hyperseg.load(str(saved)).config == network(S).config


def test_memory_format_and_dtype_do_not_matter(tmp_path):
    model = create_model("hyperseg-s", encoder="mobilenetv3_small_100").to(memory_format=torch.channels_last).half()
    again = hyperseg.load(hyperseg.save(model, tmp_path))
    assert all(torch.equal(again.state_dict()[k], v.to(again.state_dict()[k])) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(name, damaged):
    (damaged / name).unlink()
    assert str(damaged / name) in refused(damaged, "does not exist; a checkpoint is a directory with config.json and")


def test_missing_directory(tmp_path):
    refused(tmp_path / "nothing", "does not exist; a checkpoint is a directory with")


@pytest.mark.parametrize("name", [".", "model.safetensors"], ids=["directory", "weights"])
def test_our_own_checkpoint_as_an_official_one(name, saved):
    with pytest.raises(CheckpointError, match=r"not a \.pth file of the official code\. .* there is hyperseg\.load\."):
        hyperseg.load_official(saved / name)


def test_unknown_and_missing_fields(damaged):
    rewrite_config(damaged, lambda v: v.update(colour="red"))
    refused(damaged, r"config\.json is not a usable configuration: .*unknown fields \['colour'\]")
    rewrite_config(damaged, lambda v: (v.pop("colour"), v.pop("halo")))
    refused(damaged, r"missing fields \['halo'\]")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"num_classes": "12"}, "num_classes must be an integer"),
        ({"num_classes": None}, "num_classes must be an integer"),
        ({"context": ["pyramid"]}, "context must be one of"),
        ({"kernel_sizes": 3}, "kernel_sizes must be a tuple of integers"),
        ({"weight_groups": [64]}, "5 weight generators need as many weight_groups"),
        ({"encoder": "resnet18x", "static_padding_size": None}, "timm has no model 'resnet18x'"),
        ({"encoder": "resnet18"}, "Only EfficientNet B0 to B7 have static padding; for 'resnet18'"),
        ({"encoder": "tf_efficientnetv2_b0"}, "Only EfficientNet B0 to B7 have static padding"),
        ({"encoder": "tf_efficientnet_b99"}, "timm has no model 'tf_efficientnet_b99'"),
        ({"encoder": 18, "static_padding_size": None}, "is not a usable configuration"),
        ({"context_levels": 10**9}, "context_levels must be"),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_invalid_configurations(values, match, damaged):
    rewrite_config(damaged, lambda v: v.update(values))
    assert "config.json is not a usable configuration: " in refused(damaged, match)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "12", '"text"', "\x00", "[" * 100_000])
def test_files_that_are_not_configurations(text, damaged):
    (damaged / "config.json").write_text(text)
    refused(damaged, r"config\.json is not a usable configuration")


def test_a_configuration_that_is_not_text(damaged):
    (damaged / "config.json").write_bytes(b"\xff\xfe\x00")
    refused(damaged, r"config\.json is not a usable configuration")


@pytest.mark.parametrize("part", [0, 0.0001, 0.5, 0.999])
def test_truncated_weights(part, damaged):
    path = damaged / "model.safetensors"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: int(len(data) * part)])
    refused(damaged, r"model\.safetensors is not a readable safetensors file")


@pytest.mark.parametrize("data", [b"not safetensors at all", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}"])
def test_files_that_are_not_weights(data, damaged):
    (damaged / "model.safetensors").unlink()
    (damaged / "model.safetensors").write_bytes(data)
    refused(damaged, "is not a readable safetensors file|does not fit the network")


def test_other_keys_and_shapes_are_listed(damaged):
    def change(state):
        del state["decoder.generators.0"]
        state["more"] = torch.zeros(1)
        state["context.reduce.norm.bias"] = torch.zeros(3)

    rewrite_weights(damaged, change)
    lines = [line.strip() for line in refused(damaged, "3 keys disagree").splitlines()[1:]]
    assert lines == [
        "missing: decoder.generators.0 (5248, 7)",
        "surplus: more",
        "misshapen: context.reduce.norm.bias is (3,), expected (640,)",
    ]


def test_weights_of_another_network(damaged):
    rewrite_config(damaged, lambda v: v.update(num_classes=13))
    assert "decoder.levels.4.norms.2.weight is (12,), expected (13,)" in refused(damaged, "does not fit the network")


def test_saving_over_a_checkpoint(damaged):
    hyperseg.save(network("hyperseg-s-cityscapes"), damaged)
    assert hyperseg.load(damaged).config == network("hyperseg-s-cityscapes").config
    assert sorted(os.listdir(damaged)) == ["config.json", "model.safetensors"]


def test_checkpoints_of_older_versions(old):
    model = hyperseg.load(old)
    assert model.config == network(S).config
    assert all(torch.equal(model.state_dict()[key], value) for key, value in network(S).state_dict().items())


def test_the_weights_file_is_enough(saved, tmp_path):
    shutil.copy(saved / "model.safetensors", tmp_path / "mine.safetensors")
    assert hyperseg.load(tmp_path / "mine.safetensors").config == network(S).config


def rewrite_metadata(directory, text):
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    save_file(state, directory / "model.safetensors", metadata={"hyperseg_config": text})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"num_classes": 12}'])
def test_unusable_metadata(text, damaged):
    rewrite_metadata(damaged, text)
    refused(damaged, r"the metadata of .*model\.safetensors is not a usable configuration")


def test_an_edited_config_is_not_ignored_silently(saved, tmp_path):
    directory = tmp_path / "network"
    shutil.copytree(saved, directory)
    rewrite_config(directory, lambda v: v.update(mean=[0.5, 0.5, 0.5], dataset="voc"))
    with pytest.warns(UserWarning, match=r"config\.json has another dataset, mean; ignored, .* model\.config\.replace"):
        assert hyperseg.load(directory).config == network(S).config
    (directory / "config.json").write_text("{")
    with pytest.warns(UserWarning, match=r"config\.json is not a usable configuration: .*; ignored"):
        assert hyperseg.load(directory).config == network(S).config
