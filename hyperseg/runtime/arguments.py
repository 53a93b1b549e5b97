"""Validation of what users give to an engine; the messages say what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperseg.models.hyperseg import HyperSeg
from hyperseg.ops._arguments import LARGEST, as_int, describe

MODES = ("eager", "compile", "cudagraph")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_has_values(model: HyperSeg) -> None:
    """Require a network whose parameters have values.

    Raises:
        ValueError: its parameters are on the meta device.
    """
    if any(p.is_meta for p in (*model.parameters(), *model.buffers())):
        raise ValueError(
            "The network has parameters on the meta device, which have no values; load some with "
            "model.load_state_dict(state, assign=True), or create it outside torch.device('meta')."
        )


def check_settings(size: Any, dtype: Any, batch: Any, mode: Any) -> tuple[tuple[int, int], int]:
    """Validate arguments of ``build_engine``, including types that annotations already exclude.

    Returns:
        size and batch as Python integers.

    Raises:
        ValueError: one of them is out of range or of a wrong type.
    """
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
        number = as_int(size)
        square = "" if number is None else f"; for a square, size=({number}, {number})"
        raise ValueError(f"size must be (height, width) of the frames, got {describe(size)}{square}.")
    height, width, count = (as_int(value) for value in (*size, batch))
    if height is None or width is None or count is None:
        raise ValueError(f"size and batch must be integers, got {describe(size)} and {describe(batch)}.")
    if min(height, width, count) < 1:
        raise ValueError(f"size and batch must be positive, got {height}x{width} and {count}.")
    if max(height, width, count) > LARGEST:
        raise ValueError(f"size and batch must be 2^24 at most, got {height}x{width} and {count}.")
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        named = f"; give dtype=torch.{dtype}" if isinstance(dtype, str) and dtype in map(name_of, DTYPES) else ""
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {describe(dtype)}{named}.")
    if not isinstance(mode, str) or mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {describe(mode)}.")
    return (height, width), count


@dataclass(frozen=True)
class Taker:
    """How messages name what takes frames, say how to get another, and where images that are normalised go."""

    name: str = "This engine"
    another: str = "build one"
    normalised: str = "; for images that are normalised already there is engine.labels"


def check_frames(
    frames: Any,
    size: tuple[int, int],
    batch: int | None,
    device: torch.device,
    taker: Taker | None = None,
) -> None:
    """Require a uint8 tensor ``[batch, H, W, 3]`` on ``device`` or in host memory.

    Args:
        batch: None where any number of frames is taken.
        taker: what takes the frames; an engine by default.

    Raises:
        TypeError: not a tensor.
        ValueError: another dtype, shape or device.
    """
    taker = taker or Taker()
    takes = f"[{batch or 'N'}, {size[0]}, {size[1]}, 3]"
    if not isinstance(frames, Tensor):
        raise TypeError(
            f"{taker.name} takes a torch.Tensor of uint8 frames {takes} (RGB), got {_other(frames, 'frames')}."
        )
    count = batch or (max(len(frames), 1) if frames.dim() == 4 else 1)
    expected = (count, *size, 3)
    if frames.dtype != torch.uint8 or tuple(frames.shape) != expected:
        raise ValueError(
            f"{taker.name} takes uint8 frames {takes} (RGB), got {name_of(frames.dtype)} {list(frames.shape)}; "
            f"{_advice(frames, expected, taker)}."
        )
    if frames.device != device and frames.device.type != "cpu":
        raise ValueError(
            f"{taker.name} takes frames on {device} or in host memory, got frames on {frames.device}; move them there, "
            f"or {taker.another} for that device."
        )
    if frames.layout != torch.strided:
        raise ValueError(f"{taker.name} takes dense frames, got {frames.layout}; call .to_dense().")


def check_frame(frame: Any, size: tuple[int, int]) -> None:
    """Require a uint8 tensor ``[H, W, 3]`` of this size in host memory.

    Raises:
        TypeError: not a tensor.
        ValueError: another dtype, shape or device.
    """
    expected = (*size, 3)
    if not isinstance(frame, Tensor):
        raise TypeError(f"A pipeline takes uint8 frames {list(expected)} (RGB), got {_other(frame, 'frame')}.")
    if frame.dtype != torch.uint8 or tuple(frame.shape) != expected:
        single = "single frames, without a batch dimension" if frame.dim() == 4 else "frames of its engine's size"
        raise ValueError(
            f"A pipeline takes uint8 frames {list(expected)} (RGB), got {name_of(frame.dtype)} {list(frame.shape)}; "
            f"give {single}."
        )
    if frame.device.type != "cpu" or frame.layout != torch.strided:
        raise ValueError(
            f"A pipeline takes dense frames in host memory, got {frame.layout} on {frame.device}; frames on a GPU go "
            "to the engine itself."
        )


def check_images(images: Any, expected: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Require images of shape ``expected``, ``[N, 3, H, W]``, of this dtype and kind of device.

    Raises:
        TypeError: not a tensor.
        ValueError: another dtype, shape or device.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"This engine takes a torch.Tensor of images {list(expected)}, got {_other(images, 'images')}.")
    if tuple(images.shape) != expected or images.dtype != dtype or images.device.type != device.type:
        raise ValueError(
            f"This engine takes images {list(expected)} {name_of(dtype)} on {device}, got "
            f"{list(images.shape)} {name_of(images.dtype)} on {images.device}; build one for these."
        )
    if images.layout != torch.strided:
        raise ValueError(f"This engine takes dense images, got {images.layout}; call .to_dense().")


def name_of(dtype: torch.dtype) -> str:
    """Return ``"float16"`` for ``torch.float16``."""
    return str(dtype).removeprefix("torch.")


def _other(value: Any, name: str) -> str:
    """Return the type of something that is not a tensor and, for an array, how to make one of it."""
    kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
    return f"{kind}; convert an array with torch.from_numpy({name})" if kind == "numpy.ndarray" else kind


def _advice(frames: Tensor, expected: tuple[int, ...], taker: Taker) -> str:
    """Return how to correct the first thing that is wrong with the frames."""
    shape, (batch, height, width, _) = tuple(frames.shape), expected
    if frames.dtype != torch.uint8:
        return f"give the pixels as they are, 0 to 255{taker.normalised}"
    if shape == (batch, 3, height, width):
        return "put the channels last: frames.permute(0, 2, 3, 1)"
    if (1, *shape) == expected:
        return "a single frame needs a batch dimension too: frames[None]"
    if shape == (*expected[:3], 4):
        return "leave out the fourth channel: frames[..., :3]"
    if len(shape) == 4 and shape[3] == 3:
        return f"{taker.another} for that size and batch"
    return f"bring them into that form, or {taker.another} for their size"
