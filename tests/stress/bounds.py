"""Running error analysis: a tensor that carries exact values and a bound on the rounding errors of a computation.

The reference runs on these tensors unchanged, forward and backward. A :class:`Bounded` tensor of dtype float16 holds
float64 values, computed without rounding to float16, and for each of them how far any summation order and any rounding
of intermediate results to float16 can move it. So the bound is strict where a result is well conditioned, and wide
where terms cancel or a value is near a corner of ReLU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

aten = torch.ops.aten
F64 = torch.float64
INF = float("inf")


def unit(dtype: torch.dtype) -> float:
    """Return the unit roundoff. The expected values have float64's rounding errors too."""
    return torch.finfo(dtype).eps * (0.5 if dtype != F64 else 1)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums: float32 for 16-bit floats."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else torch.float32


def summation(terms: int) -> float:
    """Return the relative error, in units of roundoff, of a sum of products in any order that may be met in a kernel.

    The worst case grows with the number of terms, the error of blocked sums with its root.
    """
    return min(terms, 8 + 4 * terms**0.5) + 1


class Bounded(Tensor):
    """Values in float64 and a bound on the error of each, as a tensor of the dtype of the computation.

    An infinite bound says that any result is right, also NaN. A value that is not finite has a certain class (infinity
    of that sign, or NaN) unless its bound is infinite.
    """

    value: Tensor
    error: Tensor
    terms: int  # how many summands it has that a kernel may add in another order, together with what is added to it

    @staticmethod
    def __new__(cls, value: Tensor, error: Tensor, dtype: torch.dtype, terms: int = 1):
        if value.stride() != error.stride():
            value, error = value.contiguous(), error.contiguous()
        wrapper = Tensor._make_wrapper_subclass(
            cls, value.shape, strides=value.stride(), storage_offset=value.storage_offset(), dtype=dtype
        )
        wrapper.value, wrapper.error, wrapper.terms = value, error, terms
        return wrapper

    def __repr__(self, **_):
        return f"Bounded({self.value}, {self.error}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        if packet in RULES:
            return RULES[packet](func, args, kwargs or {})
        raise NotImplementedError(f"no rule for {func}")

    @property
    def spread(self) -> Tensor:
        """The error as the next operation sees it: without bound where the value may overflow the dtype."""
        overflow = self.value.isfinite() & (self.value.abs() + self.error > torch.finfo(self.dtype).max)
        return self.error.masked_fill(overflow, INF) if overflow.any() else self.error


def exact(x: Tensor, error: Tensor | None = None) -> Bounded:
    value = x.detach().double()
    return Bounded(value, torch.zeros_like(value) if error is None else error, x.dtype)


def lifted(x: Any) -> Any:
    return x if not isinstance(x, Tensor) or isinstance(x, Bounded) else exact(x)


