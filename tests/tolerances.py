"""Assertions on outputs of operators, with the tolerances of ``hyperseg.verify.comparison``."""

from torch import Tensor

from hyperseg.verify.comparison import FORWARD, GRADIENT, Tolerance, compare

__all__ = ["FORWARD", "GRADIENT", "Tolerance", "assert_close"]


def assert_close(name: str, actual: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
    """Assert equal shapes, values within the tolerance and equal infinities. NaN on either side is a failure."""
    problem = compare(actual, expected, tolerance).problem
    assert not problem, f"{name}: {problem}"
