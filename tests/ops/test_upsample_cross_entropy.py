"""The loss: the pixels that count, by a literal version of SPEC A.3, and the gradient of ties."""

import math

import pytest
import torch
import torch.nn.functional as F

from hyperseg.ops import upsample_cross_entropy
from tests.ops import oracle

F64 = torch.float64


def literal(logits, labels, k, threshold, ignore_index=255):
    """Return the bootstrapped cross-entropy, computed with lists and loops (SPEC A.3)."""
    scores = oracle.resize(logits.double(), *labels.shape[1:])
    images = []
    for n in range(labels.shape[0]):
        losses = []
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                label = int(labels[n, y, x])
                if label == ignore_index:
                    losses.append(0.0)
                    continue
                pixel = scores[n, :, y, x].tolist()
                top = max(pixel)
                losses.append(math.log(sum(math.exp(s - top) for s in pixel)) + top - pixel[label])
        losses.sort(reverse=True)
        worst = [v for v in losses if v > threshold] if losses[k] > threshold else losses[:k]
        images.append(sum(worst) / len(worst))
    return sum(images) / len(images)


def batch(seed=0, n=2, classes=4, size=(4, 5), to=(8, 10), ignored=0.2):
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, *size, generator=g, dtype=F64)
    labels = torch.randint(classes, (n, *to), generator=g)
    labels[torch.rand(n, *to, generator=g) < ignored] = 255
    return logits, labels


@pytest.mark.parametrize("k", [1, 7, 40, 79], ids="k={}".format)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 2.0, 50.0], ids="threshold={}".format)
@pytest.mark.parametrize("ignored", [0.0, 0.2, 0.95], ids="ignored={}".format)
def test_bootstrapped_loss_matches_the_specification(k, threshold, ignored):
    logits, labels = batch(ignored=ignored)
    loss = upsample_cross_entropy(logits, labels, bootstrap=k, threshold=threshold)
    assert loss.item() == pytest.approx(literal(logits, labels, k, threshold), rel=1e-12, abs=1e-15)


def test_k_is_compared_with_the_pixel_after_the_first_k():
    """With exactly k losses above the threshold the k worst count; with more, all losses above it count."""
    labels = torch.zeros(1, 1, 6, dtype=torch.int64)
    wrong = torch.tensor([5.0, 4.0, 3.0, 2.0, -9.0, -9.0], dtype=F64)  # loss = log(1 + exp(wrong))
    logits = torch.stack([torch.zeros_like(wrong), wrong])[None, :, None]
    losses = torch.log1p(wrong.exp())
    for k, counted in ((4, 4), (3, 4), (2, 4), (5, 5)):
        loss = upsample_cross_entropy(logits, labels, bootstrap=k, threshold=1.0)
        assert loss.item() == pytest.approx(losses[:counted].mean().item(), rel=1e-12)


def test_a_loss_at_the_threshold_is_not_above_it():
    logits, labels = torch.zeros(1, 2, 2, 4, dtype=F64), torch.zeros(1, 2, 4, dtype=torch.int64)
    logits[0, 1, 0, :3] = 1.0
    threshold = F.cross_entropy(logits, labels, reduction="none")[0, 1, 1].item()  # log 2, as it is computed
    loss = upsample_cross_entropy(logits, labels, bootstrap=2, threshold=threshold)
    assert loss.item() == pytest.approx(math.log(1 + math.e), rel=1e-12)


def test_the_published_setting():
    """k = 4096 and threshold 0.3, on more than k pixels; and on fewer, where the official code fails."""
    logits, labels = batch(n=1, size=(40, 60), to=(80, 120))
    loss = upsample_cross_entropy(logits, labels, bootstrap=4096)
    per_pixel = oracle.pixel_losses(logits, labels, 255).flatten().sort(descending=True).values
    assert per_pixel[4096] > 0.3
    assert loss.item() == pytest.approx(per_pixel[per_pixel > 0.3].mean().item(), rel=1e-12)
    few = upsample_cross_entropy(logits, labels[:, :40, :60], bootstrap=4096)
    everything = oracle.pixel_losses(logits, labels[:, :40, :60], 255)
    assert few.item() == pytest.approx(everything.mean().item(), rel=1e-12)


