"""Arguments of operators for checks: a case builds them in float64 from a seed, and rounds them to a dtype.

The verification (``cases.py``) and the tests (``tests/ops/cases.py``) list their cases with these builders.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperseg.ops import _layout, reference

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """One call of an operator.

    Attributes:
        build: Makes the arguments from a random generator.
        dtypes: The dtypes in which all outputs can be compared.
    """

    operator: str
    name: str
    build: Callable[[torch.Generator], tuple]
    dtypes: tuple[torch.dtype, ...] = DTYPES

    @property
    def id(self) -> str:
        return f"{self.operator}-{self.name}"

    def arguments(self, dtype: torch.dtype, device: str = "cpu") -> tuple:
        """Return the operator's arguments. Every call returns the same values."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.id.encode()))
        wide = torch.promote_types(dtype, torch.float32)
        # Affine parameters and class weights stay float32 if the maps are 16-bit floats.
        precise = {
            "patch_inverted_residual_batch_norm": (2, 3),
            "stem": (1, 2),
            "normalise_frames": (1, 2),
            "upsample_cross_entropy": (2,),
        }
        kept = precise.get(self.operator, ())
        values = enumerate(self.build(generator))
        return tuple(convert(v, wide if i in kept else dtype, device) for i, v in values)


def convert(value, dtype: torch.dtype | None = None, device: str | None = None):
    """Convert floating-point tensors, also in lists, to ``dtype``, and all tensors to ``device``.

    A view keeps its strides. Other values are returned unchanged.
    """
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [convert(v, dtype, device) for v in value]
    if not isinstance(value, Tensor):
        return value
    if value._base is not None:
        return convert(value._base, dtype, device).as_strided(value.shape, value.stride(), value.storage_offset())
    return value.to(device=device, dtype=dtype if value.is_floating_point() else None)


def double(args: tuple) -> tuple:
    """Return the same (rounded) arguments in float64 on the CPU."""
    return tuple(convert(a, torch.float64, "cpu") for a in args)


def outputs(result) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def flat(result) -> list[Tensor]:
    """Return all tensors of an operator's output, also those in lists, as one list."""
    found: list[Tensor] = []
    for entry in [result] if isinstance(result, Tensor) else result:
        found += [entry] if isinstance(entry, Tensor) else entry
    return found


def backward_arguments(case: Case, dtype: torch.dtype, device: str) -> tuple:
    """Return arguments of ``<operator>_backward`` in this dtype, the gradient of the first output first."""
    args = case.arguments(dtype, device)
    result = outputs(getattr(reference, case.operator)(*args))
    generator = torch.Generator().manual_seed(len(case.id))
    grad = torch.randn(result[0].shape, generator=generator, dtype=torch.float64)
    grad = convert(grad, result[0].dtype, device)
    if case.operator == "upsample_cross_entropy":
        return grad, *args[:2], result[1]
    return grad, *args, *result[1:]


# ---------------------------------------------------------------------------------------------------------------------
# Arguments


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def block_weights(g: torch.Generator, lead: tuple, channels: int, hidden: int, out: int) -> Tensor:
    """Return parameters of an inverted residual with activations of order one, so that ReLU6 clamps some of them."""
    parts = [(channels * hidden, channels / 6), (9 * hidden, 3), (hidden * out, hidden / 2)]
    return torch.cat([normal(g, *lead, n) / fan**0.5 for n, fan in parts], -1)


def level_weights(g: torch.Generator, lead: tuple, channels: int, hidden: int, out: int) -> Tensor:
    if hidden:
        return block_weights(g, lead, channels, hidden, out)
    return normal(g, *lead, channels * out) / channels**0.5


def conv(
    n=2, c=3, out=4, grid=(2, 3), patch=(2, 2), kernel=(3, 3), groups=1, dilation=(1, 1), mode="reflect", bias=True
):
    def build(g):
        fan = c // groups * kernel[0] * kernel[1]
        x = normal(g, n, c, grid[0] * patch[0], grid[1] * patch[1])
        weights = normal(g, n, *grid, out * fan) / fan**0.5
        return x, weights, normal(g, out) if bias else None, out, list(kernel), groups, list(dilation), mode

    return build


def residual(n=2, c=3, hidden=5, out=4, grid=(2, 3), patch=(2, 2), halo="own", bias=True):
    def build(g):
        x = normal(g, n, c, grid[0] * patch[0], grid[1] * patch[1])
        weights = block_weights(g, (n, *grid), c, hidden, out)
        shift = normal(g, 2 * hidden + out) if bias else None
        return x, weights, shift, hidden, out, halo

    return build


