"""Sentences for arguments outside an operator's contract: what was wrong, what was expected, what to do."""

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST = 2**24  # of a side: exact in float32, and products fit 64 bits


def map_4d(operator: str, name: str, value: Tensor, layout: str = "[N, C, H, W]") -> None:
    """A floating-point tensor of four dimensions, none of them empty."""
    if value.dim() != 4:
        raise ValueError(f"{operator}: {name} must be {layout}, got {value.dim()} dimensions: {tuple(value.shape)}.")
    if value.layout != torch.strided:
        raise TypeError(f"{operator}: {name} must be a dense tensor, got {value.layout}; call .to_dense().")
    if value.dtype not in FLOATING:
        raise TypeError(
            f"{operator}: {name} must be floating point, got {value.dtype}; convert it to float16, bfloat16, float32 "
            "or float64."
        )
    if 0 in value.shape:
        raise ValueError(f"{operator}: {name} must not be empty, got shape {tuple(value.shape)}.")


def same_kind(operator: str, **tensors: Tensor | None) -> None:
    """All on one device and of one dtype; None is passed over."""
    given = {name: t for name, t in tensors.items() if t is not None}
    first_name, first = next(iter(given.items()))
    for name, value in given.items():
        if value.device != first.device:
            raise ValueError(
                f"{operator}: {name} is on {value.device} but {first_name} on {first.device}; move them together."
            )
        if value.dtype != first.dtype:
            raise TypeError(
                f"{operator}: {name} is {value.dtype} but {first_name} {first.dtype}; convert one to the other."
            )


def patch_weights(operator: str, weights: Tensor, x: Tensor, parameters: int, meaning: str) -> None:
    """``weights`` is ``[N, fh, fw, parameters]`` and its grid divides the map ``x``."""
    map_4d(operator, "weights", weights, "[N, fh, fw, P]")
    if weights.shape[0] != x.shape[0]:
        raise ValueError(
            f"{operator}: weights are for {weights.shape[0]} images but the map has {x.shape[0]}; the first dimensions "
            "must agree."
        )
    if weights.shape[3] != parameters:
        raise ValueError(
            f"{operator}: weights have {weights.shape[3]} parameters a patch, expected {parameters} = {meaning}."
        )
    grid(operator, weights.shape[1], weights.shape[2], x)


def grid(operator: str, fh: int, fw: int, x: Tensor) -> None:
    """The map divides into a grid of fh x fw patches."""
    height, width = x.shape[2:]
    if height % fh or width % fw:
        raise ValueError(
            f"{operator}: a map of {height}x{width} pixels does not divide into {fh}x{fw} patches; "
            "pad it to a multiple of the grid."
        )


def vector(operator: str, name: str, value: Tensor | None, length: int, meaning: str) -> None:
    """A 1-d tensor of this length; None passes."""
    if value is not None and (value.dim() != 1 or value.shape[0] != length):
        raise ValueError(f"{operator}: {name} must be [{length}] ({meaning}), got {list(value.shape)}.")


def one_of(operator: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    """A word among ``choices``."""
    if value not in choices:
        raise ValueError(f"{operator}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def positive(operator: str, **values: int) -> None:
    """Integers of at least 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{operator}: {name} must be at least 1, got {value}.")


def reflectable(operator: str, x: Tensor, halo: tuple[int, int]) -> None:
    """Reflection by ``halo`` pixels needs more than that many."""
    height, width = x.shape[2:]
    if height <= halo[0] or width <= halo[1]:
        raise ValueError(
            f"{operator}: the map is {height}x{width} pixels, too small to reflect {halo[0]}x{halo[1]} at its border; "
            "use a larger image."
        )
