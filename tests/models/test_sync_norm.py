"""Synchronised batch norms: two processes with halves of a batch train as one process with the whole batch."""

import copy
import functools
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

import hyperseg
from hyperseg import ops
from hyperseg.models.norms import SyncBatchNorm2d, SyncBatchNormAct2d, is_foldable, synchronise_norms
from tests.models import networks, sync_worker
from tests.models.networks import images, relative_rms
from tests.models.sync_worker import DTYPES, FROZEN, LAYOUTS, NAME, batch, network, settings, train

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Return what two processes computed."""
    folder = tmp_path_factory.mktemp("processes")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.models.sync_worker", str(rank), str(folder)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


# ---------------------------------------------------------------------------------------------------------------------
# Two processes


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "one level frozen"])
def test_a_network_trains_as_in_one_process(frozen, computed):
    """With DistributedDataParallel, for three steps of Adam: losses, parameters and running statistics."""
    model = network()
    if frozen:
        model.get_submodule(FROZEN).eval()
    losses = train(model, *batch())
    expected = model.state_dict()
    averaged = [sum(pair) / 2 for pair in zip(*(found[frozen]["losses"] for found in computed), strict=True)]
    assert averaged == pytest.approx(losses, rel=1e-9, abs=0)
    assert losses[-1] < losses[0]
    for found in computed:
        assert found[frozen]["state"].keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                found[frozen]["state"][key], value, rtol=1e-9, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}"
            )
        groups = found[frozen]["groups"]
        blocks = sum(level.hidden > 0 for level in model.decoder.plan.levels) - frozen
        assert len(groups) == sync_worker.STEPS * blocks, "the decoder runs the fused operator"
        assert set(groups) == {groups[0]}
        assert groups[0] != ""


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", settings())
def test_a_norm_of_two_processes(name, dtype, layout, computed):
    """Batches of one and three images, two training steps: as PyTorch's norm on four images."""
    parts = [found[name, dtype, str(layout)] for found in computed]
    expected = sync_worker.run(nn.Sequential(settings()[name]), slice(None), dtype, layout)
    assert parts[0].keys() == expected.keys()
    near = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}[dtype]
    for key, value in expected.items():
        pair = [part[key] for part in parts]
        if key in ("y", "d_x"):
            found = torch.cat(pair)
        elif key.startswith("d_"):
            found = pair[0] + pair[1]
        else:
            assert torch.equal(*pair)
            found = pair[0]
        torch.testing.assert_close(found, value, rtol=near, atol=near, msg=lambda m, k=key: f"{k}: {m}")


# ---------------------------------------------------------------------------------------------------------------------
# One process


def test_without_other_processes_nothing_changes():
    """Bitwise, in training and in eval mode."""
    plain, model = network(), synchronise_norms(network())
    x, labels = batch()
    assert train(plain, x[:2], labels[:2], steps=1) == train(model, x[:2], labels[:2], steps=1)
    assert plain.state_dict().keys() == model.state_dict().keys()
    for key, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    with torch.inference_mode():
        assert torch.equal(plain.eval()(x), model.eval()(x))


def test_norms_stay_the_same_modules():
    """Parameters, buffers and hooks are those of before; encoder, context and decoder are all replaced."""
    model = copy.deepcopy(networks.network(NAME))
    before = {name: (id(module), type(module)) for name, module in model.named_modules()}
    tensors = {name: id(t) for name, t in (*model.named_parameters(), *model.named_buffers())}
    called = []
    hook = model.encoder.trunk.bn1.register_forward_hook(lambda *_: called.append("bn1"))
    assert synchronise_norms(model) is model
    assert {name: id(module) for name, module in model.named_modules()} == {k: v[0] for k, v in before.items()}
    assert {name: id(t) for name, t in (*model.named_parameters(), *model.named_buffers())} == tensors
    types = {nn.BatchNorm2d: SyncBatchNorm2d, BatchNormAct2d: SyncBatchNormAct2d}
    for name, module in model.named_modules():
        assert type(module) is types.get(before[name][1], before[name][1])
    assert {type(m) for m in model.modules()} >= set(types.values())
    model(images(32, 32))
    assert called == ["bn1"]
    hook.remove()
    again = copy.deepcopy(synchronise_norms(model))
    assert type(again.encoder.trunk.bn1) is SyncBatchNormAct2d
    assert again.encoder.trunk.bn1.act is not None


def test_activation_and_dropout_stay():
    norm = settings()["activated"]
    x = torch.randn(2, 5, 3, 3)
    expected = nn.functional.silu(torch.sigmoid(nn.BatchNorm2d.forward(copy.deepcopy(norm), x)))
    torch.testing.assert_close(synchronise_norms(nn.Sequential(norm))(x), expected)


