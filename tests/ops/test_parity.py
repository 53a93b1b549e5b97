"""Parity: every backend, operator, case and dtype against the reference in float64, with equal rounded arguments."""

import os

import pytest
import torch
from torch import Tensor

from hyperseg.ops import BACKENDS, OPERATORS, _layout, reference
from hyperseg.ops.backends import dispatch
from hyperseg.verify.arguments import backward_arguments, flat
from tests.ops.cases import CASES, DTYPES, EXACT, LABELLING, Case, differentiable, double
from tests.ops.targets import Target, supported_in
from tests.tolerances import FORWARD, GRADIENT, assert_close

DIFFERENTIABLE = [c for c in CASES if differentiable(c.operator)]


MAPS = [c for c in CASES if c.operator not in LABELLING]
LABELS = [c for c in CASES if c.operator in LABELLING]
PRECISE = [c for c in DIFFERENTIABLE if c.dtypes == EXACT]


def truth(operator: str, args: tuple) -> list[Tensor]:
    """Return the output of the reference, computed in float64."""
    return flat(BACKENDS["reference"].supported[operator](*double(args)))


@pytest.mark.parametrize(("target", "case", "dtype"), supported_in(DTYPES, MAPS))
def test_forward(target: Target, case: Case, dtype: torch.dtype):
    args = case.arguments(dtype, target.device)
    actual, expected = flat(target.run(case.operator, args)), truth(case.operator, args)
    if case.operator == "upsample_cross_entropy" and dtype not in case.dtypes:
        actual, expected = actual[:1], expected[:1]  # the loss, but not the weights of pixels
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"output {i}", a, e, FORWARD[dtype])


@pytest.mark.parametrize(("target", "case", "dtype"), supported_in(DTYPES, LABELS))
def test_labels(target: Target, case: Case, dtype: torch.dtype):
    """Labels match the reference, unless its best scores differ by less than rounding."""
    args = case.arguments(dtype, target.device)
    actual = target.run(case.operator, args)
    assert actual.dtype == torch.uint8
    resized = case.operator == "upsample_argmax"
    scores = _layout.resize_logits(*double(args)) if resized else reference.decoder_level(*double(args))
    expected = scores.argmax(1)
    actual = actual.cpu().long()
    assert actual.shape == expected.shape
    assert int(actual.max()) < scores.shape[1]
    if case.name.endswith("ties"):  # whole numbers are exact in every dtype, so the lowest of the best classes wins
        assert torch.equal(actual, expected)
        return
    lost = scores.gather(1, expected[:, None]) - scores.gather(1, actual[:, None])
    # Upsampled scores are not rounded to 16 bits; the scores of a level are.
    precision = torch.promote_types(dtype, torch.float32) if resized else dtype
    assert lost.max() <= 2 * FORWARD[precision].largest * scores.square().mean().sqrt()
    assert (actual == expected).double().mean() > (0.9 if precision.itemsize == 2 else 0.999)


@pytest.mark.parametrize(
    ("target", "case", "dtype"),
    supported_in(DTYPES, [c for c in DIFFERENTIABLE if c not in PRECISE], "_backward")
    + supported_in(EXACT, PRECISE, "_backward"),
)
def test_backward(target: Target, case: Case, dtype: torch.dtype):
    operator = f"{case.operator}_backward"
    args = backward_arguments(case, dtype, target.device)
    actual, expected = flat(target.run(operator, args)), truth(operator, args)
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"gradient {i}", a, e, GRADIENT[dtype])


def test_every_operator_has_cases():
    operators = {c.operator for c in CASES} | {f"{c.operator}_backward" for c in DIFFERENTIABLE}
    assert operators == set(OPERATORS)


def test_every_backend_is_in_a_preference_list():
    """A backend outside the preference lists is neither chosen nor tested."""
    assert {name for names in dispatch.PREFERENCE.values() for name in names} == set(BACKENDS)


@pytest.mark.skipif(os.environ.get("HYPERSEG_POISON") == "0", reason="HYPERSEG_POISON=0")
def test_fresh_memory_is_poisoned():
    assert torch.empty(3).isnan().all()
    assert torch.zeros(3, dtype=torch.float64).new_empty(3).isnan().all()
    assert torch.empty((1, 2, 2, 2), memory_format=torch.channels_last).isnan().all()
    assert (torch.empty(3, dtype=torch.uint8) == 255).all()
