"""Losses against their definitions written out, in parts, and on labels with nothing in them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hyperseg.training.config import LossConfig
from hyperseg.training.losses import Objective, dice, frequency_weights, lovasz, ohem, weighted_pixels

CONFIGS = {
    "plain": LossConfig(),
    "weighted": LossConfig(class_weights=(1.0, 0.5, 2.0, 0.25)),
    "bootstrapped": LossConfig(kind="bootstrapped", bootstrap=20),
    "ohem": LossConfig(kind="ohem"),
    "dice": LossConfig(dice=0.5),
    "lovasz": LossConfig(lovasz=1.0),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def batch(seed=0, images=4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 4, 6, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (images, 12, 16), generator=generator).to(torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return logits, labels


def objective(config):
    given = config.class_weights
    weights = None if isinstance(given, str) else torch.tensor(given, dtype=torch.float64)
    return Objective(config, steps=10, class_weights=weights)


def total(config, logits, labels, parts=1, step=0):
    """The loss of a batch in so many parts, each counted as its terms say."""
    result = torch.zeros((), dtype=torch.float64)
    for term in objective(config).terms(step):
        chunks = list(zip(logits.chunk(parts), labels.chunk(parts), strict=True))
        counts = torch.stack([term.count(y) for _, y in chunks])
        for (x, y), count in zip(chunks, counts, strict=True):
            result = result + term.factor * term.function(x, y) * (count / counts.sum().clamp(min=1e-300))
    return result


@configs
def test_labels_with_nothing_give_zero_and_zero_gradients(config):
    logits, labels = batch()
    logits.requires_grad_()
    loss = total(config, logits, torch.full_like(labels, 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@configs
def test_ignored_pixels_do_not_count(config):
    """Neither does what the network says there, nor how they are many; bootstrapping counts them as 0."""
    logits, labels = batch()
    labels[:, 6:] = 255
    logits.requires_grad_()
    total(config, logits, labels).backward()
    # Rows 0 to 3 of 6 reach labels in rows 0 to 5 of 12; the last two are interpolated only for ignored pixels.
    assert torch.equal(logits.grad[:, :, 4:], torch.zeros_like(logits.grad[:, :, 4:]))
    assert logits.grad[:, :, :3].abs().sum() > 0


@pytest.mark.parametrize("name", ["plain", "weighted", "bootstrapped"])
def test_parts_add_up_to_the_whole(name):
    logits, labels = batch()
    labels[0, :11] = 255  # so that the parts have different numbers of labelled pixels
    whole = total(CONFIGS[name], logits, labels)
    assert total(CONFIGS[name], logits, labels, parts=2).item() == pytest.approx(whole.item(), rel=1e-12)
    assert total(CONFIGS[name], logits, labels, parts=4).item() == pytest.approx(whole.item(), rel=1e-12)


def test_weighted_cross_entropy_is_that_of_pytorch():
    logits, labels = batch()
    scores = F.interpolate(logits, size=(12, 16), mode="bilinear", align_corners=False)
    weight = torch.tensor(CONFIGS["weighted"].class_weights, dtype=torch.float64)
    expected = F.cross_entropy(scores, labels.long(), weight, ignore_index=255)
    assert total(CONFIGS["weighted"], logits, labels).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.5, 2.0, 0.0])], ids=["plain", "weighted"])
def test_weighted_pixels(weights):
    labels = batch()[1]
    counts = np.bincount(labels.numpy().ravel(), minlength=256)[:4]
    expected = counts.sum() if weights is None else (counts * weights.numpy()).sum()
    assert weighted_pixels(labels, weights, 255).item() == pytest.approx(expected)


@pytest.mark.parametrize(("probability", "share"), [(0.7, 0.01), (0.01, 0.25)], ids=["by probability", "by share"])
def test_ohem_is_the_mean_of_the_hard_pixels(probability, share):
    logits, labels = batch()
    scores = F.interpolate(logits, size=(12, 16), mode="bilinear", align_corners=False)
    losses = F.cross_entropy(scores, labels.long(), ignore_index=255, reduction="none").flatten().numpy()
    ranked = np.sort(losses)[::-1]
    hard = ranked[: max(int(share * len(ranked)), int((ranked >= -math.log(probability)).sum()))]
    found = ohem(logits, labels, probability=probability, share=share)
    assert found.item() == pytest.approx(hard.mean(), rel=1e-9)


def test_dice_by_its_formula():
    logits, labels = batch()
    labels[labels == 3] = 2  # class 3 is absent and not counted
    scores = F.interpolate(logits, size=(12, 16), mode="bilinear", align_corners=False).softmax(1)
    labelled = labels != 255
    parts = []
    for c in range(3):
        truth, found = (labels == c).double(), scores[:, c] * labelled
        parts.append(1 - (2 * (truth * found).sum() + 1) / (truth.sum() + found.sum() + 1))
    assert dice(logits, labels).item() == pytest.approx(sum(parts).item() / 3, rel=1e-9)


def test_lovasz_of_sure_predictions_is_one_minus_the_iou():
    """On hard predictions the Lovasz extension equals the set function (Berman et al., equation 8)."""
    labels = torch.tensor([[[0, 0, 0, 1], [1, 1, 255, 2], [2, 2, 2, 2], [0, 1, 2, 255]]], dtype=torch.uint8)
    prediction = torch.tensor([[[0, 0, 1, 1], [1, 1, 1, 2], [2, 0, 2, 2], [0, 1, 1, 0]]])
    logits = F.one_hot(prediction, 3).permute(0, 3, 1, 2).double() * 1e3
    valid = labels[0] != 255
    ious = []
    for c in range(3):
        truth, found = (labels[0] == c) & valid, (prediction[0] == c) & valid
        ious.append((truth & found).sum() / (truth | found).sum())
    assert lovasz(logits, labels).item() == pytest.approx(1 - torch.stack(ious).mean().item(), rel=1e-6)


@pytest.mark.parametrize("function", [dice, lovasz], ids=["dice", "lovasz"])
def test_gradients_of_region_losses(function):
    logits, labels = batch(images=1)
    logits = logits[:, :, :3, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, labels[:, :6, :8]), (logits,))


def test_the_second_stage_has_its_own_kind_and_no_class_weights():
    config = LossConfig(class_weights=(1.0, 0.5, 2.0, 0.25), then="bootstrapped", then_from=0.4, bootstrap=20)
    logits, labels = batch()
    first, second = total(config, logits, labels, step=3), total(config, logits, labels, step=4)
    assert first.item() == pytest.approx(total(CONFIGS["weighted"], logits, labels).item())
    assert second.item() == pytest.approx(total(CONFIGS["bootstrapped"], logits, labels).item())


def test_median_frequency_weights():
    # Frequencies .5, .25 and .1 of the labelled pixels in the images that contain the class; class 3 has no pixel.
    weights = frequency_weights(torch.tensor([50, 25, 5, 0]), torch.tensor([100, 100, 50, 0]), root=False)
    assert weights.tolist() == pytest.approx([0.5, 1, 2.5, 1])
    rooted = frequency_weights(torch.tensor([50, 25, 5, 0]), torch.tensor([100, 100, 50, 0]), root=True)
    assert rooted.tolist() == pytest.approx([0.5**0.5, 1, 2.5**0.5, 1])
