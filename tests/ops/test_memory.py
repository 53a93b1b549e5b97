"""Memory: inputs with any strides, and outputs in new memory with the strides of the fake kernel."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hyperseg.ops import _layout
from tests.ops.cases import BY_ID, LABELLING, TYPICAL, Case, convert, differentiable
from tests.ops.targets import Target, supported
from tests.ops.test_parity import backward_arguments, flat, truth
from tests.tolerances import FORWARD, GRADIENT, assert_close

F32 = torch.float32
DIFFERENTIABLE = [c for c in TYPICAL if differentiable(c.operator)]


def poison(t: Tensor) -> float:
    """Return a value that changes the output if it is read: NaN, 255 (a pixel) or an invalid label."""
    return torch.nan if t.is_floating_point() else 255 if t.dtype == torch.uint8 else -(10**6)


def sliced(t: Tensor) -> Tensor:
    """Return a slice from the middle of a larger, poisoned tensor."""
    larger = t.new_full([s + 2 for s in t.shape], poison(t))
    view = larger[tuple(slice(1, -1) for _ in t.shape)]
    view.copy_(t)
    return view


def stepped(t: Tensor) -> Tensor:
    """Return a view of every second element of a larger, poisoned tensor."""
    larger = t.new_full([2 * s for s in t.shape], poison(t))
    view = larger[tuple(slice(None, None, 2) for _ in t.shape)]
    view.copy_(t)
    return view


def transposed(t: Tensor) -> Tensor:
    """Store the dimensions in reverse order."""
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


def expanded(t: Tensor) -> Tensor:
    """Repeat the first image or row with stride 0."""
    return t[:1].expand_as(t) if t.dim() else t


def offset(t: Tensor) -> Tensor:
    """Return a contiguous tensor that is aligned to one element only."""
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def apply(change: Callable[[Tensor], Tensor], value):
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [change(v) for v in value]
    return change(value) if isinstance(value, Tensor) else value


def tensors(args: tuple) -> list[Tensor]:
    return [t for a in args for t in (a if isinstance(a, list) else [a]) if isinstance(t, Tensor)]


def contiguous(args: tuple) -> tuple:
    return tuple(apply(lambda t: t.clone(memory_format=torch.contiguous_format), a) for a in args)


changes = pytest.mark.parametrize(
    "change", [sliced, stepped, transposed, expanded, offset, channels_last], ids=lambda change: change.__name__
)


def checked(target: Target, operator: str, args: tuple) -> list[Tensor]:
    """Return the outputs: they are new, as the fake's in shape, dtype and strides, and the inputs are unchanged."""
    before = [t.clone() for t in tensors(args)]
    results = flat(target.run(operator, args))
    for t, kept in zip(tensors(args), before, strict=True):
        assert torch.equal(t, kept), "an input was changed"
    storages = [t.untyped_storage().data_ptr() for t in [*tensors(args), *results] if t.numel()]
    fresh = storages[len(tensors(args)) :]
    assert len(set(fresh)) == len(fresh), "two outputs share memory"
    assert not set(fresh) & set(storages[: len(tensors(args))]), "an output is an input"
    fake = flat(getattr(torch.ops.hyperseg, operator).default(*[convert(a, None, "meta") for a in args]))
    assert [(t.shape, t.dtype, t.stride()) for t in results] == [(t.shape, t.dtype, t.stride()) for t in fake]
    assert {t.device.type for t in results} == {target.device}
    assert {t.device.type for t in fake} == {"meta"}
    return results


@changes
@pytest.mark.parametrize(("target", "case"), supported(TYPICAL))
def test_any_strides(target: Target, case: Case, change):
    args = tuple(apply(change, a) for a in case.arguments(F32, target.device))
    actual = checked(target, case.operator, args)
    if change is channels_last and case.operator.startswith(("patch", "decoder")) and case.operator not in LABELLING:
        assert actual[0].is_contiguous(memory_format=torch.channels_last)
    labels = case.operator in LABELLING  # the reference may resolve near ties differently
    expected = flat(target.run(case.operator, contiguous(args))) if labels else truth(case.operator, args)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"output {i}", a, e, FORWARD[F32])


