"""The gate of squeeze and excitation in training, and activations with their gradients."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_aten = torch.ops.aten

# By class: the activation, and its gradient from that of the output and the input.
ACTIVATIONS: dict[type[nn.Module], tuple[Any, Any]] = {
    nn.SiLU: (F.silu, _aten.silu_backward),
    nn.ReLU: (F.relu, lambda grad, x: _aten.threshold_backward(grad, x, 0)),
    nn.ReLU6: (F.relu6, lambda grad, x: _aten.hardtanh_backward(grad, x, 0, 6)),
    nn.Hardswish: (F.hardswish, _aten.hardswish_backward),
}


class Gate:
    """The gate of squeeze and excitation, one factor per image and channel."""

    def __init__(self, kind: type[nn.Module], pooled: Tensor, gates: Sequence[Tensor]) -> None:
        self.shapes = [gates[0].shape, gates[2].shape]
        act, self.act_gradient = ACTIVATIONS[kind]
        self.pooled, self.reduce, self.expand = pooled, gates[0].flatten(1), gates[2].flatten(1)
        reduce_bias, expand_bias = gates[1], gates[3]
        self.before = F.linear(pooled, self.reduce, reduce_bias)
        self.hidden = act(self.before)
        self.value = F.linear(self.hidden, self.expand, expand_bias).sigmoid_()

    def gradients(self, grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the gradients of the pooled map, and of both weights and biases, from that of :attr:`value`."""
        grad = _aten.sigmoid_backward(grad, self.value)
        hidden = self.act_gradient(grad @ self.expand, self.before)
        d_reduce, d_expand = (hidden.T @ self.pooled).view(self.shapes[0]), (grad.T @ self.hidden).view(self.shapes[1])
        return hidden @ self.reduce, (d_reduce, hidden.sum(0), d_expand, grad.sum(0))
