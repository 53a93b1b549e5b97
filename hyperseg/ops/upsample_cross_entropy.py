"""``upsample_cross_entropy``: the training loss at label size, plain and bootstrapped, with class weights.

An error for a wrong value would need a host synchronisation in every call. So in every backend a label that is no class
makes the loss NaN, and so does a class weight that is negative or not finite. On the CPU, where reading the loss costs
nothing, the operator then raises an error that names the value; on other devices the NaN stays.
"""

import math

import torch
from torch import Tensor

from hyperseg.ops import reference
from hyperseg.ops._arguments import call, check_map, check_positive, check_vector, describe
from hyperseg.ops._registry import define, define_backward

_NAME = "upsample_cross_entropy"
_LABEL_DTYPES = (torch.int64, torch.uint8)


def _loss_dtype(logits):
    return torch.promote_types(logits.dtype, torch.float32)


def _check(logits, labels, weight, ignore_index, bootstrap, threshold):
    check_map(_NAME, "logits", logits, "[N, C, h, w]")
    if labels.dim() != 3 or labels.dtype not in _LABEL_DTYPES:
        raise ValueError(
            f"{_NAME}: labels must be int64 or uint8 [N, H, W], got {labels.dtype} {list(labels.shape)}; "
            "convert them with labels.long()."
        )
    if labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"{_NAME}: labels are for {labels.shape[0]} images but logits for {logits.shape[0]}; the first dimensions "
            "must agree."
        )
    if 0 in labels.shape:
        raise ValueError(f"{_NAME}: labels must not be empty, got shape {tuple(labels.shape)}.")
    if labels.device != logits.device:
        raise ValueError(f"{_NAME}: labels are on {labels.device} but logits on {logits.device}; move them together.")
    if weight is not None:
        _check_weight(logits, weight)
    if bootstrap < 0:
        raise ValueError(f"{_NAME}: bootstrap must be 0 (off) or a number of pixels, got {bootstrap}.")


def _check_weight(logits, weight):
    check_vector(_NAME, "weight", weight, logits.shape[1], "one number per class of the logits")
    if weight.dtype != (expected := _loss_dtype(logits)):
        raise TypeError(
            f"{_NAME}: weight must be {expected} for logits of {logits.dtype}, got {weight.dtype}; convert it with "
            f"weight.to({expected})."
        )
    if weight.device != logits.device:
        raise ValueError(f"{_NAME}: weight is on {weight.device} but logits on {logits.device}; move them together.")


def _check_values(output, logits, labels, weight, ignore_index, bootstrap, threshold):
    if logits.device.type != "cpu":
        return
    for c, value in enumerate([] if weight is None else weight.tolist()):
        if not 0 <= value < math.inf:
            raise ValueError(f"{_NAME}: weight must be finite and at least 0, got {value} for class {c}.")
    if math.isnan(output[0].item()):
        _check_classes(_NAME, labels, logits.shape[1], ignore_index)


def _check_classes(name, labels, classes, ignore_index):
    labels = labels.long()  # Python numbers compare with uint8 modulo 256
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        raise ValueError(
            f"{name}: {wrong.numel()} labels are outside 0..{classes - 1} and not {ignore_index} (ignored), "
            f"such as {wrong.unique()[:5].tolist()}; map the label files to classes first."
        )


def _fake(logits, labels, weight, ignore_index, bootstrap, threshold):
    dtype = _loss_dtype(logits)
    return logits.new_empty((), dtype=dtype), logits.new_empty(labels.shape, dtype=dtype)


def _setup_context(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _backward(ctx, grad, _weights):
    return _operator_backward(grad, *ctx.saved_tensors), None, None, None, None, None


define(
    _NAME,
    "Tensor logits, Tensor labels, Tensor? weight, int ignore_index, int bootstrap, float threshold",
    "(Tensor, Tensor)",
    reference=reference.upsample_cross_entropy,
    check=_check,
    check_values=_check_values,
    fake=_fake,
)
# It takes the weights of the forward pass, which contain the class weights. Losses that another backend computes could
# rank other pixels at the cut.
_operator_backward = define_backward(
    _NAME,
    "Tensor logits, Tensor labels, Tensor weights",
    "Tensor",
    reference=reference.weighted_cross_entropy,
    differentiable=(0,),
    setup_context=_setup_context,
    backward=_backward,
)


def upsample_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    bootstrap: int = 0,
    threshold: float = 0.3,
) -> Tensor:
    """Cross-entropy of the bilinearly upsampled logits against full-size labels.

    Args:
        logits: ``[N, C, h, w]``, floating point.
        labels: int64 or uint8 ``[N, H, W]``, each ``ignore_index`` or in ``[0, C)``.
        weight: ``[C]``, how much a pixel of each class counts, finite and at least 0; float32 (float64 for float64
            logits), a constant without gradient. None: 1 for every class.
        ignore_index: the label of pixels that do not count.
        bootstrap: 0 for the mean over all valid pixels, weighted by the weights of their classes, as in
            ``torch.nn.functional.cross_entropy``. Otherwise, per image, the mean of the pixel losses above
            ``threshold`` if they are more than ``bootstrap``, else of the ``bootstrap`` largest (of all, in a smaller
            image); ignored pixels count as 0; then the mean over images. There a pixel's loss is multiplied by its
            class weight before it is ranked, and the means divide by numbers of pixels. The paper's runs use 4096 and
            0.3 (SPEC A.3).
        threshold: of a pixel's loss, see ``bootstrap``.

    Returns:
        A scalar, float32 (float64 for float64 logits). A batch in which no pixel counts gives 0 and zero gradients.

        On a GPU a label that is no class, or a class of a pixel whose weight is negative or not finite, gives a NaN
        loss and NaN gradients: an error would need a host synchronisation. :func:`check_labels` checks the labels of a
        data set once.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit together, ``weight`` requires a gradient; on the
            CPU also a label that is no class, and a negative or not finite ``weight``.
    """
    if isinstance(weight, Tensor) and weight.requires_grad:
        raise ValueError(f"{_NAME}: weight is a constant without gradient; pass weight.detach().")
    loss, _ = call(
        torch.ops.hyperseg.upsample_cross_entropy.default, logits, labels, weight, ignore_index, bootstrap, threshold
    )
    return loss


def check_labels(labels: Tensor, classes: int, *, ignore_index: int = 255) -> None:
    """Check that every label is a class or ignored: once for a data set, as the loss on a GPU does not.

    Args:
        labels: integers of any shape, such as one label map. On a GPU the check is a host synchronisation.
        classes: number of classes, C of the logits.
        ignore_index: as for :func:`upsample_cross_entropy`.

    Raises:
        ValueError: some labels are neither in ``[0, classes)`` nor ``ignore_index``; the message names them.
        TypeError: the labels are not a tensor of integers.
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        kind = labels.dtype if isinstance(labels, Tensor) else describe(labels)
        raise TypeError(f"check_labels: labels must be a tensor of integers, got {kind}; convert them with .long().")
    check_positive("check_labels", classes=classes)
    _check_classes("check_labels", labels, classes, ignore_index)
