from functools import partial

import pytest
import torch
from torch import nn

from bench.core import roofline
from bench.core.roofline import Ceilings

CPU = torch.device("cpu")


def test_the_larger_side_bounds():
    ceilings = Ceilings(1e9, 1e12, 0, 0, "float32")
    memory = roofline.bound(flops=1e9, bytes_moved=1e8, ceilings=ceilings, measured_seconds=0.4)
    assert (memory.by, memory.seconds) == ("memory", pytest.approx(0.1))
    assert memory.percent == pytest.approx(25)
    assert roofline.bound(flops=1e12, bytes_moved=1e8, ceilings=ceilings, measured_seconds=2).by == "arithmetic"


def test_functions_may_bound():
    ceilings = Ceilings(1e9, 1e12, 0, 0, "float32", silu_per_second=1e9)
    found = roofline.bound(flops=1e9, bytes_moved=1e6, ceilings=ceilings, measured_seconds=0.04, functions=1e7)
    assert (found.by, found.seconds, found.percent) == ("SiLU", pytest.approx(0.01), pytest.approx(25))
    unknown = Ceilings(1e9, 1e12, 0, 0, "float32")
    assert roofline.bound(1e9, 1e6, unknown, 0.04, functions=1e7).by == "arithmetic"


def test_functions_are_counted_inside_operators():
    from hyperseg import ops

    x, weights = torch.randn(1, 4, 6, 6), [torch.randn(n, 4) for n in (8, 5)]
    biases = [torch.randn(len(w)) for w in weights]
    step = partial(ops.pointwise_conv, [x, x], weights, biases, activations=["silu", "relu"])
    assert roofline.count_functions(step) == 8 * 36
    assert roofline.count_functions(lambda: torch.sigmoid(x) + nn.SiLU(inplace=True)(x.clone()) + x.exp()) == 2 * 4 * 36


def test_functions_of_an_encoder_block_by_hand():
    from hyperseg import ops

    hidden, squeezed = 6, 2
    shapes = [(hidden, 4), (hidden,), (hidden, 3, 3), (hidden,), (squeezed, hidden), (squeezed,), (hidden, squeezed)]
    weights = [torch.randn(shape) for shape in [*shapes, (hidden,), (5, hidden), (5,)]]
    step = partial(ops.mbconv, torch.randn(2, 4, 8, 8), *weights, stride=2, padding=(1, 1, 1, 1))
    # Expanded and filtered maps, the squeezed vector, and the gate.
    assert roofline.count_functions(step) == 2 * (hidden * 64 + hidden * 16 + squeezed + hidden)


def test_work_of_a_small_network_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    images = torch.randn(1, 3, 18, 18)
    work = roofline.count(lambda: network(images))
    assert work.flops == 2 * 27 * 8 * 16 * 16
    inner = 8 * 16 * 16
    assert work.unfused_bytes == 4 * (images.numel() + 27 * 8 + 8 + inner + inner + 32 + inner + inner + inner)
    assert work.operators == 3


def test_views_move_nothing():
    x = torch.randn(4, 6)
    assert roofline.count(lambda: x.view(24).reshape(6, 4).t()[1:].expand(3, 3, 6)).unfused_bytes == 0


def test_expanded_dimensions_count_once():
    assert roofline.tensor_bytes([torch.zeros(1, 4).expand(100, 4)]) == 16
    x = torch.zeros(10)
    assert roofline.tensor_bytes([x, x, x[:5], "no tensor"]) == 40 + 20


def test_hyperseg_operators_count_once():
    from hyperseg import ops

    scores = torch.randn(1, 4, 8, 8)
    work = roofline.count(lambda: ops.upsample_argmax(scores, size=(16, 16)))
    assert work.operators == 1
    assert work.unfused_bytes == scores.nbytes + 16 * 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ceilings_are_measured(dtype, monkeypatch):
    monkeypatch.setattr(roofline, "time_copy", lambda device, size, limit: (2 * size, 0.5))
    monkeypatch.setattr(roofline, "time_matmul", lambda device, dtype, n, limit: 1.0 if n >= 512 else 1e-3)
    monkeypatch.setattr(roofline, "silu_rate", lambda device, limit: 3e9)
    found = roofline.measure_ceilings(CPU, dtype, quick=True)
    assert found.copy_bytes_per_second == 4 * 64 * 2**20
    assert found.matmul_size == 512
    assert found.matmul_flops_per_second == 2 * 512**3
    assert found.dtype == str(dtype).removeprefix("torch.")
    assert found.silu_per_second == 3e9


def test_a_copy_a_matmul_and_silu_take_time():
    moved, seconds = roofline.time_copy(CPU, 2**16, 0.01)
    assert moved == 2**17
    assert seconds > 0
    assert roofline.time_matmul(CPU, torch.float32, 16, 0.01) > 0
    assert 0 < roofline.silu_rate(CPU, 0.01) < 1e13
    assert 0 < roofline.sgemm_rate(repeats=1, n=16) < 1e15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_libraries_multiply_the_same_matrices(dtype):
    first, *others = [product() for product in roofline.products(CPU, dtype, 32)]
    assert others or not torch.backends.mkldnn.is_available() or dtype == torch.bfloat16
    for other in others:
        torch.testing.assert_close(other, first, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)