def test_an_engine_of_synchronised_norms(tmp_path):
    model = copy.deepcopy(networks.network(NAME))
    frames = torch.randint(0, 256, (1, 32, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    build = functools.partial(hyperseg.build_engine, size=(32, 64), device="cpu", check=False)
    with torch.inference_mode():
        expected = build(model).logits(frames)
        found = build(synchronise_norms(model)).logits(frames)
    assert torch.equal(found, expected)
    hyperseg.models.save(model, tmp_path / "model")
    loaded = hyperseg.load(tmp_path / "model")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_one_value_per_channel():
    """The message of a network whose norms are not synchronised, because there is no other process."""
    with pytest.raises(ValueError, match=r"one image of 32x32 leaves .* batch of at least 2 images"):
        synchronise_norms(network())(batch()[0][:1, :, :32, :32])


def test_folding():
    norm = SyncBatchNorm2d(3)
    assert not is_foldable(norm)
    assert is_foldable(norm.eval())
    assert not is_foldable(settings()["activated"].eval())
    assert not is_foldable(synchronise_norms(nn.Sequential(settings()["activated"]))[0].eval())


def test_other_norms_are_refused():
    class Other(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.BatchNorm2d(2), Other(2))
    with pytest.raises(ValueError, match=r"^1 is a Other, which computes statistics of this process alone"):
        synchronise_norms(model)
    assert type(model[0]) is nn.BatchNorm2d
    model[1] = nn.SyncBatchNorm(2)
    synchronise_norms(model)
    assert [type(m) for m in model] == [SyncBatchNorm2d, nn.SyncBatchNorm]
    with pytest.raises(ValueError, match="this process is in no process group named 'other'"):
        synchronise_norms(model, "other")


# ---------------------------------------------------------------------------------------------------------------------
# Frozen norms of one level


def level(halo, frozen):
    """Return an inverted residual in training, of which these norms are frozen, and its inputs."""
    module = copy.deepcopy(
        networks.network("hyperseg-l-voc" if halo == "neighbour" else NAME).decoder.levels[3]
    ).double()
    module.train()
    for i in frozen:
        module.norms[i].eval()
    plan = module.level
    random = torch.Generator().manual_seed(0)
    shapes = (2, plan.skip_channels, 8, 12), (2, plan.previous_channels, 4, 6), (2, 2, 3, plan.parameters)
    tensors = [torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True) for shape in shapes]
    return module, tensors


def outputs_and_gradients(module, tensors):
    y = module(*tensors)
    grad = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y.detach(), *torch.autograd.grad(y, [*tensors, *module.parameters()], grad)]


class Called(nn.BatchNorm2d):
    """Of another class with its own forward, so that the decoder neither fuses nor folds it."""

    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize("frozen", [(0, 1, 2), (1,), (0, 2), ()], ids=str)
@pytest.mark.parametrize("halo", ["own", "neighbour"])
def test_frozen_norms_of_a_level(halo, frozen, monkeypatch, caplog):
    """Values, gradients and running statistics equal those of separate norms; a mixture is logged once."""
    module, tensors = level(halo, frozen)
    separate = copy.deepcopy(module)
    for norm in separate.norms:
        norm.__class__ = Called
    expected = outputs_and_gradients(separate, tensors)
    called = []
    for name in ("patch_inverted_residual", "patch_inverted_residual_batch_norm"):
        fused = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, n=name, f=fused, **k: called.append(n) or f(*a, **k))
    with caplog.at_level(logging.DEBUG, "hyperseg.models"):
        found = outputs_and_gradients(module, tensors)
        for actual, value in zip(found, expected, strict=True):
            torch.testing.assert_close(actual, value, rtol=1e-8, atol=1e-9)
        for actual, value in zip(module.buffers(), separate.buffers(), strict=True):
            torch.testing.assert_close(actual, value, rtol=1e-9, atol=1e-9)
        module(*tensors)
    fused = {3: ["patch_inverted_residual"], 0: ["patch_inverted_residual_batch_norm"]}.get(len(frozen), [])
    assert called == fused * 2
    assert len(caplog.records) == (0 if fused else 1)
    assert fused or "runs as plain PyTorch: BatchNorm2d(" in caplog.text


@pytest.mark.parametrize("halo", ["own", "neighbour"])
def test_a_frozen_level_in_float16(halo):
    """As under autocast: a 16-bit map and weights, norms in float32."""
    module, tensors = level(halo, (0, 1, 2))
    rounded = [t.detach().half().requires_grad_() for t in tensors]
    expected = outputs_and_gradients(module, [t.detach().double().requires_grad_() for t in rounded])
    found = outputs_and_gradients(module.float(), rounded)
    assert [t.dtype for t in found[:4]] == [torch.float16] * 4
    assert all(relative_rms(*pair) < 0.05 for pair in zip(found, expected, strict=True))
