"""Random shapes: every backend in float32 against the reference in float64, and NaN inputs."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from hyperseg.ops import _layout, reference
from tests.ops.cases import (
    HALOS,
    LAYOUTS,
    Case,
    batch_norm,
    conv,
    double,
    generators,
    level,
    logits,
    loss,
    mbconv,
    outputs,
    residual,
    stem,
)
from tests.ops.targets import Target, on_every_target
from tests.tolerances import FORWARD, assert_close

F32 = torch.float32
few = settings(max_examples=25, deadline=None, derandomize=True)

small = st.integers(1, 4)
channels = st.integers(1, 9)
grids = st.tuples(st.integers(1, 4), st.integers(1, 4))
patches = st.tuples(st.integers(1, 6), st.integers(1, 6))
sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))


def check(target: Target, operator: str, build) -> None:
    case = Case(operator, "random", build)
    args = case.arguments(F32, target.device)
    actual = outputs(target.run(operator, args))
    expected = outputs(getattr(reference, operator)(*double(args)))
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"output {i}", a, e, FORWARD[F32])


def large_enough(grid, patch) -> bool:
    """Whether one pixel of the map can be reflected at its border."""
    return grid[0] * patch[0] > 1 and grid[1] * patch[1] > 1


@st.composite
def signals(draw):
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        groups = draw(small)
        rows = groups * draw(st.integers(1, 9))
        parts.append((draw(st.integers(0, 3)), groups * draw(small), groups, rows, draw(st.integers(1, rows))))
    signal = max(offset + width for offset, width, *_ in parts) + draw(st.integers(0, 2))
    return generators(draw(small), signal, draw(grids), tuple(parts))


@on_every_target("generate_weights")
@few
@given(build=signals())
def test_generate_weights(target, build):
    check(target, "generate_weights", build)


@st.composite
def convolutions(draw):
    groups = draw(st.integers(1, 3))
    grid, patch = draw(grids), draw(patches)
    kernel = draw(st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    halo = [d * (k // 2) for d, k in zip(dilation, kernel, strict=True)]
    size = [g * p for g, p in zip(grid, patch, strict=True)]
    modes = ["zeros", "replicate"]
    modes += ["reflect"] * all(h < s for h, s in zip(halo, size, strict=True))
    modes += ["circular"] * all(h <= s for h, s in zip(halo, size, strict=True))
    return conv(
        draw(small),
        groups * draw(small),
        groups * draw(small),
        grid,
        patch,
        kernel,
        groups,
        dilation,
        draw(st.sampled_from(modes)),
        draw(st.booleans()),
    )


@on_every_target("patch_conv2d")
@few
@given(build=convolutions())
def test_patch_conv2d(target, build):
    check(target, "patch_conv2d", build)


blocks = {
    "n": small,
    "c": channels,
    "hidden": channels,
    "out": channels,
    "grid_and_patch": st.tuples(grids, patches).filter(lambda s: large_enough(*s)),
    "halo": st.sampled_from(HALOS),
}


@on_every_target("patch_inverted_residual")
@few
@given(bias=st.booleans(), **blocks)
def test_patch_inverted_residual(target, n, c, hidden, out, grid_and_patch, halo, bias):
    check(target, "patch_inverted_residual", residual(n, c, hidden, out, *grid_and_patch, halo, bias))


@on_every_target("patch_inverted_residual_batch_norm")
@few
@given(**blocks)
def test_patch_inverted_residual_batch_norm(target, n, c, hidden, out, grid_and_patch, halo):
    # A large eps, because the variance of a few pixels may be close to 0 and would amplify rounding errors.
    build = batch_norm(n, c, hidden, out, *grid_and_patch, halo, eps=0.1)
    check(target, "patch_inverted_residual_batch_norm", build)


@st.composite
def levels(draw):
    grid, patch = draw(grids), draw(patches)
    hidden = draw(st.integers(0, 6)) if large_enough(grid, patch) else 0
    skip, previous, out = draw(channels), draw(st.integers(0, 5)), draw(channels)
    signal = None
    if draw(st.booleans()):
        groups, width, offset = draw(small), draw(small), draw(st.integers(0, 3))
        rows = _layout.level_parameters(2 + skip + previous, hidden, out)
        signal = (offset + groups * width + 1, offset, groups * width, groups, -(-rows // groups) * groups)
    return level(
        draw(small),
        skip,
        previous,
        out,
        hidden,
        grid,
        patch,
        draw(st.none() | sizes),
        draw(st.sampled_from(HALOS)),
        signal,
        0 if signal else draw(st.integers(0, 3)),
    )


@on_every_target("decoder_level")
@few
@given(build=levels())
def test_decoder_level(target, build):
    check(target, "decoder_level", build)


@st.composite
def encoder_blocks(draw):
    size, stride = draw(st.sampled_from([1, 3, 5, 7])), draw(st.integers(1, 3))
    add = draw(st.booleans())
    expand = draw(st.booleans())
    image = draw(st.tuples(st.integers(1, 20), st.integers(1, 200)))
    padding = (size // 2,) * 4
    if not add:
        padding = draw(st.tuples(*[st.integers(0, size - 1)] * 4))
        lacking = max(size - side - sum(p) for side, p in zip(image, (padding[2:], padding[:2]), strict=True))
        padding = padding if lacking <= 0 else (size - 1,) * 4
    width = draw(channels)
    hidden, out = draw(st.integers(1, 60)), draw(channels)
    return mbconv(
        draw(small), width, hidden, width if add else out, draw(small), size, 1 if add else stride, padding, image,
        expand, add,
    )  # fmt: skip


@on_every_target("mbconv")
@few
@given(build=encoder_blocks())
def test_mbconv(target, build):
    check(target, "mbconv", build)


@st.composite
def stems(draw):
    size = draw(st.integers(1, 7))
    frame = draw(st.tuples(st.integers(1, 20), st.integers(1, 150)))
    image = tuple(side + draw(st.integers(0, 9)) for side in frame)
    padding = draw(st.tuples(*[st.integers(0, size - 1)] * 4))
    lacking = max(size - side - sum(p) for side, p in zip(image, (padding[2:], padding[:2]), strict=True))
    padding = padding if lacking <= 0 else (size - 1,) * 4
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    return stem(draw(small), draw(st.integers(1, 40)), size, draw(st.integers(1, 3)), padding, frame, image, layout)


@on_every_target("stem")
@few
@given(build=stems())
def test_stem(target, build):
    check(target, "stem", build)


@on_every_target("upsample_argmax")
@few
@given(n=small, classes=st.integers(1, 30), size=sizes, to=sizes)
def test_upsample_argmax(target, n, classes, size, to):
    args = Case("upsample_argmax", "random", logits(n, classes, size, to)).arguments(F32, target.device)
    labels = target.run("upsample_argmax", args).cpu().long()
    scores = _layout.resize_logits(*double(args))
    assert labels.shape == (n, *to)
    lost = scores.amax(1) - scores.gather(1, labels[:, None])[:, 0]
    assert lost.max() <= 1e-5 * scores.abs().max()


@on_every_target("upsample_cross_entropy")
@few
@given(
    n=small,
    classes=st.integers(1, 12),
    size=sizes,
    to=sizes,
    ignored=st.sampled_from([0.0, 0.3, 1.1]),
    bootstrap=st.integers(0, 160),
    threshold=st.sampled_from([0.0, 0.3, 2.0]),
)
def test_upsample_cross_entropy(target, n, classes, size, to, ignored, bootstrap, threshold):
    build = loss(n, classes, size, to, ignored, bootstrap, threshold)
    args = Case("upsample_cross_entropy", "random", build).arguments(F32, target.device)
    actual = target.run("upsample_cross_entropy", args)[0]
    expected = reference.upsample_cross_entropy(*double(args))[0]
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [F32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("build", [residual(halo=HALOS[0]), residual(patch=(4, 4), halo=HALOS[1])], ids=HALOS)
@on_every_target("patch_inverted_residual")
def test_inverted_residuals_keep_nan(target: Target, build, dtype: torch.dtype):
    """Activations that clamp must not turn NaN into a number."""
    _keeps_nan(target, Case("patch_inverted_residual", "nan", build), dtype)


@pytest.mark.parametrize("dtype", [F32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("build", [level(), level(patch=(1, 1), signal=(20, 4, 12, 1, 45))], ids=["weights", "signal"])
@on_every_target("decoder_level")
def test_levels_keep_nan(target: Target, build, dtype: torch.dtype):
    _keeps_nan(target, Case("decoder_level", "nan", build), dtype)


def _keeps_nan(target: Target, case: Case, dtype: torch.dtype) -> None:
    args = case.arguments(dtype, target.device)
    args[0][0, 0, -1, 0] = float("nan")
    actual = target.run(case.operator, args)
    expected = getattr(reference, case.operator)(*double(args))
    assert expected.isnan().any()
    assert torch.equal(actual.isnan().cpu(), expected.isnan())
