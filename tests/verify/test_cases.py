"""The cases and comparisons of the verification: they cover every operator, notice errors, and raise no false alarm."""

import pytest
import torch

from hyperseg.ops import BACKENDS, OPERATORS
from hyperseg.verify.arguments import convert, double, flat
from hyperseg.verify.cases import CASES, cases_of
from hyperseg.verify.check import prepare, run_twice
from hyperseg.verify.comparison import FORWARD, compare, compare_labels
from hyperseg.verify.verification import DTYPES, ENGINE

CPU = torch.device("cpu")
CHECKS = [(operator, case) for operator in OPERATORS for case in cases_of(operator, torch.float32)]


def identifier(value):
    return value if isinstance(value, str) else value.name


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_operator_has_cases(operator, dtype):
    assert cases_of(operator, dtype)


def test_names_are_unique():
    assert len({case.id for case in CASES}) == len(CASES)
    assert set(ENGINE) <= set(OPERATORS)


@pytest.mark.parametrize(("operator", "case"), CHECKS, ids=identifier)
def test_the_reference_in_float32_is_right(operator, case):
    args, compare_all = prepare(operator, case, torch.float32)
    outputs, repeated = run_twice(BACKENDS["reference"].supported[operator], args, CPU)
    assert compare_all(outputs).problem == ""
    assert repeated.problem == ""


@pytest.mark.parametrize(("operator", "case"), CHECKS, ids=identifier)
def test_outputs_do_not_depend_on_rounding(operator, case):
    """Kernels round in another order on other hardware: arguments that differ by a few roundings give right outputs."""
    args, compare_all = prepare(operator, case, torch.float32)
    random = torch.Generator().manual_seed(0)

    def perturbed(t):
        return t * (1 + 4e-7 * (torch.rand(t.shape, generator=random, dtype=t.dtype) - 0.5))

    exact = [
        [perturbed(t) for t in a] if isinstance(a, list) and isinstance(a[0], torch.Tensor) else
        perturbed(a) if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in double(args)
    ]  # fmt: skip
    definition = BACKENDS["reference"].supported[operator]
    outputs = flat(definition(*exact))
    assert compare_all([convert(t, torch.float32) for t in outputs]).problem == ""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_output_of_zeros_is_wrong(operator, dtype):
    for case in cases_of(operator, dtype):
        args, compare_all = prepare(operator, case, dtype)
        outputs = flat(BACKENDS["reference"].supported[operator](*args))
        assert compare_all(outputs).problem == "", "the reference in this dtype"
        assert compare_all([torch.zeros_like(t) for t in outputs]).problem


def test_differences():
    tolerance, expected = FORWARD[torch.float32], torch.linspace(-1, 1, 101, dtype=torch.float64)
    assert compare(expected.float(), expected, tolerance).problem == ""
    assert compare(expected.float() + 1e-3, expected, tolerance).problem.startswith("errors Tolerance(largest=0.0017")
    assert compare(expected[1:], expected, tolerance).problem == "shape (100,), expected (101,)"
    unwritten = expected.clone()
    unwritten[3] = torch.nan
    assert compare(unwritten, expected, tolerance).problem == "1 of 101 values are NaN"
    unwritten[3] = torch.inf
    assert "largest=inf" in compare(unwritten, expected, tolerance).problem


def test_labels():
    scores = torch.tensor([[0.0, 1.0], [1.0, 1.0 + 1e-9]], dtype=torch.float64).T[None, ..., None]  # [1, 2, 2, 1]

    def problem(first: int, second: int, dtype: torch.dtype = torch.uint8) -> str:
        return compare_labels(torch.tensor([[[first], [second]]], dtype=dtype), scores, torch.float32).problem

    assert problem(1, 1) == ""
    assert problem(1, 0) == "50.0% of the labels differ; 0.1% is allowed"
    assert problem(0, 1).startswith("the score of a label is 1 less than the best")
    assert problem(1, 2) == "label 2, but there are 2 classes"
    assert problem(1, 1, torch.int64) == "labels are torch.int64, expected torch.uint8"