def batch_norm(n=2, c=3, hidden=5, out=4, grid=(2, 3), patch=(2, 2), halo="own", eps=1e-5, group=""):
    def build(g):
        x, weights, _, *rest = residual(n, c, hidden, out, grid, patch, halo, bias=False)(g)
        width = 2 * hidden + out
        return x, weights, 1 + 0.2 * normal(g, width), 0.5 + 0.5 * normal(g, width), *rest, eps, group

    return build


def generators(n=2, channels=12, grid=(2, 3), parts=((0, 12, 1, 10, 10),)):
    """``parts``: (offset, channels, groups, rows, size) of each generator."""

    def build(g):
        signal = normal(g, n, channels, *grid)
        tensors = [normal(g, rows, width // groups) / (width / groups) ** 0.5 for _, width, groups, rows, _ in parts]
        offsets, _, groups, _, sizes = map(list, zip(*parts, strict=True))
        return signal, tensors, offsets, groups, sizes

    return build


def level(
    n=2, skip=3, previous=4, out=5, hidden=0, grid=(2, 3), patch=(4, 4), size=None, halo="own", signal=None, spare=0
):
    """Build a decoder level, from a signal if one is described, else from weights.

    Args:
        size: Size of the previous map, by default half.
        signal: (channels, offset, width, groups, rows).
        spare: The weights are a slice of a wider tensor with this many more parameters on each side.
    """

    def build(g):
        h, w = grid[0] * patch[0], grid[1] * patch[1]
        before = normal(g, n, previous, *(size or ((h + 1) // 2, (w + 1) // 2))) if previous else None
        inputs = 2 + skip + previous
        args = normal(g, n, skip, h, w), before
        shift = normal(g, 2 * hidden + out)
        if signal is None:
            weights = level_weights(g, (n, *grid), inputs, hidden, out)
            if spare:
                wide = torch.full((*weights.shape[:3], weights.shape[3] + 2 * spare), torch.nan, dtype=weights.dtype)
                wide[..., spare:-spare] = weights
                weights = wide[..., spare:-spare]
            return *args, None, None, weights, shift, 0, 1, out, hidden, halo
        channels, offset, width, groups, rows = signal
        # The rows are scaled like the weights, so that the block's activations are of order one.
        generator = torch.zeros(rows, width // groups, dtype=torch.float64)
        size_ = _layout.level_parameters(inputs, hidden, out)
        generator[:size_] = level_weights(g, (width // groups,), inputs, hidden, out).T / (width / groups) ** 0.5
        generator[size_:] = normal(g, rows - size_, width // groups)
        return *args, normal(g, n, channels, *grid), generator, None, shift, offset, groups, out, hidden, halo

    return build


def mbconv(
    n=2, c=8, hidden=48, out=8, squeezed=3, size=3, stride=1, padding=None, image=(9, 11), expand=True, add=False,
    nhwc=False,
):  # fmt: skip
    def build(g):
        inner = hidden if expand else c
        x = normal(g, n, c, *image)
        return (
            x.contiguous(memory_format=torch.channels_last) if nhwc else x,
            normal(g, inner, c) / c**0.5 if expand else None,
            normal(g, inner) if expand else None,
            normal(g, inner, size, size) / size,
            normal(g, inner),
            normal(g, squeezed, inner),
            normal(g, squeezed),
            normal(g, inner, squeezed) / squeezed**0.5,
            normal(g, inner),
            normal(g, out, inner) / inner**0.5,
            normal(g, out),
            stride,
            list(padding or [size // 2] * 4),
            add,
        )

    return build


def mbconv_chain(*blocks: Callable[[torch.Generator], tuple], kept: tuple[int, ...] = ()):
    """``blocks``: builders of `mbconv`, each for the output of the one before; ``kept``: as the function takes it."""

    def build(g):
        calls = [block(g) for block in blocks]
        return (
            calls[0][0],
            [t for call in calls for t in call[1:11] if t is not None],
            [int(call[1] is not None) for call in calls],
            [call[11] for call in calls],
            [side for call in calls for side in call[12]],
            [int(call[13]) for call in calls],
            [int(i in kept or i == len(calls) - 1) for i in range(len(calls))],
        )

    return build


def stem(n=2, c=8, size=3, stride=2, padding=(0, 1, 0, 1), frame=(9, 13), image=None, layout="dense"):
    """``image``: (height, width) of the padded image; ``layout``: memory layout of the frames, a key of LAYOUTS."""

    def build(g):
        mean, std = (torch.tensor(v, dtype=torch.float64) * 255 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        frames = torch.randint(256, (n, *frame, 3), generator=g, dtype=torch.uint8)
        return (
            LAYOUTS[layout](frames),
            1 / std,
            -mean / std,
            normal(g, c, 3, size, size) / (3**0.5 * size),
            normal(g, c),
            *(image or frame),
            stride,
            list(padding),
        )

    return build


def normalisation(n=2, frame=(9, 13), image=None, layout="dense"):
    """``image``, ``layout``: as of :func:`stem`."""

    def build(g):
        frames, scale, shift = stem(n, 1, frame=frame, layout=layout)(g)[:3]
        return frames, scale, shift, normal(g, 1), *(image or frame)

    return build


def pointwise(*convs, n=2, size=(5, 7), nhwc=False):
    """``convs``: (channels, outputs, activation, size of the map or nothing) of each."""

    def build(g):
        xs, weights, biases = [], [], []
        for c, out, _, *other in convs:
            x = normal(g, n, c, *(other or [size])[0])
            xs.append(x.contiguous(memory_format=torch.channels_last) if nhwc else x)
            weights.append(normal(g, out, c) / c**0.5)
            biases.append(normal(g, out))
        return xs, weights, biases, [conv[2] for conv in convs]

    return build


def context(n=2, c=6, levels=1, reduced: int | None = 4, size=(6, 8), nhwc=False):
    """``reduced``: channels after ``reduce``; None for the context of v0_1."""

    def build(g):
        x = normal(g, n, c, *size)
        kept = reduced or c
        down = [normal(g, kept, kept, 2, 2) / (2 * kept**0.5) for _ in range(levels)]
        if nhwc:
            x, *down = (t.contiguous(memory_format=torch.channels_last) for t in (x, *down))
        return (
            x,
            normal(g, kept, c) / c**0.5 if reduced else None,
            normal(g, kept) if reduced else None,
            down,
            [normal(g, kept) for _ in range(levels)],
            [normal(g, kept, 2 * kept) / (2 * kept) ** 0.5 for _ in range(levels)],
            [normal(g, kept) for _ in range(levels)],
        )

    return build


def channels_last(build: Callable[[torch.Generator], tuple], *positions: int):
    """Build the same arguments with the maps at these positions in channels-last memory."""

    def convert_maps(g):
        args = list(build(g))
        for i in positions:
            args[i] = args[i].contiguous(memory_format=torch.channels_last)
        return tuple(args)

    return convert_maps


def cut_from_larger(frames: Tensor) -> Tensor:
    """Return a crop of larger frames with a fourth channel. The values outside the crop are 255."""
    n, h, w, _ = frames.shape
    wide = torch.full((n, h + 3, w + 5, 4), 255, dtype=torch.uint8)
    view = wide[:, 1 : h + 1, 2 : w + 2, :3]
    view.copy_(frames)
    return view


LAYOUTS = {
    "dense": lambda frames: frames,
    "cut": cut_from_larger,
    "planar": lambda frames: frames.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "transposed": lambda frames: frames.transpose(1, 2).contiguous().transpose(1, 2),
    "expanded": lambda frames: frames[:1].expand_as(frames),
}


def logits(n=2, classes=5, size=(6, 8), to=(12, 16), whole=False):
    """``whole``: small whole numbers. Every dtype interpolates them exactly at a ratio of two, and many of them tie."""

    def build(g):
        values = normal(g, n, classes, *size) * 2
        return values.round().clamp(-7, 7) if whole else values, *to

    return build


def loss(
    n=2,
    classes=5,
    size=(5, 7),
    to=(11, 13),
    ignored=0.2,
    bootstrap=0,
    threshold=0.3,
    *,
    ties=False,
    scale=2.0,
    weighted="",
    ignore_index=255,
    labels_dtype=torch.int64,
    strided=False,
):
    """``weighted``: "" for no class weights, "all", "some" with a 0 among them, "none" of 0 only."""

    def build(g):
        values = torch.zeros(n, classes, *size, dtype=torch.float64) if ties else normal(g, n, classes, *size) * scale
        labels = torch.randint(classes, (n, *to), generator=g)
        labels[torch.rand(n, *to, generator=g) < ignored] = ignore_index
        labels = labels.to(labels_dtype)
        weight = torch.rand(classes, 2, generator=g, dtype=torch.float64) * 3 + 0.1
        if weighted in ("some", "none"):
            weight[1 if weighted == "some" else slice(None)] = 0
        weight = weight[:, 1] if strided else weight[:, 1].clone()
        if strided:
            values = values.repeat(1, 2, 1, 1).permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)[:, ::2]
            labels = labels.repeat(1, 1, 2).permute(2, 0, 1).contiguous().permute(1, 2, 0)[:, :, ::2]
        return values, labels, weight if weighted else None, ignore_index, bootstrap, threshold

    return build
