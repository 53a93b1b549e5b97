"""Networks in DataParallel, averaged models, torch.compile and the like, and the keys that these leave in files."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import hyperseg
from hyperseg.models import CheckpointError, official, unwrap
from hyperseg.models.state import plain_keys
from hyperseg.predict import Predictor
from tests.models import checkpoints
from tests.models.networks import network

S = "hyperseg-s-camvid"


class Ema(nn.Module):
    """As common classes for exponential averages: a copy called ``module``."""

    def __init__(self, model):
        super().__init__()
        self.module = copy.deepcopy(model)


class Trainer(nn.Module):
    """As a training framework's module: the network is a part of it."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPPERS = {
    "data-parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "ema": Ema,
    "compiled": compiled,
    "compiled-data-parallel": lambda model: compiled(nn.DataParallel(model)),
    "averaged-compiled": lambda model: AveragedModel(compiled(model)),
    "ema-data-parallel-compiled": lambda model: Ema(nn.DataParallel(compiled(model))),
}


@pytest.fixture
def group(tmp_path):
    """A process group of one process."""
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def assert_same(model, expected):
    found = model.state_dict()
    assert model.config == expected.config
    assert list(found) == list(expected.state_dict())
    assert all(torch.equal(found[key], value) for key, value in expected.state_dict().items())


@pytest.fixture
def model():
    return copy.deepcopy(network(S))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_unwrap(wrapper, model):
    assert_same(unwrap(WRAPPERS[wrapper](model)).cpu(), network(S))


@pytest.mark.parametrize("wrapper", ["compiled-data-parallel", "averaged"])
def test_save_and_load(wrapper, model, tmp_path):
    wrapped = WRAPPERS[wrapper](model)
    assert_same(hyperseg.load(hyperseg.save(wrapped, tmp_path / "own")), network(S))
    hyperseg.save_official(wrapped, tmp_path / "official.pth")
    assert_same(hyperseg.load(tmp_path / "official.pth"), network(S))


def test_distributed_data_parallel(group, model):
    assert unwrap(compiled(DistributedDataParallel(model))) is model


def test_weights_divided_between_processes(group, model):
    model = fully_shard(model, mesh=distributed.device_mesh.init_device_mesh("cpu", (1,)))
    with pytest.raises(TypeError, match=r"divided between processes \(FSDP\)\. Gather them .* full_state_dict=True"):
        unwrap(model)
    with pytest.raises(TypeError, match=r"got .*Trainer: its weights are divided between processes \(FSDP\)"):
        unwrap(Trainer(_fsdp_wrapped_module=network(S)))


def test_an_average_is_saved_not_the_network_it_follows(model, tmp_path):
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    averaged.update_parameters(model)
    saved = hyperseg.load(hyperseg.save(averaged, tmp_path)).decoder.generators[0]
    torch.testing.assert_close(saved, network(S).decoder.generators[0] + 0.5)


def test_a_network_of_which_parts_are_compiled(model):
    model.encoder.trunk.blocks[1] = compiled(model.encoder.trunk.blocks[1])
    model.encoder = compiled(model.encoder)
    plain = unwrap(nn.DataParallel(model))
    assert_same(plain.cpu(), network(S))
    shared = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    assert {tensor.data_ptr() for tensor in [*plain.parameters(), *plain.buffers()]} == shared
    assert isinstance(model.encoder, type(compiled(nn.Identity()))), "the user's own network is not changed"


