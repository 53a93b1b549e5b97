"""A network's numbers as aligned text, for `hyperseg info --network`."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hyperseg._files import printable

if TYPE_CHECKING:
    from hyperseg.models.describe import Cost, Description, Level

_BAR = 30  # characters of a bar of 100 %


def network_lines(network: "Description") -> Iterator[str]:
    """Yield the lines: image, encoder, signal, decoder levels, output, and the sums."""
    config, signal = network.config, network.signal
    padded = "" if network.padded_size == network.size else f", padded to {sides(network.padded_size)}"
    title = f"{config.name}: {config.num_classes} classes ({config.dataset})"
    yield f"{printable(title)}, image 3 x {sides(network.size)}{padded}"
    yield ""
    rows = [
        (f"  stage {i}", f"{s.stride}", f"{s.channels}", sides(s.size), f"{s.skip_channels}", *_cost(s.trunk + s.skip))
        for i, s in enumerate(network.stages, start=1)
    ]
    head = ("  head map", "32", f"{signal.head_channels}", sides(signal.size), "", *_cost(signal.head))
    computed = f"{signal.computed_channels}", sides(signal.size), "", *_cost(signal.context)
    head_title = ("encoder " + config.encoder, "stride", "channels", "map", "skip", "parameters", "GFLOP")
    context = (f"context head ({signal.kind}) -> signal", "32", *computed)
    yield from _table([head_title, *rows, head, context], left=1)
    if signal.computed_channels < signal.channels:
        yield (
            f"  The whole signal has {signal.channels} channels. The generators read the first "
            f"{signal.computed_channels} at most, so inference computes no others."
        )
    for part, count in network.unread_parameters.items():
        if count:
            yield f"  Inference does not read {count:,} parameters of the {part}."
    yield ""
    yield from _table(list(_level_rows(network.levels)), left=2)
    yield f"  A patch has weights of its own; all are generated anew for every frame: {_weights(network)}."
    if any(level.shares_generator for level in network.levels):
        shared = [str(i) for i, level in enumerate(network.levels, start=1) if level.shares_generator]
        yield f"  Levels {' and '.join(shared)} share a generator."
    yield ""
    yield output_line(network)
    yield ""
    yield from _sums(network)


def _level_rows(levels: "Sequence[Level]") -> Iterator[tuple[str, ...]]:
    yield (
        *("", "xy+skip+previous=in", "", "", "patches of", "weights", "weights"),
        *("MB in", "generator's", "generate", "apply"),
    )
    yield (
        *("decoder", "-> hidden -> out", "kernel", "map", "pixels", "per patch", "per frame"),
        *("fp16", "parameters", "GFLOP", "GFLOP"),
    )
    for i, level in enumerate(levels, start=1):
        yield (
            f"  level {i}",
            channels(level),
            sides((level.kernel_size, level.kernel_size)),
            sides(level.size),
            f"{sides(level.grid)} of {sides(level.patch):>5}",
            f"{level.weights_per_patch:,}",
            f"{level.weights_per_frame:,}",
            f"{megabytes(level.weights_per_frame):.2f}",
            f"{level.generator.parameters:,}",
            giga(level.generator.flops),
            giga(level.apply.flops),
        )


def channels(level: "Level") -> str:
    """Return the channels of a level: coordinates, skip and previous output, as many hidden ones, and its output's."""
    sources = [2, level.skip_channels] + [level.previous_channels] * (level.previous_channels > 0)
    hidden = f" -> {level.hidden}" if level.hidden else ""
    return f"{'+'.join(map(str, sources))}={level.in_channels}{hidden} -> {level.out_channels}"


def output_line(network: "Description") -> str:
    """Return what happens after the last level."""
    logits = network.levels[-1]
    upsampled = "" if logits.size == network.padded_size else f"upsampled to {sides(network.padded_size)}, "
    cropped = "" if network.padded_size == network.size else f", cropped to {sides(network.size)}"
    return f"logits {logits.out_channels} x {sides(logits.size)} -> {upsampled}argmax{cropped} -> labels"


def _sums(network: "Description") -> Iterator[str]:
    total = network.total()
    rows = [("", "parameters", "%", "GFLOP", "%", "")]
    for name, cost in network.parts().items():
        share = cost.flops / total.flops
        parameters = 100 * cost.parameters / total.parameters
        bar = "#" * round(_BAR * share)
        rows.append((f"  {name}", *_cost(cost)[:1], f"{parameters:.1f}", giga(cost.flops), f"{100 * share:.1f}", bar))
    rows.append(("  total", *_cost(total)[:1], "100.0", giga(total.flops), "100.0", ""))
    yield from _table(rows, left=1, last_left=True)
    yield "  FLOPs as torch's FlopCounterMode counts them: two per multiply-add of convolutions, none of resizing."


def _table(rows: "Sequence[Sequence[str]]", left: int, last_left: bool = False) -> Iterator[str]:
    """Yield aligned rows. The first `left` columns are aligned left, so is the last with `last_left`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            f"{cell:<{width}}" if i < left or (last_left and i == len(row) - 1) else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _weights(network: "Description") -> str:
    count = network.weights_per_frame
    return f"{count:,} values, {megabytes(count):.1f} MB in fp16"


def _cost(cost: "Cost") -> tuple[str, str]:
    return f"{cost.parameters:,}", giga(cost.flops)


def sides(size: tuple[int, int]) -> str:
    """Return HEIGHTxWIDTH."""
    return f"{size[0]}x{size[1]}"


def megabytes(values: int) -> float:
    """Return the megabytes of 16-bit floats."""
    return 2 * values / 1e6


def giga(flops: int, digits: int = 3) -> str:
    """Return FLOPs in units of 10^9."""
    return f"{flops / 1e9:.{digits}f}"
