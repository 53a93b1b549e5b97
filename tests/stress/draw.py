"""Random calls: operator, shapes, options, dtype, values, strides. A call follows from a seed and a number alone."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hyperseg.ops import _layout
from tests.ops import cases
from tests.ops.cases import LAYOUTS, Case, differentiable

OPERATORS = (
    "generate_weights",
    "patch_conv2d",
    "patch_inverted_residual",
    "patch_inverted_residual_batch_norm",
    "decoder_level",
    "decoder_level_argmax",
    "mbconv",
    "mbconv_chain",
    "stem",
    "normalise_frames",
    "pointwise_conv",
    "context_head",
    "upsample_argmax",
    "upsample_cross_entropy",
)


@dataclass
class Call:
    """A call of an operator.

    Attributes:
        args: in the order of the operator's schema.
        notes: what was drawn, for reports.
        grads: the positions of arguments that require gradients; none for a forward pass alone.
        grad_layout: memory layout of the gradient of the output.
        illegal: what makes the call illegal, or "".
        flush: whether denormal numbers are flushed to zero.
        threads: another number of threads, which must not change the result, or 0.
    """

    operator: str
    dtype: torch.dtype
    args: list
    notes: list[str] = field(default_factory=list)
    grads: tuple[int, ...] = ()
    grad_layout: str = "contiguous"
    illegal: str = ""
    flush: bool = False
    threads: int = 0

    def __str__(self) -> str:
        shapes = ", ".join(describe(a) for a in self.args)
        extra = [*self.notes]
        extra += [f"gradients of {self.grads} ({self.grad_layout})"] if self.grads else []
        extra += [f"illegal: {self.illegal}"] if self.illegal else []
        extra += ["denormals flushed"] if self.flush else []
        extra += [f"{self.threads} threads"] if self.threads else []
        return f"{self.operator}({shapes}) {'; '.join(extra)}"


def describe(value) -> str:
    if isinstance(value, Tensor):
        strides = "" if value.is_contiguous() else f" strides {tuple(value.stride())}"
        return f"{str(value.dtype)[6:]} {tuple(value.shape)}{strides}"
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return f"[{', '.join(map(describe, value))}]"
    return repr(value)


# ---------------------------------------------------------------------------------------------------------------------
# Shapes


def channels(r: random.Random) -> int:
    if r.random() < 0.6:
        return r.randint(1, 9)
    return r.choice((10, 12, 15, 16, 17, 20, 24, 31, 32, 33, 40, 47, 48, 49, 63, 64, 65, 70))


def side(r: random.Random, most: int = 6) -> int:
    return 1 if r.random() < 0.15 else r.randint(1, most)


def pair(r: random.Random, most: int) -> tuple[int, int]:
    return side(r, most), side(r, most)


def pixels(r: random.Random) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return a grid and the size of a patch."""
    if r.random() < 0.25:
        return pair(r, 2), (r.choice((1, 2, 5, 8, 13, 16, 17, 24)), r.choice((1, 3, 8, 15, 16, 32, 33)))
    return pair(r, 4), pair(r, 9)


def images(r: random.Random) -> int:
    return r.choice((1, 1, 1, 2, 2, 3, 5))


Draw = Callable[[random.Random], tuple[Callable, float]]  # -> how to build the arguments, and multiply-adds


def published(r: random.Random, operator: str) -> Callable:
    names = {case.name for case in cases.network_cases()}
    found = [c for c in cases.CASES if c.operator == operator and c.name in names]
    return r.choice(found).build