@pytest.mark.parametrize("wrapper", ["averaged", "compiled-data-parallel"])
def test_engines_and_predictors(wrapper, model):
    model = WRAPPERS[wrapper](model)
    frames = torch.randint(0, 256, (1, 32, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = hyperseg.build_engine(network(S), size=(32, 64), device="cpu")(frames)
    assert torch.equal(hyperseg.build_engine(model, size=(32, 64), device="cpu")(frames), expected)
    assert np.array_equal(Predictor(model)(frames[0].numpy()), expected[0].numpy())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param(lambda n: n.state_dict(), r"got collections\.OrderedDict: give what hyperseg\.create", id="dict"),
        pytest.param(lambda n: "net.pth", r"got str: give what hyperseg\.create_model", id="path"),
        pytest.param(lambda n: n.encoder, r"Encoder: there is no HyperSeg network in it", id="a-part"),
        pytest.param(
            lambda n: nn.Sequential(n, nn.Softmax(1)), r"give the network alone, get_submodule\('0'\)", id="more"
        ),
        pytest.param(lambda n: Trainer(model=n), r"the network is a part .* get_submodule\('model'\)", id="trainer"),
        pytest.param(
            lambda n: Trainer(model=nn.DataParallel(n)), r"alone, get_submodule\('model\.module'\)", id="deep-inside"
        ),
        pytest.param(
            lambda n: nn.DataParallel(Trainer(module=n, ema=copy.deepcopy(n))),
            r"there are 2 networks .* get_submodule\('module'\) or get_submodule\('ema'\)",
            id="two",
        ),
    ],
)
def test_what_contains_no_single_network(model, message, tmp_path):
    model = model(network(S))
    uses = {
        "save": lambda: hyperseg.save(model, tmp_path / "own"),
        "save_official": lambda: hyperseg.save_official(model, tmp_path / "official.pth"),
        "build_engine": lambda: hyperseg.build_engine(model, size=(32, 64), device="cpu"),
        "Predictor": lambda: Predictor(model),
    }
    for use in uses.values():
        with pytest.raises(TypeError, match=message):
            use()
    assert list(tmp_path.iterdir()) == []


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module._orig_mod."]


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes(prefix):
    state = {"encoder.a": torch.zeros(1), "decoder.b": torch.ones(1)}
    assert plain_keys(prefixed(state, prefix), "file") == state
    assert plain_keys({"n_averaged": torch.tensor(1), **prefixed(state, f"module.{prefix}")}, "file") == state
    assert plain_keys({"encoder._orig_mod.a": state["encoder.a"], "decoder.b": state["decoder.b"]}, "file") == state


def test_files_with_prefixed_keys(tmp_path):
    """An official file, a bare state dict, and our own format."""
    own = hyperseg.save(network(S), tmp_path / "own")
    state = official.to_official(network(S))
    checkpoint = checkpoints.trained(state=prefixed(state, "module._orig_mod."))
    assert_same(hyperseg.load(checkpoints.write(tmp_path / "a.pth", checkpoint)), network(S))
    averaged = prefixed(state, "_orig_mod.module.") | {"_orig_mod.n_averaged": torch.tensor(3)}
    assert_same(hyperseg.load(checkpoints.write(tmp_path / "b.pth", averaged), name=S), network(S))
    (own / "model.safetensors").unlink()
    save_file(prefixed(AveragedModel(network(S)).state_dict(), "_orig_mod."), own / "model.safetensors")
    assert_same(hyperseg.load(own), network(S))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda s: s | prefixed(s, "module."), "begin with 'module.' and others, such as backbone", id="both"
        ),
        pytest.param(
            lambda s: {("module." if "coord" in key else "") + key: value for key, value in s.items()},
            "some of its keys begin with 'module.' and others",
            id="some",
        ),
        pytest.param(
            lambda s: prefixed(s, "module.") | prefixed(s, "_orig_mod."), "some of its keys begin with", id="two"
        ),
        pytest.param(
            lambda s: s | {key.replace(".", "._orig_mod.", 1): value for key, value in s.items()},
            "with and without '_orig_mod.'",
            id="inside",
        ),
    ],
)
def test_keys_of_which_only_some_are_prefixed(change, message, tmp_path):
    state = change(dict(checkpoints.weights()))
    path = checkpoints.write(tmp_path / "model.pth", checkpoints.trained(state=state))
    with pytest.raises(CheckpointError, match=rf"model\.pth.*{message}.*keep the keys of one network"):
        hyperseg.load(path)
