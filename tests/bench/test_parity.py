"""Comparison with the reference: every kind of fault is refused, rounding is not."""

from dataclasses import replace

import pytest
import torch

from bench.core import parity
from bench.core.parity import BadReference
from hyperseg.runtime.parity import TOLERANCES

F32 = TOLERANCES[torch.float32]


@pytest.fixture
def reference():
    return torch.randn(2, 5, 32, 48, generator=torch.Generator().manual_seed(0))


def test_the_reference_agrees_with_itself(reference):
    found = parity.compare_logits(reference.clone(), reference, F32)
    assert found.passed
    assert (found.max_abs, found.relative, found.rms, found.agreement, found.clear_agreement) == (0, 0, 0, 100, 100)
    assert parity.check_reference(reference)["classes"] == 5


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: x * 1.01,
        lambda x: x.roll(1, dims=3),
        lambda x: x.flip(1),
        lambda x: torch.zeros_like(x),
        lambda x: torch.full_like(x, float("nan")),
        lambda x: x[:, :, :16],
        lambda x: x + 1e-2 * (torch.arange(x.numel()).view_as(x) == 77),
    ],
    ids=["scaled", "shifted", "classes swapped", "zeros", "nan", "half the rows", "one pixel"],
)
def test_faulty_scores_are_refused(reference, fault):
    found = parity.compare_logits(fault(reference), reference, F32)
    assert not found.passed
    assert found.reason
    assert "No speed for scope network: before timing, " in found.message("scope network", "before timing")


def test_labels(reference):
    labels = reference.argmax(1).to(torch.uint8)
    assert parity.compare_labels(labels, reference, F32).passed
    assert not parity.compare_labels(labels.long(), reference, F32).passed
    assert not parity.compare_labels(labels[:1], reference, F32).passed
    assert not parity.compare_labels((labels + 1) % 5, reference, F32).passed


def test_one_wrong_label_where_the_reference_is_clear_is_refused(reference):
    labels = reference.argmax(1).to(torch.uint8)
    tolerance = replace(F32, agreement=90.0)
    clear = parity.clear_mask(reference, tolerance).nonzero()[0]
    labels[tuple(clear)] = (labels[tuple(clear)] + 1) % 5
    found = parity.compare_labels(labels, reference, tolerance)
    assert not found.passed
    assert "clear" in found.reason


def test_a_label_may_differ_between_equal_scores(reference):
    reference[0, 0, 0, 0] = reference[0, 1, 0, 0] = 10
    labels = reference.argmax(1).to(torch.uint8)
    labels[0, 0, 0] = 1 - labels[0, 0, 0]
    found = parity.compare_labels(labels, reference, replace(F32, agreement=99.9))
    assert found.passed
    assert found.agreement < 100


@pytest.mark.parametrize(
    ("logits", "why"),
    [
        (torch.randn(1, 4, 8, 8) * 1e-42, "hardly vary"),
        (torch.zeros(1, 4, 8, 8), "hardly vary"),
        (torch.full((1, 4, 8, 8), float("nan")), "not finite"),
        (torch.arange(4.0).view(1, 4, 1, 1).expand(1, 4, 8, 8), "a single class"),
    ],
)
def test_a_degenerate_reference_proves_nothing(logits, why):
    with pytest.raises(BadReference, match=why):
        parity.check_reference(logits)


def test_worst_of_several_inputs(reference):
    good = parity.compare_logits(reference, reference, F32)
    worse = parity.compare_logits(reference + 1e-5, reference, F32)
    bad = parity.compare_logits(-reference, reference, F32)
    assert parity.worst([good, worse]).max_abs == worse.max_abs
    assert parity.worst([good, bad, worse]) == bad


def test_thresholds_widen_with_rounding():
    f32, f16, bf16 = (TOLERANCES[dtype] for dtype in (torch.float32, torch.float16, torch.bfloat16))
    assert f32.relative_max < f16.relative_max < bf16.relative_max
    assert f32.agreement > f16.agreement > bf16.agreement
    assert (f32.relative_max, f32.agreement) == (1e-4, 99.99)


def test_tensors_each_by_its_own_scale(reference):
    small = reference * 1e-6
    assert parity.compare_tensors([reference, small], [reference, small], F32).passed
    found = parity.compare_tensors([reference, small * 1.001], [reference, small], F32)
    assert not found.passed
    assert found.message("it", "before timing").startswith("No speed for it: before timing, its largest error is")
    assert not parity.compare_tensors([reference], [reference, small], F32).passed
    assert not parity.compare_tensors([reference[:1]], [reference], F32).passed
    assert not parity.compare_tensors([reference * float("nan")], [reference], F32).passed


def test_against_zeros_only_zeros_are_right(reference):
    zeros, empty = torch.zeros(3), torch.empty(0)
    assert parity.compare_tensors([reference, zeros, empty], [reference, zeros, empty], F32).passed
    assert not parity.compare_tensors([reference, zeros + 1e-30], [reference, zeros], F32).passed


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_an_output_that_proves_nothing(value):
    output = torch.full((3,), value)
    with pytest.raises(BadReference):
        parity.compare_tensors([output], [output], F32)


def test_gradients_in_16_bit_floats_may_jump_in_single_values_only(reference):
    tolerance = TOLERANCES[torch.float16]
    jumped = reference.clone()
    jumped[0, 0, 0, 0] += 0.5 * reference.abs().max()
    own = reference * 1.001
    assert not parity.compare_tensors([jumped], [reference], tolerance).passed
    assert parity.compare_tensors([jumped], [reference], tolerance, [own]).passed
    assert not parity.compare_tensors([reference * 1.05], [reference], tolerance, [own]).passed
    assert parity.compare_tensors([reference * 1.05], [reference], tolerance, [reference * 1.02]).passed
    assert not parity.compare_tensors([reference * torch.nan], [reference], tolerance, [own]).passed
