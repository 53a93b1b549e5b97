"""Validation of what users give to an engine; the messages say what to do."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MODES = ("eager", "compile", "cudagraph")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_settings(size: Any, dtype: Any, batch: int, mode: str) -> None:
    """Validate arguments of ``build_engine``, including types that annotations already exclude.

    Raises:
        ValueError: one of them is out of range or of a wrong type.
    """
    if not isinstance(size, Sequence) or len(size) != 2:
        square = f"; for a square, size=({size}, {size})" if isinstance(size, int) else ""
        raise ValueError(f"size must be (height, width) of the frames, got {size}{square}.")
    height, width = size
    if height < 1 or width < 1 or batch < 1:
        raise ValueError(f"size and batch must be positive, got {height}x{width} and {batch}.")
    if dtype not in DTYPES:
        named = f"; give dtype=torch.{dtype}" if dtype in map(name_of, DTYPES) else ""
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype!r}{named}.")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")


def check_frames(frames: Any, expected: tuple[int, ...]) -> None:
    """Require a uint8 tensor of shape ``expected``, ``[N, H, W, 3]``.

    Raises:
        TypeError: not a tensor.
        ValueError: another dtype or shape.
    """
    if not isinstance(frames, Tensor):
        raise TypeError(
            f"This engine takes a torch.Tensor of uint8 frames {list(expected)} (RGB), got "
            f"{type(frames).__module__}.{type(frames).__name__}; convert an array with torch.from_numpy(frames)."
        )
    if frames.dtype != torch.uint8 or tuple(frames.shape) != expected:
        raise ValueError(
            f"This engine takes uint8 frames {list(expected)} (RGB), got {name_of(frames.dtype)} "
            f"{list(frames.shape)}; {_advice(frames, expected)}."
        )


def check_images(images: Tensor, expected: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Require images of shape ``expected``, ``[N, 3, H, W]``, of this dtype and kind of device.

    Raises:
        ValueError: they are not.
    """
    if tuple(images.shape) != expected or images.dtype != dtype or images.device.type != device.type:
        raise ValueError(
            f"This engine takes images {list(expected)} {name_of(dtype)} on {device}, got "
            f"{list(images.shape)} {name_of(images.dtype)} on {images.device}; build one for these."
        )


def name_of(dtype: torch.dtype) -> str:
    """Return ``"float16"`` for ``torch.float16``."""
    return str(dtype).removeprefix("torch.")


def _advice(frames: Tensor, expected: tuple[int, ...]) -> str:
    """Return how to correct the first thing that is wrong with the frames."""
    shape, (batch, height, width, _) = tuple(frames.shape), expected
    if frames.dtype != torch.uint8:
        return "give the pixels as they are, 0 to 255; for images that are normalised already there is engine.labels"
    if shape == (batch, 3, height, width):
        return "put the channels last: frames.permute(0, 2, 3, 1)"
    if (1, *shape) == expected:
        return "a single frame needs a batch dimension too: frames[None]"
    if shape == (*expected[:3], 4):
        return "leave out the fourth channel: frames[..., :3]"
    if len(shape) == 4 and shape[3] == 3:
        return "build one for that size and batch"
    return "bring them into that form, or build one for their size"
