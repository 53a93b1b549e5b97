"""The C++ operators are bitwise equal for any number of threads."""

import pytest
import torch

from tests.ops.cases import BY_ID, Case, batch_norm, conv, differentiable, generators, level, loss, mbconv, stem
from tests.ops.targets import Target, supported
from tests.ops.test_parity import backward_arguments, flat

# So many patches, rows and labels that two or three threads share every pass unevenly.
SHARED = [
    Case("generate_weights", "threads", generators(3, 12, (7, 9), ((0, 12, 4, 200, 198), (2, 6, 1, 70, 70)))),
    Case("patch_conv2d", "threads", conv(1, 3, 4, (5, 7), (3, 2), (3, 3))),
    Case("patch_conv2d", "threads-pointwise", conv(1, 3, 4, (5, 7), (3, 2), (1, 1))),
    *[
        Case("patch_inverted_residual_batch_norm", f"threads-{halo}", batch_norm(1, 3, 5, 4, (5, 7), (3, 2), halo))
        for halo in ("own", "neighbour")
    ],
    Case("decoder_level", "threads", level(1, hidden=6, grid=(5, 7), size=(9, 11), signal=(20, 4, 12, 4, 140))),
    Case("decoder_level", "threads-pointwise", level(1, grid=(5, 7))),
    Case("upsample_cross_entropy", "threads", loss(1, 5, (37, 11), (111, 23))),
    Case("upsample_cross_entropy", "threads-bootstrap", loss(3, 5, (37, 11), (111, 23), bootstrap=600)),
    Case("upsample_cross_entropy", "threads-weights", loss(3, 5, (37, 11), (111, 23), weighted="all")),
    Case("mbconv", "threads", mbconv(1, 4, 20, 6, image=(131, 90))),
    Case("stem", "threads", stem(1, 20, frame=(131, 90), padding=(1, 1, 1, 1))),
    BY_ID["patch_inverted_residual-own-patch-3x5"],
    BY_ID["patch_inverted_residual-neighbour-patch-3x5"],
]


def check(target: Target, operator: str, args: tuple) -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(flat(target.run(operator, args)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def on_cpp(suffix: str = "") -> list:
    cases = [c for c in SHARED if not suffix or differentiable(c.operator)]
    return [p for p in supported(cases, suffix) if p.values[0] == Target("cpp", "cpu")]


@pytest.mark.parametrize(("target", "case"), on_cpp())
def test_forward(target: Target, case: Case):
    check(target, case.operator, case.arguments(torch.float32))


@pytest.mark.parametrize(("target", "case"), on_cpp("_backward"))
def test_backward(target: Target, case: Case):
    check(target, f"{case.operator}_backward", backward_arguments(case, torch.float32, "cpu"))