@changes
@pytest.mark.parametrize(("target", "case"), supported(DIFFERENTIABLE, "_backward"))
def test_any_strides_backward(target: Target, case: Case, change):
    if target.id == "triton-cpu" and change not in (stepped, channels_last):
        pytest.skip("two changes of strides are enough for the interpreter, which takes seconds per call")
    operator = f"{case.operator}_backward"
    args = tuple(apply(change, a) for a in backward_arguments(case, F32, target.device))
    actual = checked(target, operator, args)
    # Expanded statistics do not belong to the map. The reference recomputes them, so its output is different.
    expected = flat(target.run(operator, contiguous(args))) if change is expanded else truth(operator, args)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"gradient {i}", a, e, GRADIENT[F32])


@pytest.mark.parametrize("change", [offset, channels_last, sliced, transposed], ids=lambda change: change.__name__)
@pytest.mark.parametrize(
    ("target", "case"),
    supported(
        [BY_ID[f"patch_inverted_residual-own-{name}"] for name in ("odd-widths", "large-patch")]
        + [BY_ID["patch_inverted_residual_batch_norm-neighbour-large-patch"], BY_ID["decoder_level-pointwise-weights"]],
        "_backward",
    ),
)
def test_strides_of_16_bit_floats_backward(target: Target, case: Case, change):
    """Kernels load 8-element (16-byte) vectors where strides and alignment permit."""
    if target.id == "triton-cpu":
        pytest.skip("the interpreter takes seconds per call")
    operator = f"{case.operator}_backward"
    args = tuple(apply(change, a) for a in backward_arguments(case, torch.float16, target.device))
    actual, expected = flat(target.run(operator, args)), flat(target.run(operator, contiguous(args)))
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"gradient {i}", a, e, GRADIENT[torch.float16])


WEIGHTS_AT = {"patch_conv2d": 1, "patch_inverted_residual": 1, "patch_inverted_residual_batch_norm": 1}


@pytest.mark.parametrize(("target", "case"), supported([c for c in TYPICAL if c.operator in WEIGHTS_AT]))
def test_weights_may_be_a_slice_of_a_wider_tensor(target: Target, case: Case):
    """Pass a slice of ``[N, fh, fw, P']``, as with one level's share of a merged generator's output."""
    args = list(case.arguments(F32, target.device))
    at = WEIGHTS_AT[case.operator]
    weights = args[at].clone()
    wide = torch.full((*weights.shape[:3], weights.shape[3] + 16), torch.nan, device=target.device)
    wide[..., 7:-9] = weights
    args[at] = wide[..., 7:-9]
    actual, expected = flat(target.run(case.operator, tuple(args))), truth(case.operator, tuple(args))
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"output {i}", a, e, FORWARD[F32])


def test_memory_formats_of_maps():
    """A map of one channel has both formats and counts as contiguous, as in PyTorch's convolutions."""
    x = torch.zeros(2, 3, 4, 5)
    assert _layout.memory_format(x) == torch.contiguous_format
    assert _layout.memory_format(channels_last(x)) == torch.channels_last
    assert _layout.memory_format(channels_last(x[:, :1])) == torch.contiguous_format
    assert _layout.memory_format(transposed(x)) == torch.contiguous_format


@pytest.mark.parametrize(("target", "case"), supported([BY_ID["patch_conv2d-one-row-of-pixels"]]))
def test_a_row_in_channels_last_memory(target: Target, case: Case):
    """The stride of a dimension of size 1 is ignored; here it is a stride of the larger map."""
    x, *rest = case.arguments(F32, target.device)
    wide = torch.zeros(x.shape[0], x.shape[1], 3, x.shape[3] + 2, device=target.device)
    row = channels_last(wide)[:, :, :1, : x.shape[3]].copy_(x)[:1]
    weights = rest[0][:1]
    y = target.run(case.operator, (row, weights, *rest[1:]))
    assert _layout.memory_format(row) == torch.channels_last
    assert y.stride() == torch.empty(y.shape).to(memory_format=torch.channels_last).stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("target", "case"), supported([BY_ID["upsample_cross_entropy-plain"]]))
def test_the_loss_of_16_bit_floats_is_float32(target: Target, case: Case, dtype):
    assert target.run(case.operator, case.arguments(dtype, target.device))[0].dtype == torch.float32
