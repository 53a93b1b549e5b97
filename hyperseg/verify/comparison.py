"""Comparison of an operator's outputs with the reference in float64: tolerances per dtype, and what exceeds them.

Errors are relative to the root mean square of the expected values, so no tolerance depends on a case's scale.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Bounds on the largest, root mean square and median error."""

    largest: float
    rms: float
    median: float


# A unit in the last place is 2e-16, 1e-7, 1e-3 and 8e-3. Summing up to 600 terms in another order costs a few of them
# in the worst element. 16-bit floats are also rounded between the steps of the reference (expand, depthwise, project).
# Each bound is two to five times the largest error of the reference itself over all cases of the tests.
FORWARD = {
    torch.float64: Tolerance(1e-11, 1e-13, 1e-13),
    torch.float32: Tolerance(2e-5, 2e-6, 1e-6),
    torch.float16: Tolerance(2e-2, 2e-3, 1e-3),
    torch.bfloat16: Tolerance(1.5e-1, 1.5e-2, 1e-2),
}

# If rounding moves a value across a corner of ReLU or ReLU6, its gradient switches on or off. In the cases of the tests
# and of the verification this never happens in float32; in 16-bit floats it happens to about one value in a hundred.
# There the median is the strict bound, and the other two only check the order of magnitude.
GRADIENT = {
    torch.float64: Tolerance(1e-10, 1e-12, 1e-13),
    torch.float32: Tolerance(5e-5, 5e-6, 1e-6),
    torch.float16: Tolerance(8, 0.5, 4e-3),
    torch.bfloat16: Tolerance(8, 1.0, 5e-2),
}


@dataclass(frozen=True)
class Difference:
    """How far an output is from the expected one.

    Attributes:
        error: largest error, relative to the root mean square of the expected values; of labels the share that differs.
        problem: why the output is wrong; empty if it is within the tolerance.
    """

    error: float = 0.0
    problem: str = ""


def compare(actual: Tensor, expected: Tensor, tolerance: Tolerance) -> Difference:
    """Compare shapes, values and infinities. NaN on either side is a problem."""
    if actual.shape != expected.shape:
        return Difference(problem=f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}")
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    if expected.isnan().any():
        return Difference(problem="the expected values have NaN")
    if wrong := int(actual.isnan().sum()):
        return Difference(problem=f"{wrong} of {actual.numel()} values are NaN")
    finite = expected.isfinite()
    if not torch.equal(actual[~finite], expected[~finite]):
        return Difference(problem="infinities differ")
    error, expected = (actual - expected)[finite].abs(), expected[finite]
    if not expected.numel():
        return Difference()
    scale = expected.square().mean().sqrt().item() or 1.0
    found = Tolerance(*((e.item() / scale) for e in (error.max(), error.square().mean().sqrt(), error.median())))
    # Not `greater than`: an infinite output makes errors that are NaN.
    within = all(getattr(found, part) <= getattr(tolerance, part) for part in ("largest", "rms", "median"))
    return Difference(found.largest, "" if within else f"errors {found} exceed {tolerance}")


def compare_labels(labels: Tensor, scores: Tensor, dtype: torch.dtype) -> Difference:
    """Compare labels ``[N, H, W]`` with exact scores ``[N, C, H, W]``.

    A label may differ from the expected one only where the best scores differ by less than rounding.

    Args:
        dtype: of the scores that the labels were computed from.
    """
    if labels.dtype != torch.uint8:
        return Difference(problem=f"labels are {labels.dtype}, expected torch.uint8")
    expected, labels = scores.argmax(1), labels.cpu().long()
    if labels.shape != expected.shape:
        return Difference(problem=f"shape {tuple(labels.shape)}, expected {tuple(expected.shape)}")
    if int(labels.max()) >= scores.shape[1]:
        return Difference(1.0, f"label {int(labels.max())}, but there are {scores.shape[1]} classes")
    lost = (scores.gather(1, expected[:, None]) - scores.gather(1, labels[:, None])).max()
    wrong = (labels != expected).double().mean().item()
    allowed = 2 * FORWARD[dtype].largest * scores.square().mean().sqrt()
    most = 0.1 if dtype.itemsize == 2 else 0.001
    if lost > allowed:
        return Difference(wrong, f"the score of a label is {lost:.2g} less than the best; {allowed:.2g} is allowed")
    return Difference(wrong, f"{wrong:.1%} of the labels differ; {most:.1%} is allowed" if wrong > most else "")