def test_plain_loss_is_the_mean_over_valid_pixels():
    logits, labels = batch()
    expected = F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode="bilinear"), labels, ignore_index=255)
    assert upsample_cross_entropy(logits, labels).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("bootstrap", [0, 10, 1000])
def test_all_pixels_ignored(bootstrap):
    logits, labels = batch(ignored=2.0)
    loss = upsample_cross_entropy(logits.requires_grad_(), labels, bootstrap=bootstrap)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("ignore_index", [-100, -1, 3, 255])
def test_any_label_can_be_the_ignored_one(ignore_index):
    logits, labels = batch()
    moved = labels.where(labels != 3, 2).where(labels != 255, ignore_index)
    loss = upsample_cross_entropy(logits, moved, ignore_index=ignore_index)
    assert loss.item() == pytest.approx(upsample_cross_entropy(logits, labels.where(labels != 3, 2)).item(), rel=1e-12)


def test_images_have_equal_weights_for_any_number_of_counted_pixels():
    logits, labels = batch(n=3)
    alone = [upsample_cross_entropy(logits[i : i + 1], labels[i : i + 1], bootstrap=9).item() for i in range(3)]
    assert upsample_cross_entropy(logits, labels, bootstrap=9).item() == pytest.approx(sum(alone) / 3, rel=1e-12)
    assert len(set(alone)) == 3


def test_ties_at_the_cut_share_the_remaining_weight():
    """The worst pixel has weight 1/2. Three tied pixels share the other 1/2, so their gradients are equal."""
    logits = torch.zeros(1, 2, 1, 5, dtype=F64)
    logits[0, 1, 0] = torch.tensor([4.0, 1.0, 1.0, 1.0, -4.0])
    labels = torch.zeros(1, 1, 5, dtype=torch.int64)
    loss = upsample_cross_entropy(logits.requires_grad_(), labels, bootstrap=2, threshold=99.0)
    worst, tied = math.log1p(math.exp(4)), math.log1p(math.exp(1))
    assert loss.item() == pytest.approx((worst + tied) / 2, rel=1e-12)
    loss.backward()
    weights = torch.tensor([1 / 2, 1 / 6, 1 / 6, 1 / 6, 0], dtype=F64)
    expected = weights * logits.detach()[0, 1, 0].sigmoid()
    assert torch.allclose(logits.grad[0, 1, 0], expected, rtol=1e-12, atol=0)
    assert torch.allclose(logits.grad[0, 0, 0], -expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bootstrap", [0, 10, 70])
def test_weights_are_the_derivatives_of_the_loss_by_the_pixel_losses(bootstrap):
    """Ignored pixels have weight 0, also if their zeros are among the worst. The weighted losses sum to the loss."""
    logits, labels = batch(ignored=0.5)
    loss, weights = torch.ops.hyperseg.upsample_cross_entropy.default(logits, labels, 255, bootstrap, 99.0)
    assert weights.shape == labels.shape
    assert (weights[labels == 255] == 0).all()
    assert 0 < int((weights > 0).sum()) <= (int((labels != 255).sum()) if not bootstrap else 2 * bootstrap)
    total = (oracle.pixel_losses(logits, labels, 255) * weights).sum().item()
    assert loss.item() == pytest.approx(total, rel=1e-12)


def test_ignored_pixels_count_as_zeros_in_the_bootstrapped_loss():
    logits, labels = batch(n=1, ignored=0.9)
    valid = int((labels != 255).sum())
    assert 0 < valid < 20
    total = oracle.pixel_losses(logits, labels, 255).sum().item()
    assert upsample_cross_entropy(logits, labels, bootstrap=20, threshold=99.0).item() == pytest.approx(total / 20)


def test_large_logits_do_not_overflow():
    logits = torch.tensor([3e4, -3e4], dtype=torch.float16).view(1, 2, 1, 1)
    loss = upsample_cross_entropy(logits, torch.ones(1, 1, 1, dtype=torch.int64))
    assert (loss.dtype, loss.item()) == (torch.float32, pytest.approx(6e4, rel=1e-3))


@pytest.mark.parametrize("bootstrap", [0, 30])
def test_dtypes_of_gradients(bootstrap):
    """Gradients have the dtype of the logits."""
    logits, labels = batch()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        leaf = logits.to(dtype).requires_grad_()
        upsample_cross_entropy(leaf, labels, bootstrap=bootstrap).backward()
        assert leaf.grad.dtype == dtype
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 0
