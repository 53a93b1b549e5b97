"""Folded networks match their modules."""

import copy

import pytest
import torch
from torch import nn

from hyperseg.models import create_model, synthesize_weights
from hyperseg.models.encoder import TimmTrunk
from hyperseg.runtime import FoldedNetwork
from hyperseg.runtime.folding import FUSED, fold_norm
from hyperseg.runtime.fused_blocks import FusedBlock
from tests.models.networks import NAMES, images, network, relative_rms

names = pytest.mark.parametrize("name", NAMES)


def norms(module):
    return [key for key, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("bias", [False, True])
def test_a_norm_folds_exactly(bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=bias).double()
    norm = nn.BatchNorm2d(8, eps=1e-3).double().eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.uniform_(0.1, 2)
        x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
        expected = norm(conv(x))
        fold_norm(conv, norm)
        torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)


@names
@pytest.mark.parametrize("fuse", [(), ("stem", "mbconv"), FUSED], ids=["nothing", "blocks", "everything"])
def test_folded_equals_the_module_in_float64(name, fuse):
    x = images(64, 96).double()
    with torch.inference_mode():
        expected = copy.deepcopy(network(name)).double().forward_strided(x)
        folded = FoldedNetwork(network(name), fuse).double()
        assert any(isinstance(m, FusedBlock) for m in folded.modules()) == bool(fuse)
        assert (folded.stem is not None) == bool(fuse)
        # Folding runs in float64 and rounds to float32 once.
        assert relative_rms(folded(x), expected) < 1e-5


@names
def test_no_norm_is_left(name):
    assert norms(network(name))
    folded = FoldedNetwork(network(name))
    assert norms(folded) == []
    assert not any(p.requires_grad for p in folded.parameters())


@pytest.mark.parametrize("encoder", ["resnet18", "convnext_atto", "densenet121"])
def test_other_encoders_keep_their_norms(encoder):
    model = synthesize_weights(create_model("hyperseg-m", num_classes=5, encoder=encoder)).eval()
    folded = FoldedNetwork(model)
    assert isinstance(folded.encoder.trunk, TimmTrunk)
    kept = norms(folded)
    assert kept == [f"encoder.trunk.net.{key}" for key in norms(model.encoder.trunk.net)]
    assert bool(kept) == (encoder != "convnext_atto")
    assert not any(folded.get_submodule(key).training for key in kept)
    # In float64: with random weights some encoders are so badly conditioned that float32 does not determine the logits.
    x = images(33, 70).double()
    with torch.inference_mode():
        assert relative_rms(folded.double()(x), copy.deepcopy(model).double().forward_strided(x)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=lambda dtype: str(dtype)[6:])
def test_scale_and_shift_stay_float32(dtype):
    folded = FoldedNetwork(network("hyperseg-s-camvid"))
    scale, shift = folded.scale, folded.shift
    folded = folded.to(dtype)
    assert folded.decoder.generators[0].dtype == dtype
    assert torch.equal(folded.scale, scale)
    assert torch.equal(folded.shift, shift)
    frames = torch.randint(256, (1, 4, 6, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = folded.normalise(frames)
    assert found.dtype == dtype
    # The arithmetic is float32: the product and the sum are rounded (or fused, as the CPU has it), then the result.
    product, shift = frames.double() * scale.double(), shift.double()
    exact = product + shift
    bound = torch.finfo(torch.float32).eps * (product + shift.abs()) + torch.finfo(dtype).eps * exact.abs()
    assert ((found.permute(0, 2, 3, 1).double() - exact).abs() <= bound).all()


def test_a_network_on_the_meta_device_is_folded_there():
    with torch.device("meta"):
        model = create_model("hyperseg-l-camvid")
    labels = FoldedNetwork(model, fuse=True).from_frames(torch.empty(2, 40, 65, 3, dtype=torch.uint8, device="meta"))
    assert (labels.device.type, labels.dtype, labels.shape) == ("meta", torch.uint8, (2, 40, 65))


def test_a_network_in_training_mode_is_folded_as_in_eval_mode():
    x = images(64, 64)
    model = copy.deepcopy(network("hyperseg-s-camvid")).train()
    with torch.inference_mode():
        expected = FoldedNetwork(network("hyperseg-s-camvid"))(x)
        assert torch.equal(FoldedNetwork(model)(x), expected)
        assert torch.equal(FoldedNetwork(model)(x), expected), "no dropout, no changing statistics"
    assert model.training


@pytest.mark.parametrize("name", ["hyperseg-s-camvid", "hyperseg-l-voc"])
def test_a_float16_network_is_folded_in_float32(name):
    model = copy.deepcopy(network(name)).half()
    folded = FoldedNetwork(model)
    assert {p.dtype for p in folded.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    x = images(64, 64)
    with torch.inference_mode():
        assert relative_rms(folded(x), model.float().forward_strided(x)) < 1e-4


def test_the_order_of_memory_for_the_cpu_changes_no_value():
    x = images(64, 96)
    folded = FoldedNetwork(network("hyperseg-m-cityscapes"), FUSED)
    before, expected = copy.deepcopy(folded.state_dict()), folded(x)
    folded.order_for_cpu()
    after = folded.state_dict()
    moved = [key for key in before if before[key].stride() != after[key].stride()]
    assert {"generators.0", "encoder.trunk.conv_head.weight"} <= {*moved}
    assert all(torch.equal(before[key], after[key]) for key in before)
    torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)


def test_kept_arguments_follow_the_weights():
    """They are looked up anew after the network is moved or cast, which gives the parameters other memory."""
    folded = FoldedNetwork(network("hyperseg-s-camvid"), fuse=True)
    block = next(module for module in folded.modules() if isinstance(module, FusedBlock))
    folded.keep_arguments()
    assert block._kept is not None
    assert block._kept.project.data_ptr() == block.project.weight.data_ptr()
    folded.to(torch.float64)
    assert block._kept is None
    assert block.arguments().project.dtype == torch.float64