def finite(x: Tensor) -> Tensor:
    return x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def promoted(*tensors: Tensor) -> torch.dtype:
    """Return the dtype of a result. A tensor without dimensions does not widen it."""
    ranked = [t for t in tensors if t.dim()] or list(tensors)
    dtype = ranked[0].dtype
    for t in ranked[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return dtype


def rounded(value: Tensor, error: Tensor, dtype: torch.dtype, terms: int = 1, magnitude: Tensor | None = None):
    """Return a result whose propagated error is ``error``.

    Args:
        terms: the number of summands.
        magnitude: the sum of their absolute values; by default the value's.
    """
    sums = accumulator(dtype)
    magnitude = finite(value).abs() if magnitude is None else magnitude
    error = error + summation(terms) * unit(sums) * magnitude + terms * torch.finfo(sums).tiny
    if dtype != sums:
        error = error * (1 + unit(dtype)) + unit(dtype) * finite(value).abs() + smallest(dtype)
    error = error.nan_to_num(nan=INF, posinf=INF)
    too_large = magnitude > torch.finfo(sums).max / 4
    return Bounded(value, error.masked_fill(too_large, INF) if too_large.any() else error, dtype, terms)


def smallest(dtype: torch.dtype) -> float:
    """Return the absolute error of rounding a tiny number."""
    return 2.0**-25 if dtype == torch.float16 else torch.finfo(dtype).tiny


def crosses(x: Bounded) -> Tensor:
    return (x.spread > 0) & (finite(x.value).abs() <= x.spread)


def product(f: Callable[[Tensor, Tensor], Tensor], a: Bounded, b: Bounded, terms: int, dtype: torch.dtype) -> Bounded:
    """Return ``f(a, b)``, a sum of ``terms`` products of a value of a and a value of b."""
    value = f(a.value, b.value)
    size_a, size_b = finite(a.value).abs(), finite(b.value).abs()
    error = f(size_a, b.spread) + f(a.spread, size_b + b.spread)
    odd_a, odd_b = ~a.value.isfinite(), ~b.value.isfinite()
    if odd_a.any() or odd_b.any():
        # Infinity times a number of unknown sign.
        unknown = f(odd_a.double(), crosses(b).double()) + f(crosses(a).double(), odd_b.double())
        error = error.masked_fill(unknown > 0, INF)
    return rounded(value, error, dtype, terms, f(size_a, size_b))


# ---------------------------------------------------------------------------------------------------------------------
# Rules, by operator of ATen


RULES: dict[Any, Callable] = {}


def rule(*packets):
    def register(function):
        RULES.update(dict.fromkeys(packets, function))
        return function

    return register


def parts(args: Any, attribute: str) -> Any:
    return tree_map(lambda a: getattr(a, attribute) if isinstance(a, Bounded) else a, args)


def bounded_in(args: Any) -> list[Bounded]:
    return [a for a in tree_flatten(args)[0] if isinstance(a, Bounded)]


def wrap(values: Any, errors: Any, dtype: torch.dtype, terms: int) -> Any:
    flat_values, spec = tree_flatten(values)
    flat_errors = tree_flatten(errors)[0]
    return tree_unflatten([Bounded(v, e, dtype, terms) for v, e in zip(flat_values, flat_errors, strict=True)], spec)


@rule(
    aten.view, aten._unsafe_view, aten.permute, aten.transpose, aten.t, aten.expand, aten.slice, aten.select,
    aten.unfold, aten.cat, aten.stack, aten.constant_pad_nd, aten.reflection_pad2d, aten.replication_pad2d,
    aten.unsqueeze, aten.squeeze, aten.alias, aten.detach, aten.clone, aten.split_with_sizes, aten.split,
    aten.upsample_nearest2d, aten._reshape_alias, aten.as_strided, aten.slice_backward, aten.select_backward,
)  # fmt: skip
def moves(func, args, kwargs):
    """Values that move, or are padded with zeros."""
    if func.overloadpacket in (aten.cat, aten.stack):
        args = ([lifted(a) for a in args[0]], *args[1:])
    inputs = bounded_in(args)
    terms = max(a.terms for a in inputs)
    return wrap(func(*parts(args, "value"), **kwargs), func(*parts(args, "error"), **kwargs), promoted(*inputs), terms)


@rule(aten.reflection_pad2d_backward, aten.replication_pad2d_backward, aten.unfold_backward)
def adjoints(func, args, kwargs):
    """Sums of a few values that were read in several places."""
    grad = args[0]
    magnitude = func(*parts((exact_size(grad), *args[1:]), "value"), **kwargs)
    error = func(*parts((Bounded(grad.spread, grad.spread, grad.dtype), *args[1:]), "value"), **kwargs)
    return rounded(func(*parts(args, "value"), **kwargs), error, grad.dtype, 9, magnitude)


def exact_size(x: Bounded) -> Bounded:
    return Bounded(finite(x.value).abs(), x.error, x.dtype)


@rule(aten._to_copy)
def converts(func, args, kwargs):
    x, dtype = args[0], kwargs.get("dtype") or args[0].dtype
    kept = {"memory_format": kwargs["memory_format"]} if kwargs.get("memory_format") else {}
    value, error = x.value.clone(**kept), x.error.clone(**kept)
    if torch.finfo(dtype).eps <= torch.finfo(x.dtype).eps and torch.finfo(dtype).max >= torch.finfo(x.dtype).max:
        return Bounded(value, x.spread.clone(**kept), dtype)
    return rounded(value, error, dtype)


@rule(aten.copy_)
def copies(func, args, kwargs):
    args[0].value.copy_(lifted(args[1]).value)
    args[0].error.copy_(lifted(args[1]).error)
    return args[0]


@rule(aten.new_empty, aten.new_zeros, aten.zeros_like, aten.empty_like, aten.ones_like, aten.new_empty_strided)
def makes(func, args, kwargs):
    kept = {k: v for k, v in kwargs.items() if k in ("memory_format",)}
    value = func(args[0].value, *args[1:], **kept)
    return Bounded(value, torch.zeros_like(value), kwargs.get("dtype") or args[0].dtype)


@rule(aten.add, aten.sub)
def adds(func, args, kwargs):
    a, b = lifted(args[0]), lifted(args[1])
    if not isinstance(b, Tensor):
        return rounded(func(a.value, b, **kwargs), a.spread.clone(), a.dtype, 1, finite(a.value).abs() + abs(b))
    scale = abs(kwargs.get("alpha", 1))
    magnitude = finite(a.value).abs() + scale * finite(b.value).abs()
    terms = max(a.terms, b.terms) + 1
    return rounded(func(a.value, b.value, **kwargs), a.spread + scale * b.spread, promoted(a, b), terms, magnitude)


@rule(aten.neg)
def negates(func, args, kwargs):
    return Bounded(-args[0].value, args[0].error, args[0].dtype)


@rule(aten.mul)
def multiplies(func, args, kwargs):
    a, b = lifted(args[0]), lifted(args[1])
    if not isinstance(b, Tensor):
        return rounded(a.value * b, a.spread * abs(b), a.dtype)
    return product(torch.mul, a, b, 1, promoted(a, b))


@rule(aten.div)
def divides(func, args, kwargs):
    a, b = lifted(args[0]), args[1]
    if isinstance(b, Tensor):
        if isinstance(b, Bounded) and b.error.any():
            raise NotImplementedError("division by a rounded tensor")
        b = (b.value if isinstance(b, Bounded) else b).double()
        return rounded(a.value / b, a.spread / b.abs(), a.dtype)
    return rounded(a.value / b, a.spread / abs(b), a.dtype)


@rule(aten.addcmul)
def adds_product(func, args, kwargs):
    shift, a, b = (lifted(x) for x in args)
    dtype = promoted(shift, b)
    return RULES[aten.add](aten.add.Tensor, (shift, product(torch.mul, a, b, 1, dtype)), {})


@rule(aten.bmm, aten.mm)
def multiplies_matrices(func, args, kwargs):
    a, b = args
    return product(func, lifted(a), lifted(b), a.shape[-1], promoted(a, b))


def column(bias: Bounded) -> Bounded:
    """Return a bias per channel in the shape in which it is added to a map."""
    return Bounded(bias.value[:, None, None], bias.error[:, None, None], bias.dtype)


@rule(aten.convolution)
def convolves(func, args, kwargs):
    x, weight, bias, *rest = (lifted(a) for a in args)
    y = product(lambda a, b: func(a, b, None, *rest), x, weight, weight[0].numel(), promoted(x, weight))
    return y if bias is None else RULES[aten.add](aten.add.Tensor, (y, column(bias)), {})


@rule(aten.convolution_backward)
def convolves_backward(func, args, kwargs):
    grad, x, weight, sizes, *rest, mask = args
    dtype = promoted(grad, x, weight)
    pixels = grad.shape[0] * grad.shape[2] * grad.shape[3]
    results: list[Bounded | None] = [None, None, None]
    if mask[0]:
        f = lambda g, w: func(g, x.value, w, sizes, *rest, [True, False, False])[0]  # noqa: E731
        results[0] = product(f, grad, weight, weight.shape[0] * weight[0, 0].numel(), dtype)
    if mask[1]:
        f = lambda g, z: func(g, z, weight.value, sizes, *rest, [False, True, False])[1]  # noqa: E731
        results[1] = product(f, grad, x, pixels, dtype)
    if mask[2]:
        results[2] = sums(aten.sum.dim_IntList, (grad, [0, 2, 3]), {})
    return tuple(results)


@rule(aten.sum, aten.mean)
def sums(func, args, kwargs):
    x, *rest = args
    value = func(x.value, *rest, **{k: v for k, v in kwargs.items() if k != "dtype"})
    f = lambda t: func(t, *rest, **{k: v for k, v in kwargs.items() if k != "dtype"})  # noqa: E731
    terms = x.numel() // max(value.numel(), 1)
    result = rounded(value, f(x.spread), kwargs.get("dtype") or x.dtype, terms, f(finite(x.value).abs()))
    if func.overloadpacket is aten.mean:  # its sum may overflow although the mean does not
        overflow = f(finite(x.value).abs()) * terms > torch.finfo(accumulator(x.dtype)).max / 4
        result = Bounded(value, result.error.masked_fill(overflow, INF), result.dtype, terms)
    return result


@rule(aten.var)
def variances(func, args, kwargs):
    x, dims = args[0], args[1]
    mean = sums(aten.mean.dim, (x, dims, True), {})
    difference = RULES[aten.sub](aten.sub.Tensor, (x, mean), {})
    square = product(torch.mul, difference, difference, 1, x.dtype)
    result = sums(aten.mean.dim, (square, dims, kwargs.get("keepdim", False)), {})
    return Bounded(func(x.value, *args[1:], **kwargs), result.error, x.dtype)


def monotonic(x: Bounded, f: Callable[[Tensor], Tensor], relative: Tensor | float, magnitude=None) -> Bounded:
    """Return f(x) for a monotonic f whose own relative error is ``relative`` units of roundoff."""
    value = f(x.value)
    error = torch.maximum((f(x.value + x.error) - value).abs(), (value - f(x.value - x.error)).abs())
    error = error.nan_to_num(nan=INF).masked_fill(~x.value.isfinite(), 0.0).masked_fill(x.error.isinf(), INF)
    error = error + relative * unit(accumulator(x.dtype)) * finite(value).abs()
    return rounded(value, error, x.dtype)


@rule(aten.relu)
def relu(func, args, kwargs):
    x = args[0]
    y = monotonic(x, func, 0)
    return Bounded(y.value, y.error.masked_fill(x.value + x.error <= 0, 0.0), x.dtype)


@rule(aten.hardtanh)
def clamps(func, args, kwargs):
    x = args[0]
    f = lambda t: func(t, *args[1:])  # noqa: E731
    value = f(x.value)
    error = torch.maximum(f(x.value + x.error) - value, value - f(x.value - x.error))
    error = error.nan_to_num(nan=INF).masked_fill(~x.value.isfinite(), 0).masked_fill(x.error.isinf(), INF)
    return Bounded(value, error, x.dtype)


def masked(grad: Bounded, keep: Tensor, uncertain: Tensor) -> Bounded:
    value = torch.where(keep, grad.value, torch.zeros_like(grad.value))
    zero = torch.zeros_like(value)
    error = torch.where(keep | uncertain, grad.spread, zero) + torch.where(uncertain, finite(grad.value).abs(), zero)
    error = error.masked_fill(uncertain & ~grad.value.isfinite(), INF)
    return Bounded(value, error, grad.dtype)


@rule(aten.threshold_backward)
def relu_backward(func, args, kwargs):
    grad, x, threshold = args
    low, high = x.value - x.error, x.value + x.error
    uncertain = ((low <= threshold) & (high > threshold)) | x.error.isinf()
    return masked(grad, ~(x.value <= threshold), uncertain)


@rule(aten.hardtanh_backward)
def clamps_backward(func, args, kwargs):
    grad, x, least, most = args
    low, high = x.value - x.error, x.value + x.error
    uncertain = ((low <= least) & (high > least)) | ((low < most) & (high >= most)) | x.error.isinf()
    uncertain |= x.value.isnan()  # PyTorch keeps or drops the gradient there, depending on its position in a vector
    return masked(grad, ~((x.value <= least) | (x.value >= most)), uncertain)


@rule(aten.sigmoid)
def sigmoid(func, args, kwargs):
    x = args[0]
    return monotonic(Bounded(x.value, x.spread, x.dtype), func, 8 + finite(x.value).abs().clamp(max=100))


@rule(aten.silu)
def silu(func, args, kwargs):
    x = args[0]
    value = func(x.value)
    # Its slope is at most 1.1 everywhere.
    error = (
        1.1 * x.spread + (8 + finite(x.value).abs().clamp(max=100)) * unit(accumulator(x.dtype)) * finite(value).abs()
    )
    return rounded(value, error, x.dtype)


@rule(aten.rsqrt)
def rsqrt(func, args, kwargs):
    x = args[0]
    return monotonic(Bounded(x.value, x.spread, x.dtype), lambda t: t.clamp(min=0).rsqrt(), 4)


@rule(aten.pow)
def power(func, args, kwargs):
    x, exponent = args
    return monotonic(Bounded(x.value, x.spread, x.dtype), lambda t: t**exponent, 4)


@rule(aten._log_softmax)
def log_softmax(func, args, kwargs):
    x, dim, _ = args
    value = func(x.value, dim, False)
    error = x.spread + x.spread.amax(dim, keepdim=True)
    largest = finite(x.value).abs().amax(dim, keepdim=True)
    return rounded(value, error, x.dtype, x.shape[dim], finite(value).abs() + largest + 1)


@rule(aten._log_softmax_backward_data)
def log_softmax_backward(func, args, kwargs):
    grad, output, dim, _ = args
    value = func(grad.value, output.value, dim, F64)
    p = output.value.exp()
    p_error = p * torch.expm1(output.error.clamp(max=50)) + 8 * unit(accumulator(grad.dtype)) * p
    total = grad.value.sum(dim, keepdim=True)
    total_error = grad.spread.sum(dim, keepdim=True)
    error = grad.spread + (p + p_error) * total_error + p_error * finite(total).abs()
    magnitude = finite(grad.value).abs() + p * finite(grad.value).abs().sum(dim, keepdim=True)
    return rounded(value, error, grad.dtype, grad.shape[dim], finite(magnitude))


@rule(aten.nll_loss2d_forward)
def nll(func, args, kwargs):
    x, target, *rest = args
    value, total = func(x.value, target, *rest)
    return Bounded(value, func(x.error, target, *rest)[0].abs(), x.dtype), exact(total)


@rule(aten.nll_loss2d_backward)
def nll_backward(func, args, kwargs):
    grad, x, target, *rest, total = args
    plain = total.value if isinstance(total, Bounded) else total
    f = lambda g: func(g, x.value, target, *rest, plain.double())  # noqa: E731
    return Bounded(f(grad.value), f(grad.error).abs(), grad.dtype)


def taps(size: int, to: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return three matrices [to, size] of a linear interpolation: its weights, 1 at each tap, 1 at each faint tap.

    A kernel computes a position in its own precision, so a tap may also be one that has weight 0. A tap is faint if its
    weight is about 0: a product with infinity there may be NaN, or the kernel may not read it.
    """
    weights, read, faint = (torch.zeros(to, size, dtype=F64) for _ in range(3))
    position = ((torch.arange(to, dtype=F64) + 0.5) * size / to - 0.5).clamp(min=0)
    slack = position_error(size, dtype)
    rows = torch.arange(to)
    for offset in (-slack, 0.0, slack):
        first = (position + offset).clamp(min=0).floor().long().clamp(max=size - 1)
        second = (first + 1).clamp(max=size - 1)
        part = position - first
        read[rows, first] = read[rows, second] = 1
        faint[rows[part > 0.999], first[part > 0.999]] = 1
        faint[rows[part < 0.001], second[part < 0.001]] = 1
    first = position.floor().long().clamp(max=size - 1)
    weights[rows, first] += 1 - (position - first)
    weights[rows, (first + 1).clamp(max=size - 1)] += position - first
    return weights, read, faint


def position_error(size: int, dtype: torch.dtype) -> float:
    return 8 * unit(accumulator(dtype)) * size


@rule(aten.upsample_bilinear2d)
def resizes(func, args, kwargs):
    x, (height, width), *_ = args
    value = func(x.value, *args[1:])
    weight_y, tap_y, faint_y = taps(x.shape[2], height, x.dtype)
    weight_x, tap_x, faint_x = taps(x.shape[3], width, x.dtype)
    size = finite(x.value).abs()
    slack = position_error(x.shape[2], x.dtype) + position_error(x.shape[3], x.dtype)
    spread = x.spread
    error = weight_y @ finite(spread) @ weight_x.T + slack * (tap_y @ (size + finite(spread)) @ tap_x.T)
    unknown = spread.isinf().double()
    if unknown.any():
        error = error.masked_fill(tap_y @ unknown @ tap_x.T > 0, INF)
    odd = (~x.value.isfinite()).double()
    if odd.any():
        # ATen reads rows and columns of weight 0 too where one axis alone keeps its size.
        one = (x.shape[2] == height) != (x.shape[3] == width)
        error = error.masked_fill(faint_y @ odd @ tap_x.T + tap_y @ odd @ (tap_x if one else faint_x).T > 0, INF)
    return rounded(value, error, x.dtype, 4, weight_y @ size @ weight_x.T)


@rule(aten.upsample_bilinear2d_backward)
def resizes_backward(func, args, kwargs):
    grad, (height, width), (_, _, rows, columns), *_ = args
    value = func(grad.value, *args[1:])
    weight_y, tap_y, faint_y = taps(rows, height, grad.dtype)
    weight_x, tap_x, faint_x = taps(columns, width, grad.dtype)
    size = finite(grad.value).abs()
    slack = position_error(rows, grad.dtype) + position_error(columns, grad.dtype)
    spread = grad.spread
    error = weight_y.T @ finite(spread) @ weight_x + slack * (tap_y.T @ (size + finite(spread)) @ tap_x)
    unknown = spread.isinf().double()
    if unknown.any():
        error = error.masked_fill(tap_y.T @ unknown @ tap_x > 0, INF)
    odd = (~grad.value.isfinite()).double()
    if odd.any():
        one = (rows == height) != (columns == width)
        error = error.masked_fill(faint_y.T @ odd @ tap_x + tap_y.T @ odd @ (tap_x if one else faint_x) > 0, INF)
    terms = max(1, 4 * (height * width) // (rows * columns))
    return rounded(value, error, grad.dtype, terms, weight_y.T @ size @ weight_x)


def coordinates(height: int, width: int, like: Tensor) -> Bounded:
    """``hyperseg.ops._layout.coordinates`` with the rounding errors of a linspace in any order."""
    x, y = torch.linspace(-1, 1, width, dtype=F64), torch.linspace(-1, 1, height, dtype=F64)
    value = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])[None]
    error = torch.full_like(value, 4 * unit(accumulator(like.dtype)))
    return rounded(value, error, like.dtype)
