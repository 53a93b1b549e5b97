"""``upsample_cross_entropy``: the training loss at label size, plain and bootstrapped."""

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from hyperseg.ops import reference
from hyperseg.ops._arguments import call, check_map
from hyperseg.ops._registry import define, define_backward

_NAME = "upsample_cross_entropy"


def _check(logits, labels, ignore_index, bootstrap, threshold):
    check_map(_NAME, "logits", logits, "[N, C, h, w]")
    if labels.dim() != 3 or labels.dtype != torch.int64:
        raise ValueError(
            f"{_NAME}: labels must be int64 [N, H, W], got {labels.dtype} {list(labels.shape)}; "
            "convert them with labels.long()."
        )
    if labels.shape[0] != logits.shape[0] or 0 in labels.shape:
        raise ValueError(f"{_NAME}: labels {list(labels.shape)} do not belong to logits of {logits.shape[0]} images.")
    if labels.device != logits.device:
        raise ValueError(f"{_NAME}: labels are on {labels.device} but logits on {logits.device}; move them together.")
    if bootstrap < 0:
        raise ValueError(f"{_NAME}: bootstrap must be 0 (off) or a number of pixels, got {bootstrap}.")


def _fake(logits, labels, ignore_index, bootstrap, threshold):
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty((), dtype=dtype), logits.new_empty(labels.shape, dtype=dtype)


def _setup_context(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _backward(ctx, grad, _weights):
    return _operator_backward(grad, *ctx.saved_tensors), None, None, None, None


define(
    _NAME,
    "Tensor logits, Tensor labels, int ignore_index, int bootstrap, float threshold",
    "(Tensor, Tensor)",
    reference=reference.upsample_cross_entropy,
    check=_check,
    fake=_fake,
)
# It takes the weights of the forward pass: losses that another backend computes could rank other pixels at the cut.
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
    ignore_index: int = 255,
    bootstrap: int = 0,
    threshold: float = 0.3,
) -> Tensor:
    """Cross-entropy of the bilinearly upsampled logits against full-size labels.

    Args:
        logits: ``[N, C, h, w]``, floating point.
        labels: int64 ``[N, H, W]``, each ``ignore_index`` or in ``[0, C)``.
        ignore_index: the label of pixels that do not count.
        bootstrap: 0 for the mean over all valid pixels. Otherwise, per image, the mean of the pixel losses above
            ``threshold`` if they are more than ``bootstrap``, else of the ``bootstrap`` largest (of all, in a smaller
            image); ignored pixels count as 0; then the mean over images. The paper's runs use 4096 and 0.3 (SPEC A.3).
        threshold: of a pixel's loss, see ``bootstrap``.

    Returns:
        A scalar, float32 (float64 for float64 logits). A batch without any valid pixel gives 0 and zero gradients.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices do not fit together, or a label is no class.
    """
    if not torch.compiler.is_compiling() and not _without_values(labels) and not _capturing(logits):
        _check_label_range(logits, labels, ignore_index)
    loss, _ = call(
        torch.ops.hyperseg.upsample_cross_entropy.default, logits, labels, ignore_index, bootstrap, threshold
    )
    return loss


def _without_values(x: Tensor) -> bool:
    return x.is_meta or isinstance(x, FakeTensor)


def _capturing(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _check_label_range(logits: Tensor, labels: Tensor, ignore_index: int) -> None:
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= logits.shape[1]))]
    if wrong.numel():
        raise ValueError(
            f"{_NAME}: {wrong.numel()} labels are outside 0..{logits.shape[1] - 1} and not {ignore_index} (ignored), "
            f"such as {wrong.unique()[:5].tolist()}; map the label files to classes first."
        )
