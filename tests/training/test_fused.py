"""The C++ operators of fused blocks against their definitions in plain PyTorch, and when they are used."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from hyperseg.ops import BACKENDS, use_backend
from hyperseg.training import fused

MISSING = "; ".join(BACKENDS["cpp"].unavailable_reasons())
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "the extension is built")

NATIVE = torch.ops.hyperseg_native
F64 = torch.float64
TOLERANCES = {F64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}
ACTIVATIONS = {"none": lambda z: z, "relu": F.relu, "relu6": F.relu6, "silu": F.silu}
SHAPES = [(2, 19, 13, 18), (1, 40, 5, 70), (3, 96, 20, 33), (2, 7, 1, 1), (1, 33, 35, 6)]
CONVOLUTIONS = [
    (size, stride, padding)
    for size, stride in itertools.product((3, 5), (1, 2))
    for padding in ((size // 2,) * 4, (0, 1, 0, 1), (size - 1, 0, 1, 2), (1, 2, 1, 2), (0, 0, 0, 0))
]
every = pytest.mark.parametrize("act", ACTIVATIONS)
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda d: str(d)[6:])
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True)
def poisoned():
    """New memory is NaN, so that what an operator does not write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def sliced(t: Tensor) -> Tensor:
    """Return a view into a larger map of NaN."""
    larger = t.new_full([s + 2 for s in t.shape], torch.nan)
    view = larger[tuple(slice(1, -1) for _ in t.shape)]
    view.copy_(t)
    return view


class Inputs:
    """Arguments of a call, and the same in float64 with what autograd finds out about them."""

    def __init__(self, shape, act, dtype=F64, change=channels_last):
        generator = torch.Generator().manual_seed(0)

        def normal(*size, dtype=dtype):
            return torch.randn(size, generator=generator, dtype=F64).to(dtype)

        n, c, *_ = shape
        self.act, self.normal, wide = act, normal, torch.promote_types(dtype, torch.float32)
        self.x, self.grad = change(normal(*shape) * 2 + 3), change(normal(*shape))
        self.mean, self.scale, self.shift = (normal(c, dtype=wide) for _ in range(3))
        self.gate, self.spread = normal(n, c, dtype=wide).sigmoid(), normal(n, c, dtype=wide)
        exact = self.x.double()
        self.z = (exact * self.per_channel(self.scale) + self.per_channel(self.shift)).requires_grad_()
        self.value = ACTIVATIONS[act](self.z)
        (self.slope,) = torch.autograd.grad(self.value.sum(), self.z, retain_graph=True)
        self.centred = exact - self.per_channel(self.mean)

    @staticmethod
    def per_channel(t):
        return t.double()[:, :, None, None] if t.dim() == 2 else t.double()[:, None, None]


