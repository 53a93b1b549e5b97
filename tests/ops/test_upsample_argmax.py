"""Labels of equal, NaN and infinite scores, many classes, and different ratios of sizes."""

import pytest
import torch
import torch.nn.functional as F

from hyperseg.ops import upsample_argmax, use_backend
from tests.ops import oracle
from tests.ops.cases import TILE_LAYOUTS
from tests.ops.targets import Target, able, skip_if_not_supported

F64 = torch.float64


# test_parity.py skips the other backends and names their reasons.
ABLE = able("upsample_argmax")


@pytest.fixture(params=ABLE)
def labels(request):
    """Return a function ``labels(logits, size)`` that runs one backend and returns its labels on the CPU."""
    target: Target = request.param

    def run(logits, size):
        logits = logits.to(target.device)
        skip_if_not_supported(target, "upsample_argmax", (logits, *size))
        with use_backend(target.backend):
            return upsample_argmax(logits, size).cpu()

    return run


def whole(shape, seed=0, low=-3, high=4):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).float()


def test_of_equal_scores_the_lowest_class_wins(labels):
    logits = torch.zeros(1, 5, 3, 4)
    logits[:, [2, 4]] = 1
    assert (labels(logits, (6, 8)) == 2).all()
    assert (labels(torch.zeros(1, 256, 2, 2), (4, 4)) == 0).all()
    assert (labels(torch.full((1, 3, 2, 2), -torch.inf), (2, 2)) == 0).all()


def test_ties_inside_the_map_are_exact(labels):
    logits = whole((2, 7, 9, 11), low=-1, high=2)
    tied = (oracle.resize(logits.double(), 18, 22).topk(2, 1).values.diff(dim=1) == 0).float().mean()
    assert tied > 0.1, "the case should have ties"
    assert torch.equal(labels(logits, (18, 22)), oracle.upsample_argmax(logits.double(), 18, 22))


def test_nan_counts_as_the_largest_score(labels):
    logits = whole((1, 4, 4, 4))
    logits[0, 2, 1, 1] = torch.nan
    logits[0, 3, 1, 1] = torch.nan
    found = labels(logits, (4, 4))
    assert found[0, 1, 1] == 2
    clean = whole((1, 4, 4, 4)).argmax(1)
    clean[0, 1, 1] = 2
    assert torch.equal(found.long(), clean)


def test_nan_spreads_to_the_pixels_that_sample_it(labels):
    logits = whole((1, 3, 5, 5))
    logits[0, 1, 2, 2] = torch.nan
    found = labels(logits, (10, 10))
    expected = F.interpolate(logits, size=(10, 10), mode="bilinear").argmax(1)
    assert torch.equal(found.long(), expected)
    assert (found[0, 3:7, 3:7] == 1).all()


def test_infinite_scores(labels):
    logits = whole((1, 3, 4, 4))
    logits[0, 2, 0, 0] = torch.inf
    logits[0, 0, 3, 3] = -torch.inf
    assert labels(logits, (4, 4))[0, 0, 0] == 2
    assert labels(logits, (4, 4))[0, 3, 3] in (1, 2)


@pytest.mark.parametrize("classes", [1, 2, 255, 256])
def test_every_class_can_win(labels, classes):
    logits = torch.zeros(1, classes, 16, 16)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0)) % classes
    logits.scatter_(1, order.view(1, 1, 16, 16), 1.0)
    assert torch.equal(labels(logits, (16, 16)), order.view(1, 16, 16).to(torch.uint8))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)], ids=str)
def test_a_map_of_one_pixel_is_one_label(labels, size):
    logits = torch.tensor([0.0, 3.0, 1.0]).view(1, 3, 1, 1)
    found = labels(logits, size)
    assert found.shape == (1, *size)
    assert (found == 1).all()


@pytest.mark.parametrize(
    ("small", "size"),
    [
        ((6, 8), (12, 16)),
        ((7, 5), (7, 5)),
        ((4, 4), (16, 16)),
        ((16, 8), (8, 4)),
        ((1, 8), (2, 16)),
        ((8, 20), (4, 5)),
    ],
    ids=lambda s: f"{s[0]}x{s[1]}",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=lambda d: str(d)[6:])
def test_labels_are_exact_without_rounding(labels, small, size, dtype):
    """Whole numbers at ratios that are powers of two are summed without rounding, in any order."""
    logits = whole((2, 6, *small)).to(dtype)
    assert torch.equal(labels(logits, size), oracle.upsample_argmax(logits.double().cpu(), *size))


@pytest.mark.parametrize("size", [(13, 17), (29, 40), (5, 6), (11, 64)], ids=str)
def test_any_other_ratio(labels, size):
    """Either of two classes is right if their scores differ by less than rounding; such pixels are rare."""
    logits = torch.randn(2, 6, 11, 14, generator=torch.Generator().manual_seed(0))
    found = labels(logits, size).long()
    scores = oracle.resize(logits.double(), *size)
    best = scores.amax(1)
    assert (best - scores.gather(1, found[:, None])[:, 0]).max() < 1e-5
    assert (found == scores.argmax(1)).float().mean() > 0.999


def test_images_of_a_batch_are_independent(labels):
    logits = whole((3, 5, 6, 7))
    together = labels(logits, (12, 14))
    for i in range(3):
        assert torch.equal(together[i : i + 1], labels(logits[i : i + 1], (12, 14)))


def float32_labels(logits, height, width):
    """Labels by float32 arithmetic in the order of the CUDA kernels: along rows first, each product rounded."""

    def axis(size, count):
        source = ((torch.arange(count) + 0.5) * (size / count) - 0.5).clamp(min=0)
        low = source.long().clamp(max=size - 1)
        return low, (low + 1).clamp(max=size - 1), (source - low).clamp(max=1)

    def between(a, b, weight):
        return a * (1 - weight) + b * weight

    low, high, weight = axis(logits.shape[3], width)
    rows = between(logits.float()[..., low], logits.float()[..., high], weight)
    low, high, weight = axis(logits.shape[2], height)
    return between(rows[:, :, low], rows[:, :, high], weight[:, None]).argmax(1).to(torch.uint8)


@pytest.mark.parametrize("layout", TILE_LAYOUTS)
@pytest.mark.parametrize("channels", [1, 2, 7, 12, 19, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("target", [p for p in ABLE if p.values[0].backend == "cuda"])
def test_labels_do_not_depend_on_the_layout(target, dtype, channels, layout):
    generator = torch.Generator().manual_seed(0)
    for small in ((17, 40), (8, 16), (9, 24), (1, 8), (3, 1)):
        logits = torch.randn(2, channels, *small, generator=generator).mul(2).round().div(4).to(dtype)
        logits[torch.rand(logits.shape, generator=generator) < 0.3] *= 0.0  # zeros of both signs
        logits[torch.rand(logits.shape, generator=generator) < 0.01] = torch.inf
        logits[torch.rand(logits.shape, generator=generator) < 0.01] = -torch.inf
        logits[torch.rand(logits.shape, generator=generator) < 0.002] = torch.nan
        for size in ((2 * small[0], 2 * small[1]), (small[0] + 3, 3 * small[1])):
            found = target.run("upsample_argmax", (TILE_LAYOUTS[layout](logits).to(target.device), *size))
            assert torch.equal(found.cpu(), float32_labels(logits, *size))