def draw_generators(r):
    parts = []
    for _ in range(r.choice((1, 1, 2, 3, 6))):
        groups = r.choice((1, 1, 2, 3, 4, 8, 16))
        rows = groups * r.choice((1, 2, 3, 7, 8, 9, 16, 17, 40))
        width = groups * r.choice((1, 2, 3, 4, 5, 8, 9))
        parts.append((r.choice((0, 0, 1, 3, 8)), width, groups, rows, r.randint(1, rows)))
    n, grid = images(r), pair(r, 9)
    channels_ = max(offset + width for offset, width, *_ in parts) + r.choice((0, 0, 1, 5))
    work = n * grid[0] * grid[1] * sum(width // groups * rows for _, width, groups, rows, _ in parts)
    return cases.generators(n, channels_, grid, tuple(parts)), work


def draw_conv(r):
    kernel = (r.choice((1, 1, 3, 3, 5, 7)), r.choice((1, 3, 3, 5)))
    if r.random() < 0.5:
        kernel = (kernel[0], kernel[0])
    dilation = (r.choice((1, 1, 1, 2, 3)), r.choice((1, 1, 1, 2, 3)))
    grid, patch = pixels(r)
    halo = [d * (k // 2) for d, k in zip(dilation, kernel, strict=True)]
    size = [g * p for g, p in zip(grid, patch, strict=True)]
    modes = ["zeros", "replicate"]
    modes += ["reflect"] * 3 * all(h < s for h, s in zip(halo, size, strict=True))
    modes += ["circular"] * all(h <= s for h, s in zip(halo, size, strict=True))
    groups = r.choice((1, 1, 1, 2, 3, 8))
    c, out = (channels(r), channels(r)) if groups == 1 else (groups * r.randint(1, 6), groups * r.randint(1, 6))
    n = images(r)
    work = n * size[0] * size[1] * c * out // groups * kernel[0] * kernel[1]
    bias = r.random() < 0.6
    return cases.conv(n, c, out, grid, patch, kernel, groups, dilation, r.choice(modes), bias), work


def block_shape(r):
    while True:
        grid, patch = pixels(r)
        if grid[0] * patch[0] > 1 and grid[1] * patch[1] > 1:
            return grid, patch


def draw_residual(r):
    grid, patch = block_shape(r)
    n, c, hidden, out = images(r), channels(r), channels(r), channels(r)
    work = n * grid[0] * (patch[0] + 2) * grid[1] * (patch[1] + 2) * hidden * (c + 9 + out)
    return cases.residual(n, c, hidden, out, grid, patch, r.choice(cases.HALOS), r.random() < 0.7), work


def draw_batch_norm(r):
    grid, patch = block_shape(r)
    n, c, hidden, out = images(r), channels(r), channels(r), channels(r)
    work = n * grid[0] * (patch[0] + 2) * grid[1] * (patch[1] + 2) * hidden * (c + 9 + out)
    eps = r.choice((1e-5, 1e-3, 0.1))
    return cases.batch_norm(n, c, hidden, out, grid, patch, r.choice(cases.HALOS), eps), work


def draw_level(r, most_out=None):
    hidden = 0 if r.random() < 0.4 else channels(r)
    grid, patch = block_shape(r) if hidden else pixels(r)
    h, w = grid[0] * patch[0], grid[1] * patch[1]
    n, skip, out = images(r), channels(r), channels(r)
    previous = 0 if r.random() < 0.25 else channels(r)
    size = r.choice((None, None, (h, w), (max(1, h // 2), max(1, w // 2)), pair(r, 9), (side(r, 20), side(r, 40))))
    signal = None
    inputs = 2 + skip + previous
    if r.random() < 0.5:
        groups, width, offset = r.choice((1, 1, 2, 4, 8)), r.choice((1, 2, 4, 8, 9)), r.choice((0, 0, 1, 8))
        rows = _layout.level_parameters(inputs, hidden, out)
        rows = -(-rows // groups) * groups + groups * r.choice((0, 0, 1))
        signal = (offset + groups * width + r.choice((0, 0, 1, 3)), offset, groups * width, groups, rows)
    spare = 0 if signal else r.choice((0, 0, 1, 3, 8))
    per_pixel = hidden * (inputs + 9 + out) if hidden else inputs * out
    work = n * grid[0] * (patch[0] + 2) * grid[1] * (patch[1] + 2) * per_pixel
    if signal:
        work += n * grid[0] * grid[1] * signal[4] * signal[2] // signal[3]
    return cases.level(n, skip, previous, out, hidden, grid, patch, size, r.choice(cases.HALOS), signal, spare), work


def draw_mbconv(r):
    size, stride = r.choice((1, 2, 3, 3, 3, 4, 5, 5, 6, 7)), r.choice((1, 1, 2, 2, 3, 4))
    add = r.random() < 0.35
    image = (r.choice((1, 2, 3, 7, 8, 9, 16, 17)), r.choice((1, 2, 3, 8, 15, 16, 17, 31, 33, 64)))
    if r.random() < 0.3:
        image = image[::-1]
    if add and size % 2 == 0:
        size += 1
    padding = (size // 2,) * 4
    if add:
        stride = 1
    else:
        padding = r.choice((padding, tuple(r.randint(0, size - 1) for _ in range(4))))
        lacking = max(size - s - sum(p) for s, p in zip(image, (padding[2:], padding[:2]), strict=True))
        padding = padding if lacking <= 0 else (size - 1,) * 4
    c, out, expand = channels(r), channels(r), r.random() < 0.75
    hidden = channels(r) * r.choice((1, 1, 3))
    n = images(r)
    inner = hidden if expand else c
    work = n * image[0] * image[1] * inner * (c * expand + size * size + out)
    nhwc = r.random() < 0.5
    if nhwc and r.random() < 0.6:
        c = 8 * max(1, c // 8)
    build = cases.mbconv(
        n, c, hidden, c if add else out, r.choice((1, 2, 3, 8, 33)), size, stride, padding, image, expand, add, nhwc
    )
    return build, work


def draw_chain(r):
    blocks, work = [], 0
    n, c, image, nhwc = images(r), channels(r), (r.randint(1, 20), r.randint(1, 34)), r.random() < 0.7
    if r.random() < 0.6:
        c = 8 * max(1, c // 8)
    for _ in range(r.randint(1, 5)):
        size, stride, expand = r.choice((1, 3, 3, 3, 5, 5, 7)), r.choice((1, 1, 1, 2, 3)), r.random() < 0.75
        add = stride == 1 and r.random() < 0.5
        out, hidden = c if add else channels(r), channels(r) * r.choice((1, 1, 3))
        squeezed = r.choice((1, 2, 4, 8, 33))
        blocks.append(cases.mbconv(n, c, hidden, out, squeezed, size, stride, None, image, expand, add, nhwc))
        work += n * image[0] * image[1] * (hidden if expand else c) * (c * expand + size * size + out)
        c, image = out, tuple((s - 1) // stride + 1 for s in image)
    kept = tuple(i for i in range(len(blocks)) if r.random() < 0.3)
    return cases.mbconv_chain(*blocks, kept=kept), work


def draw_stem(r):
    size = r.randint(1, 7) if r.random() < 0.5 else 3
    frame = pair(r, 20) if r.random() < 0.7 else (r.randint(1, 30), r.choice((1, 63, 64, 65, 130)))
    image = tuple(s + r.choice((0, 0, 1, 3, 9)) for s in frame)
    padding = r.choice(((0, 1, 0, 1), (1, 1, 1, 1), tuple(r.randint(0, size - 1) for _ in range(4))))
    padding = tuple(min(p, size - 1) for p in padding)
    lacking = max(size - s - sum(p) for s, p in zip(image, (padding[2:], padding[:2]), strict=True))
    padding = padding if lacking <= 0 else (size - 1,) * 4
    n, c, stride = images(r), channels(r), r.choice((1, 2, 2, 2, 3, 4))
    work = n * image[0] * image[1] * c * 3 * size * size / stride**2
    return cases.stem(n, c, size, stride, padding, frame, image, r.choice(sorted(LAYOUTS))), work


def draw_normalisation(r):
    n, frame = images(r), pair(r, 40)
    image = tuple(s + r.choice((0, 0, 1, 3, 9)) for s in frame)
    return cases.normalisation(n, frame, image, r.choice(sorted(LAYOUTS))), 3 * n * image[0] * image[1]


def draw_pointwise(r):
    n, work, convs = images(r), 0, []
    nhwc = r.random() < 0.5
    for _ in range(r.choice((1, 1, 2, 3, 5))):
        c, out, size = channels(r), channels(r), pair(r, 20)
        c = 8 * max(1, c // 8) if nhwc and r.random() < 0.6 else c
        convs.append((c, out, r.choice(("none", "relu", "silu")), size))
        work += n * c * out * size[0] * size[1]
    return cases.pointwise(*convs, n=n, nhwc=nhwc), work


def draw_context(r):
    n, c, levels, size = images(r), channels(r), r.choice((1, 1, 2, 3)), pair(r, 20)
    reduced, nhwc = r.choice((None, channels(r))), r.random() < 0.5
    c = 8 * max(1, c // 8) if nhwc and r.random() < 0.6 else c
    return cases.context(n, c, levels, reduced, size, nhwc), 4 * n * (reduced or c) ** 2 * size[0] * size[1]


def label_size(r, size):
    h, w = size
    return r.choice(((h, w), (2 * h, 2 * w), (2 * h, 2 * w), (4 * h, 4 * w), (2 * h - 1, 2 * w + 1), pair(r, 40)))


def draw_logits(r):
    n, classes, size = images(r), r.choice((1, 2, 5, 12, 19, 21, channels(r), 255, 256)), pair(r, 20)
    to = tuple(max(1, s) for s in label_size(r, size))
    return cases.logits(n, classes, size, to, r.random() < 0.2), n * classes * to[0] * to[1] * 8


def draw_loss(r):
    n, classes, size = images(r), r.choice((1, 2, 5, 12, 19, 21, channels(r))), pair(r, 16)
    to = tuple(max(1, s) for s in label_size(r, size))
    count = to[0] * to[1]
    bootstrap = r.choice((0, 0, 1, max(1, count // 4), max(1, count - 1), count, count + 1, r.randint(1, 2 * count)))
    build = cases.loss(
        n, classes, size, to, r.choice((0.0, 0.2, 0.9, 1.1)), bootstrap, r.choice((0.0, 0.3, 1.5, 9.0)),
        ties=r.random() < 0.1, scale=r.choice((0.1, 2.0, 60.0)),
        weighted=r.choice(("", "", "all", "none", "some" if classes > 1 else "all")),
        labels_dtype=r.choice((torch.int64, torch.uint8)),
    )  # fmt: skip
    return build, n * classes * count * 30


DRAWS: dict[str, Draw] = {
    "generate_weights": draw_generators,
    "patch_conv2d": draw_conv,
    "patch_inverted_residual": draw_residual,
    "patch_inverted_residual_batch_norm": draw_batch_norm,
    "decoder_level": draw_level,
    "decoder_level_argmax": draw_level,
    "mbconv": draw_mbconv,
    "mbconv_chain": draw_chain,
    "stem": draw_stem,
    "normalise_frames": draw_normalisation,
    "pointwise_conv": draw_pointwise,
    "context_head": draw_context,
    "upsample_argmax": draw_logits,
    "upsample_cross_entropy": draw_loss,
}

# ---------------------------------------------------------------------------------------------------------------------
# Values


def elements(r: random.Random, x: Tensor, most: int = 4) -> list[int]:
    return [r.randrange(x.numel()) for _ in range(r.randint(1, most))]


def with_elements(value: float) -> Callable:
    def change(r, x):
        flat = x.flatten().clone()
        flat[elements(r, x)] = value if r.random() < 0.6 else -value
        return flat.reshape(x.shape)

    return change


def near_overflow(r, x):
    top = torch.finfo(x.dtype).max
    # In 16 bits so near that a sum overflows; in float32 and float64 a few products do.
    return scaled(x, top ** r.choice((0.5, 0.9, 0.97 if x.dtype == torch.float16 else 0.8)))


def denormal(r, x):
    return scaled(x, torch.finfo(x.dtype).tiny * r.choice((0.01, 0.5, 4.0, 1e4)))


def scaled(x, factor):
    return (x.double() / x.double().abs().max().clamp(min=1e-300) * factor).to(x.dtype)


def sparse(r, x):
    keep = torch.rand(x.shape, generator=torch.Generator().manual_seed(r.getrandbits(32))) < 0.2
    return x * keep


def outlier(r, x):
    flat = x.flatten().clone()
    flat[elements(r, x, 1)] = torch.finfo(x.dtype).max ** r.choice((0.3, 0.6, 0.9))
    return flat.reshape(x.shape)


VALUES: dict[str, tuple[float, Callable]] = {
    "normal": (10, lambda r, x: x),
    "near overflow": (1, near_overflow),
    "denormal": (1, denormal),
    "small": (0.5, lambda r, x: scaled(x, 1e-3)),
    "mostly zero": (1, sparse),
    "zero": (0.5, lambda r, x: torch.zeros_like(x)),
    "infinite": (1, with_elements(float("inf"))),
    "not a number": (1, with_elements(float("nan"))),
    "all equal": (1, lambda r, x: torch.full_like(x, r.choice((0.0, 1.0, -1.0, 0.1, 6.0)))),
    "an outlier": (1, outlier),
    "whole numbers": (1, lambda r, x: x.double().mul(2).round().clamp(-8, 8).to(x.dtype)),
}

# ---------------------------------------------------------------------------------------------------------------------
# Memory layouts


def cut(x: Tensor, step: bool = False) -> Tensor:
    """Return the values as a slice of a larger tensor, whose other elements are NaN."""
    shape = [2 * s + 1 if step and i == x.dim() - 1 else s + 1 + i for i, s in enumerate(x.shape)]
    wide = torch.full(shape, 7 if not x.is_floating_point() else float("nan"), dtype=x.dtype)
    index = [
        slice(1, 2 * s + 1, 2) if step and i == x.dim() - 1 else slice(i % 2, s + i % 2) for i, s in enumerate(x.shape)
    ]
    wide[tuple(index)] = x
    return wide[tuple(index)]


def shifted(x: Tensor, by: int) -> Tensor:
    """Return the values at an address that is ``by`` elements after that of an allocation."""
    memory = torch.empty(x.numel() + by, dtype=x.dtype)
    view = memory[by:].view(x.shape)
    view.copy_(x)
    return view


def permuted(r: random.Random, x: Tensor) -> Tensor:
    order = list(range(x.dim()))
    r.shuffle(order)
    back = [order.index(i) for i in range(x.dim())]
    return x.permute(order).contiguous().permute(back)


def expanded(r: random.Random, x: Tensor) -> Tensor:
    """Return the values of one index along a dimension, for all indices."""
    i = r.randrange(x.dim())
    return x.narrow(i, 0, 1).expand(x.shape)


LAYOUT_NAMES = (
    "contiguous",
    "contiguous",
    "contiguous",
    "cut",
    "stepped",
    "shifted",
    "permuted",
    "channels last",
    "expanded",
)


def lay_out(r: random.Random, x: Tensor, name: str) -> Tensor:
    if x.dim() == 0 or name == "contiguous":
        return x
    if name == "channels last":
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    if name == "cut":
        return cut(x)
    if name == "stepped":
        return cut(x, step=True)
    if name == "shifted":
        return shifted(x.contiguous(), r.choice((1, 2, 3, 4, 5, 7, 8)))
    if name == "permuted":
        return permuted(r, x)
    return expanded(r, x)


# ---------------------------------------------------------------------------------------------------------------------
# Calls


def draw(
    seed: int, number: int, operators: tuple[str, ...], dtypes: tuple[torch.dtype, ...], work: float, flush: bool
) -> Call:
    """Return call ``number`` of the sequence of this seed.

    Args:
        operators, dtypes: to draw from.
        work: the largest number of multiply-adds.
        flush: whether some calls may flush denormal numbers to zero.
    """
    r = random.Random(f"{seed} {number}")
    operator, dtype = r.choice(operators), r.choice(dtypes)
    build, needed = DRAWS[operator](r)
    while needed > work:
        build, needed = DRAWS[operator](r)
    case = Case(operator, f"{seed}-{number}", build)
    call = Call(operator, dtype, list(case.arguments(dtype)))
    if operator == "patch_inverted_residual_batch_norm" and r.random() < 0.1:
        call.args[2:4] = [t.to(dtype) for t in call.args[2:4]]
    change_values(r, call)
    change_layouts(r, call)
    call.flush = r.random() < 0.1 and flush
    if not call.flush and r.random() < 0.15:
        call.threads = r.choice((2, 3, 4))
    positions = [i for i in differentiable(operator) if call.args[i] is not None]
    if positions and r.random() < 0.5:
        call.grads = tuple(positions) if r.random() < 0.7 else (r.choice(positions),)
        call.grad_layout = r.choice(
            ("contiguous", "contiguous", "expanded", "cut", "permuted", "channels last", "zero")
        )
    if r.random() < 0.1:
        make_illegal(r, call)
    return call


def floating(args: list) -> list[tuple[int, int | None]]:
    """Return the places of floating-point tensors: (position, index in a list or None)."""
    found: list[tuple[int, int | None]] = []
    for i, a in enumerate(args):
        if isinstance(a, Tensor) and a.is_floating_point():
            found.append((i, None))
        elif isinstance(a, list) and a and isinstance(a[0], Tensor):
            found += [(i, j) for j in range(len(a))]
    return found


def get(args: list, place: tuple[int, int | None]) -> Tensor:
    return args[place[0]] if place[1] is None else args[place[0]][place[1]]


def put(args: list, place: tuple[int, int | None], value) -> None:
    if place[1] is None:
        args[place[0]] = value
    else:
        args[place[0]][place[1]] = value


def change_values(r: random.Random, call: Call) -> None:
    places = floating(call.args)
    if call.operator == "upsample_cross_entropy":
        places = places[:1]  # class weights are finite and at least 0
    for place in r.sample(places, k=min(len(places), r.choice((0, 1, 1, 2)))):
        name = r.choices(list(VALUES), [weight for weight, _ in VALUES.values()])[0]
        if call.operator.endswith("batch_norm") and place[0] == 2 and name == "infinite":
            continue  # the difference of two infinite products, in some orders of the same computation
        if call.operator in ("stem", "normalise_frames") and place[0] in (1, 2) and name == "infinite":
            continue  # constants of a network: mean and deviation of its images
        if name != "normal":
            x = get(call.args, place)
            put(
                call.args,
                place,
                VALUES[name][1](r, x.contiguous()).contiguous(
                    memory_format=_layout.memory_format(x) if x.dim() == 4 else torch.contiguous_format
                ),
            )
            call.notes.append(f"argument {place[0]} {name}")


def change_layouts(r: random.Random, call: Call) -> None:
    for i, a in enumerate(call.args):
        if isinstance(a, Tensor) and r.random() < 0.35:
            call.args[i] = lay_out(r, a, r.choice(LAYOUT_NAMES))
        elif isinstance(a, list) and a and isinstance(a[0], Tensor):
            call.args[i] = [lay_out(r, t, r.choice(LAYOUT_NAMES)) for t in a]


def make_illegal(r: random.Random, call: Call) -> None:
    """Change one argument so that the operator must refuse the call."""
    call.grads, call.threads, call.notes = (), 0, []
    tensors = [i for i, a in enumerate(call.args) if isinstance(a, Tensor)]
    lists = [i for i, a in enumerate(call.args) if isinstance(a, list) and isinstance(a[0], Tensor)]
    i = r.choice(tensors or lists)
    x = call.args[i] if tensors else call.args[i][0]
    changes = {
        "integers": lambda: x.float() if not x.is_floating_point() else x.int(),
        "a dimension less": lambda: x.select(0, 0),
        "a dimension more": lambda: x[None],
        "empty": lambda: x[:0],
        "a string": lambda: "x",
        "a list": lambda: [x],
        "another device": lambda: x.to("meta"),
    }
    numbers = [j for j, a in enumerate(call.args) if type(a) is int]
    name = r.choice([*changes, "a number"])
    if call.operator in ("upsample_argmax",) and name == "another device":
        name = "empty"
    if name == "a number" and numbers:
        i = r.choice(numbers)
        value = r.choice((-1, -(2**40), 2.5, None, "2"))
        legal_below_zero = call.operator == "upsample_cross_entropy" and i == 3
        call.args[i] = "2" if legal_below_zero else value
    else:
        name = name if name in changes else "empty"
        put(call.args, (i, None if tensors else 0), changes[name]())
    call.illegal = f"argument {i}: {name}"
