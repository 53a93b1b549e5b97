"""Parts of a network: they add up to the counts of PyTorch, for the published networks and other encoders."""

import functools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hyperseg.models import HyperSeg, HyperSegConfig, create_model, model_config
from hyperseg.models.describe import Description, describe, on_meta_device
from hyperseg.models.plan import decoder_plan
from tests.models.networks import NAMES

CUSTOM = "4 classes, resnet18"


@functools.cache
def config(name: str) -> HyperSegConfig:
    if name == CUSTOM:
        return create_model("hyperseg-m", num_classes=4, encoder="resnet18").config
    return model_config(name)


@functools.cache
def on_meta(name: str) -> HyperSeg:
    return on_meta_device(config(name))


@functools.cache
def description(name: str) -> Description:
    return describe(config(name))


@pytest.mark.parametrize("name", [*NAMES, CUSTOM])
def test_the_parts_add_up_to_the_network(name):
    network = on_meta(name)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, *network.config.resolution, device="meta"))
    found = description(name)
    assert found.total().flops == counter.get_total_flops()
    assert found.total().parameters == sum(p.numel() for p in network.parameters())
    of_modules = {
        "encoder": network.encoder.trunk,
        "skip convolutions": network.encoder.reduce,
        "context head": network.context,
        "weight generators": network.decoder.generators,
        "dynamic levels": network.decoder.levels,
    }
    parameters = {part: sum(p.numel() for p in module.parameters()) for part, module in of_modules.items()}
    assert {part: cost.parameters for part, cost in found.parts().items()} == parameters


@pytest.mark.parametrize("name", [*NAMES, CUSTOM])
def test_shapes_are_those_of_the_plan(name):
    found, plan = description(name), decoder_plan(config(name))
    height, width = found.padded_size
    assert [stage.stride for stage in found.stages] == [2, 4, 8, 16, 32]
    assert all(stage.size == (height // stage.stride, width // stage.stride) for stage in found.stages)
    assert tuple(stage.skip_channels for stage in found.stages) == config(name).feature_channels
    assert found.signal.size == (height // 32, width // 32)
    assert len(found.levels) == len(plan.levels)
    for i, (level, planned) in enumerate(zip(found.levels, plan.levels, strict=True)):
        assert level.size == (height * 2**i // 32, width * 2**i // 32)
        assert level.patch == (2**i, 2**i)
        assert level.weights_per_patch == planned.parameters
        assert level.weights_per_frame == planned.parameters * height * width // 1024
        assert (level.in_channels, level.hidden, level.out_channels) == (
            *(planned.in_channels, planned.hidden, planned.out_channels),
        )


def test_stages_have_the_costs_of_their_modules():
    """EfficientNet's stages are also modules, whose FLOPs and parameters PyTorch counts by itself."""
    network = on_meta("hyperseg-m-cityscapes")
    trunk = network.encoder.trunk
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        trunk(torch.empty(1, 3, *network.config.resolution, device="meta"))
    by_module = {name.rpartition(".blocks.")[2]: sum(c.values()) for name, c in counter.get_flop_counts().items()}
    found = description("hyperseg-m-cityscapes")
    for stage, blocks in zip(found.stages[1:], ((1,), (2,), (3, 4), (5, 6)), strict=True):
        assert stage.trunk.flops == sum(by_module[str(block)] for block in blocks)
        assert stage.trunk.parameters == sum(p.numel() for block in blocks for p in trunk.blocks[block].parameters())


def test_v1_0_does_not_read_the_rest_of_the_context_head():
    context = on_meta("hyperseg-m-cityscapes").context
    expected = sum(p.numel() for block in (*context.down, *context.up) for p in block.parameters())
    assert description("hyperseg-m-cityscapes").unread_parameters == {"encoder": 0, "context head": expected}
    assert description("hyperseg-l-voc").unread_parameters == {"encoder": 0, "context head": 0}


def test_an_odd_size_is_padded():
    found = describe(config("hyperseg-s-camvid"), (50, 71))
    assert (found.size, found.padded_size, found.signal.size) == ((50, 71), (64, 96), (2, 3))
    assert found.total().parameters == description("hyperseg-s-camvid").total().parameters
    with pytest.raises(ValueError, match="from 1, got 0x5"):
        describe(config("hyperseg-s-camvid"), (0, 5))
