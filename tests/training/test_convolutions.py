"""Convolutions in another form: results and gradients of PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hyperseg.training import convolutions
from hyperseg.training.convolutions import convolution_gradients, convolve, speed_up_pointwise


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch):
    """Take the other forms at any size."""
    monkeypatch.setattr(convolutions, "_LEAST_PIXELS_OF_PART", 1)
    monkeypatch.setattr(convolutions, "_LEAST_PRODUCTS", 1)
    monkeypatch.setattr(convolutions, "_LEAST_PIXELS_OF_HALVES", 1)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensor(*shape, dtype=torch.float64, seed=0):
    t = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def expected(x, kernel, grad, stride, padding, groups):
    leaves = [x.detach().double().requires_grad_(), kernel.detach().double().requires_grad_()]
    y = F.conv2d(*leaves, None, stride, padding, 1, groups)
    return y.detach(), *torch.autograd.grad(y, leaves, grad.double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [
        ((5, 5), (1, 1), [2, 2], (7, 9)),
        ((5, 5), (2, 2), [0, 0], (11, 14)),
        ((5, 5), (2, 2), [2, 2], (8, 9)),
        ((5, 5), (1, 1), [0, 1], (6, 8)),
        ((3, 5), (2, 1), [1, 2], (9, 5)),
        ((5, 5), (1, 2), [2, 2], (1, 1)),
        ((5, 5), (3, 3), [2, 2], (10, 13)),
        ((3, 3), (1, 1), [1, 1], (6, 5)),
        ((7, 7), (1, 1), [3, 3], (6, 5)),
    ],
    ids=str,
)
def test_depthwise_gradients(kernel, stride, padding, size, dtype):
    channels = 20
    x, k = tensor(2, channels, *size, dtype=dtype), tensor(channels, 1, *kernel, dtype=dtype, seed=1)
    y = convolve(x, k, stride, padding, channels)
    grad = tensor(*y.shape, dtype=dtype, seed=2)
    right = expected(x, k, grad, stride, padding, channels)
    found = (y, *convolution_gradients(grad, x, k, stride, padding, channels))
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    for one, two in zip(found, right, strict=True):
        torch.testing.assert_close(one.double(), two, **tolerance)


def test_a_gradient_in_other_memory():
    """Expanded, as that of a mean is, and contiguous."""
    x, k = tensor(2, 4, 8, 8), tensor(4, 1, 5, 5, seed=1)
    for grad in (
        torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64).expand(2, 4, 8, 8),
        tensor(2, 4, 8, 8).contiguous(),
    ):
        right = expected(x, k, grad, (1, 1), [2, 2], 4)[1:]
        for one, two in zip(convolution_gradients(grad, x, k, (1, 1), [2, 2], 4), right, strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("size", [(8, 8), (5, 4), (17, 3), (3, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "contiguous"])
def test_pointwise(size, last, one_thread):
    x, k = tensor(2, 6, *size), tensor(5, 6, 1, 1, seed=1)
    x = x if last else x.contiguous()
    y = convolve(x, k, (1, 1), [0, 0], 1)
    grad = tensor(*y.shape, seed=2)
    right = expected(x, k, grad, (1, 1), [0, 0], 1)
    for one, two in zip((y, *convolution_gradients(grad, x, k, (1, 1), [0, 0], 1)), right, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("groups", [1, 2])
def test_modules(groups, one_thread):
    """Bias, groups and other sizes of kernel: a module returns what it did, as a differentiable function."""
    network = nn.Sequential(
        nn.Conv2d(6, 8, 1, groups=groups), nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 4, 1, stride=2)
    )
    network.double().to(memory_format=torch.channels_last)
    x = tensor(2, 6, 8, 8).requires_grad_()
    right = network(x)
    gradients = torch.autograd.grad(right.square().sum(), [x, *network.parameters()])
    speed_up_pointwise(network)
    assert [("forward" in vars(conv)) for conv in network] == [True, False, False]
    found = network(x)
    torch.testing.assert_close(found, right)
    for one, two in zip(torch.autograd.grad(found.square().sum(), [x, *network.parameters()]), gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_one_thread_uses_onednn(one_thread):
    """The reason for all of this: PyTorch alone would take its own 1x1 convolution here."""
    conv = nn.Conv2d(16, 32, 1).to(memory_format=torch.channels_last)
    speed_up_pointwise(conv)
    x = tensor(2, 16, 8, 8, dtype=torch.float32)
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of PyTorch has no oneDNN")
    with torch.profiler.profile() as profile:
        conv(x).sum().backward()
    names = {event.name for event in profile.events()}
    assert "aten::mkldnn_convolution" in names
    assert not any("slow_conv2d" in name for name in names)