def assert_near(actual, expected, dtype, factor=1.0):
    """In the mean over the elements."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected).norm() / expected.norm().clamp(min=1e-30)
    assert error < factor * TOLERANCES[dtype]


@dtypes
@shapes
def test_moments(dtype, shape):
    x = Inputs(shape, "none", dtype).x
    mean, variance = NATIVE.channel_moments(x)
    assert_near(mean, x.double().mean((0, 2, 3)), dtype)
    assert_near(variance + 1, x.double().var((0, 2, 3), unbiased=False) + 1, dtype)


def test_moments_far_from_zero():
    """Squares do not cancel."""
    x = channels_last(torch.randn(2, 9, 30, 40, dtype=F64, generator=torch.Generator().manual_seed(0)) + 1000).float()
    assert_near(NATIVE.channel_moments(x)[1], x.double().var((0, 2, 3), unbiased=False), torch.float32)


@every
@dtypes
@shapes
@pytest.mark.parametrize("change", [channels_last, torch.clone, sliced], ids=lambda change: change.__name__)
def test_values(shape, dtype, act, change):
    i = Inputs(shape, act, dtype, change)
    y = NATIVE.norm_act(i.x, i.scale, i.shift, None, act)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=[torch.contiguous_format, torch.channels_last][change is channels_last])
    assert_near(y, i.value, dtype)
    assert_near(NATIVE.norm_act(i.x, i.scale, i.shift, i.gate, act), i.value * i.per_channel(i.gate), dtype)
    assert_near(NATIVE.norm_act_pool(i.x, i.scale, i.shift, act), i.value.mean((2, 3)), dtype)


@every
@dtypes
@shapes
@pytest.mark.parametrize("gated", [False, True], ids=["", "gated"])
def test_gradients(shape, dtype, act, gated):
    i = Inputs(shape, act, dtype)
    gate, spread = (i.gate, i.spread) if gated else (None, None)
    y, sums = NATIVE.norm_act_sums(i.grad, i.x, i.mean, i.scale, i.shift, gate, act, True)
    grad = i.grad.double()
    expected = [grad * i.slope, grad * i.slope * i.centred]
    if gated:
        expected += [grad * i.value, i.slope, i.slope * i.centred]
    assert_near(sums, torch.stack([e.sum((2, 3)) for e in expected], 1), dtype, 20)
    assert_near(y, i.value * i.per_channel(gate) if gated else i.value, dtype)
    a, b, c = (i.normal(shape[1], dtype=i.scale.dtype) for _ in range(3))
    common = (i.x, i.mean, i.scale, i.shift, gate, spread, a, b, c, act)
    d_x = torch.empty_like(i.x, dtype=i.scale.dtype)
    NATIVE.norm_act_gradient(d_x, i.grad, *common)
    inner = grad * i.per_channel(gate) + i.per_channel(spread) if gated else grad
    exact = inner * i.slope * i.per_channel(a) + i.centred * i.per_channel(b) + i.per_channel(c)
    assert_near(d_x, exact, dtype)
    if dtype == i.scale.dtype:
        NATIVE.norm_act_gradient(i.grad, i.grad, *common)
        assert torch.equal(i.grad, d_x)


@every
@dtypes
@pytest.mark.parametrize("shape", [SHAPES[0], (2, 64, 20, 33), (1, 33, 35, 6)], ids=str)
def test_depthwise(shape, dtype, act):
    """The second shape has more rows than a task, more columns than a tile, and whole vectors of channels."""
    i = Inputs(shape, act, dtype)
    for size, stride, padding in CONVOLUTIONS:
        weight = i.normal(shape[1], 1, size, size)
        exact = weight.double().requires_grad_()
        expected = F.conv2d(F.pad(i.value, padding), exact, None, stride, 0, 1, shape[1])
        grad = channels_last(i.normal(*expected.shape))
        d_z, d_exact = torch.autograd.grad(expected, (i.z, exact), grad.double(), retain_graph=True)
        y = NATIVE.norm_act_depthwise(i.x, i.scale, i.shift, weight, stride, padding, act)
        assert_near(y, expected, dtype)
        d_norm, d_weight, sums = NATIVE.norm_act_depthwise_gradients(
            grad, i.x, i.mean, i.scale, i.shift, weight, stride, padding, act
        )
        assert_near(d_norm, d_z, dtype)
        assert_near(d_weight, d_exact, dtype, 10)
        assert_near(sums, torch.stack([d_z.sum((0, 2, 3)), (d_z * i.centred).sum((0, 2, 3))]), dtype, 20)


def test_the_number_of_threads_changes_nothing():
    i = Inputs((2, 96, 40, 33), "silu", torch.float32)
    weight, found = i.normal(96, 1, 5, 5), []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        common = (i.grad, i.x, i.mean, i.scale, i.shift)
        found.append(
            [
                *NATIVE.channel_moments(i.x),
                NATIVE.norm_act_pool(i.x, i.scale, i.shift, "silu"),
                *NATIVE.norm_act_sums(*common, i.gate, "silu", True),
                *NATIVE.norm_act_depthwise_gradients(*common, weight, 1, (2, 2, 2, 2), "silu"),
            ]
        )
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act": "gelu"}, "activation must be"),
        ({"scale": torch.ones(3)}, "scale must be"),
        ({"weight": torch.ones(4, 1, 7, 7)}, "takes 3x3 or 5x5 taps"),
        ({"padding": (3, 0, 0, 0)}, "padding must be 0 to 2"),
        ({"stride": 3}, "takes 3x3 or 5x5 taps"),
        ({"weight": torch.ones(4, 1, 3, 2)}, "weight must be"),
        ({"x": torch.ones(1, 4, 1, 5), "padding": (0, 0, 0, 0)}, "smaller than the convolution"),
    ],
)
def test_wrong_arguments(change, message):
    given = {"x": torch.ones(1, 4, 5, 5), "scale": torch.ones(4), "shift": torch.ones(4)}
    given |= {"weight": torch.ones(4, 1, 3, 3), "stride": 1, "padding": (1, 1, 1, 1), "act": "silu"}
    with pytest.raises(RuntimeError, match=message):
        NATIVE.norm_act_depthwise(*(given | change).values())


def test_wrong_gradients():
    x, one, weight = torch.ones(1, 4, 5, 5), torch.ones(4), torch.ones(4, 1, 3, 3)
    with pytest.raises(RuntimeError, match="grad must"):
        NATIVE.norm_act_sums(x[:, :, 1:], x, one, one, one, None, "silu", True)
    with pytest.raises(RuntimeError, match="gate and spread"):
        NATIVE.norm_act_gradient(channels_last(x), x, x, one, one, one, one[None], None, one, one, one, "silu")
    with pytest.raises(RuntimeError, match="channels-last memory"):
        NATIVE.norm_act_gradient(x, x, x, one, one, one, None, None, one, one, one, "silu")
    with pytest.raises(RuntimeError, match="grad must"):
        NATIVE.norm_act_depthwise_gradients(x, x, one, one, one, weight, 2, (1, 1, 1, 1), "silu")


def test_what_is_fused():
    norm, x = BatchNormAct2d(4, act_layer=nn.SiLU), torch.ones(1, 4, 5, 5)
    assert fused.fuses(x, norm)
    assert fused.fuses(x, norm, nn.Conv2d(4, 6, 1))
    assert fused.fuses(x, norm, nn.Conv2d(4, 4, 5, 2, 2, groups=4))
    assert not fused.fuses(x, norm, nn.Conv2d(4, 4, 7, 1, 3, groups=4))
    assert not fused.fuses(x, norm, nn.Conv2d(4, 4, 3, 1, 1))
    assert not fused.fuses(x.bfloat16(), norm)
    for other in (BatchNormAct2d(4, act_layer=nn.Hardswish), BatchNormAct2d(4, affine=False), nn.BatchNorm2d(4)):
        assert not fused.fuses(x, other)
    with use_backend("reference"):
        assert not fused.fuses(x, norm)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.fuses(x, norm)


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("act", [nn.Identity, nn.ReLU, nn.ReLU6, nn.SiLU], ids=lambda act: act.__name__)
def test_norm_by_finite_differences(act, frozen):
    norm = BatchNormAct2d(3, act_layer=act).double().train(not frozen)
    norm.running_mean.normal_()
    x = torch.randn(2, 3, 3, 4, dtype=F64, requires_grad=True)
    parameters = [x, norm.weight, norm.bias]
    assert torch.autograd.gradcheck(lambda *_: fused.norm_act(x, norm), parameters)
    torch.testing.assert_close(fused.norm_act(x, norm), norm(x))
