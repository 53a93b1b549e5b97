"""Tests of ``mbconv_chain`` alone: cooperative launches in the shim, blocks of the encoder, error messages."""

import pytest
import torch

from hyperseg import ops
from hyperseg.models.encoder import EfficientNetTrunk
from hyperseg.ops import BACKENDS, reference
from hyperseg.ops.backends import native
from hyperseg.runtime.folding import fold_efficientnet
from hyperseg.runtime.fused_blocks import FusedBlock
from hyperseg.runtime.fused_chain import FusedChain
from hyperseg.verify.cases import CASES
from tests.ops import cases
from tests.ops.targets import able, targets
from tests.tolerances import FORWARD, assert_close

EMULATED = [t for t in targets() if (t.backend, t.device) == ("cuda", "cpu") and native.emulated()]
shim = pytest.mark.parametrize("target", [pytest.param(t, id=t.id) for t in EMULATED])
half_types = pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=lambda t: str(t)[6:]
)
LARGE = {  # the tiles of its projections and of its expansion (rows x columns)
    "128x32_64x64": cases.mbconv_chain(
        cases.mbconv(1, 6, 24, 80, image=(48, 96), nhwc=True), cases.mbconv(1, 80, 16, 112, image=(48, 96))
    ),
    "32x64": cases.mbconv_chain(
        cases.mbconv(1, 6, 24, 6, image=(32, 64), nhwc=True), cases.mbconv(1, 6, 40, 80, image=(32, 64))
    ),
}
CHAINS = [
    *(case for case in (*CASES, *cases.MBCONV_CHAIN) if case.operator == "mbconv_chain"),
    *(cases.Case("mbconv_chain", name, build) for name, build in LARGE.items()),
]


@shim
@half_types
@pytest.mark.parametrize("case", CHAINS, ids=lambda case: case.name)
def test_the_size_of_the_grid_does_not_change_results(target, case, dtype, monkeypatch):
    args = case.arguments(dtype)
    expected = reference.mbconv_chain(*cases.double(args))
    found = {}
    for blocks in (5, 1, 0):  # 0: this device has no cooperative launches
        monkeypatch.setenv("HYPERSEG_SHIM_BLOCKS", str(blocks))
        found[blocks] = target.run("mbconv_chain", args)
        for y, e in zip(found[blocks], expected, strict=True):
            assert_close("y", y, e, FORWARD[dtype])
    assert all(map(torch.equal, found[5], found[1]))


@shim
def test_consecutive_chains_do_not_affect_each_other(target):
    calls = [case.arguments(torch.float16) for case in CHAINS if case.name not in LARGE]
    first = [target.run("mbconv_chain", args) for args in calls]
    for args, expected in zip([*calls, *calls], [*first, *first], strict=True):
        assert all(map(torch.equal, target.run("mbconv_chain", args), expected))


@pytest.mark.parametrize("target", able("mbconv_chain"))
def test_a_chain_of_all_blocks_of_an_encoder(target):
    net = EfficientNetTrunk("efficientnet_b0", None, 0.0, 64).eval().requires_grad_(False)
    fold_efficientnet(net)
    x = torch.randn(1, 32, 16, 24, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    expected = net.forward_features(x)
    for stage in net.blocks:
        for name, block in stage.named_children():
            setattr(stage, name, FusedBlock(block))
    net.chain = FusedChain(net.blocks, net.taps)
    with ops.use_backend(target.backend):
        found = net.to(target.device).forward_features(x.to(target.device))
    assert len(found) == len(expected)
    for y, e in zip(found, expected, strict=True):
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y.cpu(), e, rtol=1e-4, atol=1e-5)


def block(c=4, hidden=6, out=4, **options):
    def t(*shape):
        return torch.randn(shape, dtype=options.pop("dtype", torch.float32))

    return ops.EncoderBlock(
        t(hidden, c), t(hidden), t(hidden, 3, 3), t(hidden), t(2, hidden), t(2), t(hidden, 2), t(hidden),
        t(out, hidden), t(out), padding=(1, 1, 1, 1), **options,
    )  # fmt: skip


X = torch.randn(1, 4, 6, 7)
ERRORS = {
    "no block": (lambda: ops.mbconv_chain(X, []), ValueError, "mbconv_chain: give at least one block"),
    "kept beyond the end": (
        lambda: ops.mbconv_chain(X, [block()], kept=[1]),
        ValueError,
        "mbconv_chain: kept must be indices of the 1 blocks, got [1]",
    ),
    "channels of the second block": (
        lambda: ops.mbconv_chain(X, [block(out=5), block()]),
        ValueError,
        "mbconv_chain: block 1: mbconv: expand must be [6, 5], got [6, 4]",
    ),
    "residual of another shape": (
        lambda: ops.mbconv_chain(X, [block(stride=2, residual=True)]),
        ValueError,
        "mbconv_chain: block 0: mbconv: residual adds x",
    ),
    "dtype of a block": (
        lambda: ops.mbconv_chain(X, [block(), ops.EncoderBlock(*(v.half() for v in block()[:10]))]),
        TypeError,
        "mbconv_chain: block 1: mbconv: expand is torch.float16 but x torch.float32",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, kind, message = ERRORS[name]
    with pytest.raises(kind) as error:
        call()
    assert message in str(error.value)


def test_derivatives_raise_an_error():
    y = ops.mbconv_chain(X.clone().requires_grad_(), [block(), block()])[0]
    with pytest.raises(NotImplementedError, match="mbconv_chain: this operator is for inference"):
        y.sum().backward()


@shim
def test_the_cuda_backend_takes_as_many_hidden_channels_as_fit(target):
    for dtype, most in ((torch.float32, 6912), (torch.float16, 13824)):
        for hidden in (most, most + 1):
            build = cases.mbconv(1, hidden, hidden, 1, squeezed=1, size=1, image=(1, 1), expand=False)
            args = cases.Case("mbconv", "hidden", build).arguments(dtype)
            if hidden > most:
                assert f"at most {most} hidden channels" in BACKENDS["cuda"].not_supported_reasons("mbconv", args)[0]
            else:
                assert target.run("mbconv", args).isfinite().all()
