"""Losses: of pixels through ``ops.upsample_cross_entropy``, of regions in plain PyTorch.

All take the last level's logits and labels at full size, and give 0 with zero gradients where no pixel is labelled.
None waits for the device. A loss is a mean over pixels or over images; each says by how much its mean counts, so that
the mean over a batch in several parts, on several processes, equals that over the whole batch. Dice, Lovasz and OHEM
rank or divide within one part, so for them it is only the mean of the parts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperseg.ops import upsample_cross_entropy
from hyperseg.ops._layout import resize_logits
from hyperseg.training.config import LossConfig


@dataclass(frozen=True)
class Term:
    """A part of the loss: ``factor * function(logits, labels)``, and how much a batch with these labels counts."""

    factor: float
    function: Callable[[Tensor, Tensor], Tensor]
    count: Callable[[Tensor], Tensor]


class Objective:
    """The loss of a run.

    Args:
        config: which losses.
        steps: of the run, for ``then_from``.
        class_weights: one per class, or None.
        ignore_index: the label of pixels that do not count.
    """

    def __init__(self, config: LossConfig, steps: int, class_weights: Tensor | None, ignore_index: int = 255):
        self.config, self.steps, self.weights, self.ignore_index = config, steps, class_weights, ignore_index

    def terms(self, step: int) -> list[Term]:
        """Return the terms of the step after ``step`` completed ones."""
        c = self.config
        second = c.then is not None and step >= c.then_from * self.steps
        terms = [self._pixels(c.then or c.kind, None) if second else self._pixels(c.kind, self.weights)]
        if c.dice:
            terms.append(Term(c.dice, lambda x, y: dice(x, y, self.ignore_index), _images))
        if c.lovasz:
            terms.append(Term(c.lovasz, lambda x, y: lovasz(x, y, self.ignore_index), _images))
        return terms

    def _pixels(self, kind: str, weights: Tensor | None) -> Term:
        c, ignore = self.config, self.ignore_index
        if kind == "ohem":
            return Term(1.0, lambda x, y: ohem(x, y, weights, ignore, c.ohem_probability, c.ohem_share), _images)
        bootstrap = c.bootstrap if kind == "bootstrapped" else 0

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            like = None if weights is None else weights.to(torch.promote_types(logits.dtype, torch.float32))
            return upsample_cross_entropy(
                logits, labels, weight=like, ignore_index=ignore, bootstrap=bootstrap, threshold=c.threshold
            )

        return Term(1.0, loss, _images if bootstrap else lambda labels: weighted_pixels(labels, weights, ignore))


def _images(labels: Tensor) -> Tensor:
    return torch.full((), len(labels), dtype=torch.float64, device=labels.device)


def weighted_pixels(labels: Tensor, weights: Tensor | None, ignore_index: int) -> Tensor:
    """Return the sum of the class weights of all labelled pixels, or their number, as a float64 scalar."""
    if weights is None:
        return (labels != ignore_index).sum(dtype=torch.float64)
    table = weights.new_zeros(256, dtype=torch.float64)
    table[: len(weights)] = weights.double()
    table[ignore_index] = 0
    counts = torch.stack([(labels == c).sum() for c in range(len(weights))])  # bincount waits for the device
    return (counts * table[: len(weights)]).sum()


def ohem(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    ignore_index: int = 255,
    probability: float = 0.7,
    share: float = 0.0625,
) -> Tensor:
    """Online hard example mining: the mean loss of the hard pixels of a batch.

    Hard are pixels whose own class has at most this ``probability``, and at least ``share`` of all pixels.
    """
    scores = resize_logits(logits.to(_precise(logits)), *labels.shape[1:])
    losses = F.cross_entropy(scores, labels.long(), ignore_index=ignore_index, reduction="none").flatten()
    labelled = (labels != ignore_index).flatten()
    with torch.no_grad():
        smallest = losses.topk(max(1, int(share * losses.numel())), sorted=True).values[-1]
        hard = labelled & (losses >= smallest.clamp(max=-math.log(probability)))
    counted = hard.to(losses.dtype)
    if weights is not None:
        table = weights.new_zeros(256)
        table[: len(weights)] = weights
        counted = counted * table[labels.flatten().long()].to(losses.dtype)
    return (losses * counted).sum() / counted.sum().clamp(min=torch.finfo(losses.dtype).tiny)


def dice(logits: Tensor, labels: Tensor, ignore_index: int = 255, smooth: float = 1.0) -> Tensor:
    """Return one minus the Dice coefficient of the probabilities, averaged over the classes in the labels."""
    scores, target, labelled = _region_inputs(logits, labels, ignore_index)
    classes = scores.shape[1]
    own = scores.gather(1, target[:, None])[:, 0] * labelled
    zeros = scores.new_zeros(classes)
    common = zeros.scatter_add(0, target.flatten(), own.flatten())
    real = zeros.scatter_add(0, target.flatten(), labelled.flatten())
    found = (scores * labelled[:, None]).sum((0, 2, 3))
    loss = 1 - (2 * common + smooth) / (real + found + smooth)
    present = (real > 0).to(loss.dtype)
    return (loss * present).sum() / present.sum().clamp(min=1)


def lovasz(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Return the Lovasz-softmax loss of a batch, averaged over the classes in the labels.

    It is the convex extension of one minus the IoU (Berman et al., CVPR 2018). Ignored pixels get the error 0: they are
    ranked last and contribute nothing.
    """
    scores, target, labelled = _region_inputs(logits, labels, ignore_index)
    total, present = scores.new_zeros(()), scores.new_zeros(())
    for c in range(scores.shape[1]):
        foreground = ((target == c) * labelled).flatten()
        errors, order = ((foreground - scores[:, c].flatten()).abs() * labelled.flatten()).sort(descending=True)
        inside = foreground[order]
        size = inside.sum()
        counts = (labelled.flatten()[order] - inside).cumsum(0)
        jaccard = 1 - (size - inside.cumsum(0)) / (size + counts).clamp(min=1)
        slope = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
        exists = (size > 0).to(total.dtype)
        total = total + exists * (errors * slope).sum()
        present = present + exists
    return total / present.clamp(min=1)


def _region_inputs(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities at label size, labels with 0 for ignored pixels, and 1 or 0 for labelled ones."""
    scores = resize_logits(logits.to(_precise(logits)), *labels.shape[1:]).softmax(1)
    labelled = labels != ignore_index
    return scores, torch.where(labelled, labels, 0).long(), labelled.to(scores.dtype)


def _precise(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def frequency_weights(pixels: Tensor, of_images: Tensor, root: bool) -> Tensor:
    """Return weights of classes by median frequency balancing (Eigen and Fergus, ICCV 2015).

    The frequency of a class is its number of pixels over that of all labelled pixels in the images that contain it;
    its weight is the median frequency over it. A class without pixels gets 1.

    Args:
        pixels: ``[C]``, pixels of each class.
        of_images: ``[C]``, labelled pixels of the images that contain the class.
        root: the square roots of these weights.
    """
    present = pixels > 0
    frequency = pixels.double() / of_images.double().clamp(min=1)
    weights = torch.where(present, frequency[present].quantile(0.5) / frequency.clamp(min=1e-300), 1.0)
    return (weights.sqrt() if root else weights).float()
