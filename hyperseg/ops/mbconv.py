"""``mbconv``: EfficientNet's block for inference, norms folded."""

import torch
from torch import Tensor

from hyperseg.ops import reference
from hyperseg.ops._arguments import call, check_map, check_positive, check_same_kind, four_sides
from hyperseg.ops._layout import memory_format
from hyperseg.ops._registry import define, refuse_derivatives

_NAME = "mbconv"


def check_block(x, expand, expand_bias, depthwise, depthwise_bias, reduce, reduce_bias, gate, gate_bias, project,
           project_bias, stride, padding, residual):  # fmt: skip
    check_map(_NAME, "x", x)
    check_positive(_NAME, stride=stride)
    if (expand is None) != (expand_bias is None):
        raise ValueError(f"{_NAME}: give expand and expand_bias, or neither.")
    for name, value, layout in (
        ("depthwise", depthwise, "[hidden, size, size]"),
        ("reduce", reduce, "[squeezed, hidden]"),
        ("project", project, "[out, hidden]"),
    ):
        if value.dim() != layout.count(",") + 1 or 0 in value.shape:
            raise ValueError(f"{_NAME}: {name} must be {layout}, got {list(value.shape)}.")
    channels = x.shape[1]
    hidden, size = depthwise.shape[:2]
    squeezed, out = reduce.shape[0], project.shape[0]
    if expand is None and hidden != channels:
        raise ValueError(
            f"{_NAME}: without expand, depthwise must have as many channels as x, {channels}, got {hidden}."
        )
    expected = {
        "expand": (expand, [hidden, channels]),
        "expand_bias": (expand_bias, [hidden]),
        "depthwise": (depthwise, [hidden, size, size]),
        "depthwise_bias": (depthwise_bias, [hidden]),
        "reduce": (reduce, [squeezed, hidden]),
        "reduce_bias": (reduce_bias, [squeezed]),
        "gate": (gate, [hidden, squeezed]),
        "gate_bias": (gate_bias, [hidden]),
        "project": (project, [out, hidden]),
        "project_bias": (project_bias, [out]),
    }
    for name, (value, shape) in expected.items():
        if value is not None and list(value.shape) != shape:
            raise ValueError(f"{_NAME}: {name} must be {shape}, got {list(value.shape)}.")
    check_same_kind(_NAME, x=x, **{name: value for name, (value, _) in expected.items()})
    if not 1 <= size <= 7:
        raise ValueError(f"{_NAME}: the depthwise convolution must have 1x1 to 7x7 taps, got {size}x{size}.")
    if len(padding) != 4 or not all(0 <= p < size for p in padding):
        raise ValueError(f"{_NAME}: padding must be [left, right, top, bottom], each 0 to {size - 1}, got {padding}.")
    height, width = out_size(x, size, stride, padding)
    if height < 1 or width < 1:
        raise ValueError(f"{_NAME}: x of {list(x.shape[2:])} is smaller than the depthwise convolution, {size}x{size}.")
    if residual and (out, height, width) != tuple(x.shape[1:]):
        raise ValueError(
            f"{_NAME}: residual adds x, {list(x.shape[1:])}, to the result, {[out, height, width]}: the shapes must "
            "agree."
        )


def out_size(x, size, stride, padding):
    left, right, top, bottom = padding
    return (x.shape[2] + top + bottom - size) // stride + 1, (x.shape[3] + left + right - size) // stride + 1


def fake_block(x, expand, expand_bias, depthwise, depthwise_bias, reduce, reduce_bias, gate, gate_bias, project,
          project_bias, stride, padding, residual):  # fmt: skip
    size = out_size(x, depthwise.shape[1], stride, padding)
    shape = (x.shape[0], project.shape[0], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def flops_of_block(x, expand, expand_bias, depthwise, depthwise_bias, reduce, reduce_bias, gate, gate_bias, project,
           project_bias, stride, padding, residual, *args, out_shape=None, **kwargs):  # fmt: skip
    n, channels, height, width = x
    hidden, size, _ = depthwise
    left, right, top, bottom = padding
    pixels = ((height + top + bottom - size) // stride + 1) * ((width + left + right - size) // stride + 1)
    expanding = 0 if expand is None else height * width * channels * hidden
    return 2 * n * (expanding + pixels * hidden * (size * size + project[0]) + 2 * reduce[0] * hidden)


define(
    _NAME,
    "Tensor x, Tensor? expand, Tensor? expand_bias, Tensor depthwise, Tensor depthwise_bias, Tensor reduce, "
    "Tensor reduce_bias, Tensor gate, Tensor gate_bias, Tensor project, Tensor project_bias, int stride, "
    "int[] padding, bool residual",
    "Tensor",
    reference=reference.mbconv,
    check=check_block,
    fake=fake_block,
    flops=flops_of_block,
)
refuse_derivatives(_NAME, "this operator is for inference; train timm's modules, or differentiate the function of")


def mbconv(
    x: Tensor,
    expand: Tensor | None,
    expand_bias: Tensor | None,
    depthwise: Tensor,
    depthwise_bias: Tensor,
    reduce: Tensor,
    reduce_bias: Tensor,
    gate: Tensor,
    gate_bias: Tensor,
    project: Tensor,
    project_bias: Tensor,
    *,
    stride: int = 1,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    residual: bool = False,
) -> Tensor:
    """EfficientNet's block for inference, the norms folded into its convolutions (arXiv:1905.11946; SPEC B.1).

    Expand (1x1) and SiLU, depthwise and SiLU, squeeze-and-excite (average, reduce, SiLU, gate, sigmoid), project (1x1).
    For inference: a backward pass raises NotImplementedError.

    Args:
        x: ``[N, C, H, W]``, floating point, any memory format.
        expand, expand_bias: ``[hidden, C]`` and ``[hidden]``; None where hidden is C and nothing is expanded.
        depthwise, depthwise_bias: ``[hidden, size, size]``, size at most 7, and ``[hidden]``.
        reduce, reduce_bias: ``[squeezed, hidden]`` and ``[squeezed]``.
        gate, gate_bias: ``[hidden, squeezed]`` and ``[hidden]``.
        project, project_bias: ``[out, hidden]`` and ``[out]``.
        stride: of the depthwise convolution.
        padding: zeros around the input of the depthwise convolution: (left, right, top, bottom).
        residual: add x to the result.

    Returns:
        ``[N, out, H', W']``, in channels-last memory if x is.

    Raises:
        ValueError, TypeError: the shapes, dtypes or devices do not fit together.
    """
    return call(
        torch.ops.hyperseg.mbconv.default, x, expand, expand_bias, depthwise, depthwise_bias, reduce, reduce_bias, gate,
        gate_bias, project, project_bias, stride, four_sides(_NAME, padding), residual,
    )  # fmt: skip
