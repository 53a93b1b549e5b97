"""A drawing of a network as SVG, for `hyperseg info --network --svg`: maps and patches to scale, weights as bars.

The encoder goes down on the left and the decoder up on the right, so that a level is in the row of its skip feature.
The file has no scripts and no fonts, and a background of its own, so it is readable on light and dark pages.
"""

import itertools
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from hyperseg._files import printable
from hyperseg.cli._network_text import channels, giga, megabytes, sides

if TYPE_CHECKING:
    from hyperseg.models.describe import Description, Level, Size

_WIDTH, _MARGIN = 1180, 24
_BACKGROUND, _INK, _QUIET = "#f7f9fb", "#1f2933", "#5b6675"
_ENCODER, _CONTEXT, _GENERATOR, _LEVEL = "#2f6f9f", "#5a4b9c", "#b3541e", "#2d8a57"
_PART_COLOURS = (_ENCODER, "#8db7dd", _CONTEXT, _GENERATOR, _LEVEL)  # in the order of Description.parts

# Columns: centres of the maps, left sides of texts, the patch, the line that the weights come along.
_ENCODER_X, _ENCODER_TEXT, _LEVEL_X, _LEVEL_TEXT, _PATCH_X, _BUS = 136, 262, 578, 704, 960, 1008
_LARGEST_MAP = (224, 118)  # width and height of the image
_PATCH = 48  # side of the largest patch
_BAR = 100  # length of the longest bar
_FIRST_ROW = 140  # from the top to the middle of the image's row


def network_svg(network: "Description") -> str:
    """Return the drawing as the text of an SVG file."""
    return _Drawing(network).text()


class _Drawing:
    def __init__(self, network: "Description"):
        self.network = network
        config = network.config
        height, width = network.padded_size
        self.scale = min(_LARGEST_MAP[0] / width, _LARGEST_MAP[1] / height)
        self.rows = self._rows()
        self.bottom = self.rows[-1] + 56
        self.height = self.bottom + 196
        title = f"{printable(config.name)} at {sides(network.size)}"
        self.svg = ElementTree.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {_WIDTH} {_number(self.height)}",
                "font-family": "Helvetica, Arial, sans-serif",
                "font-size": "13",
                "role": "img",
                "aria-label": f"{title}: encoder stages, signal, decoder levels with their patches and weights, costs",
            },
        )
        self._add("title", text=title)
        self._rectangle(0, 0, _WIDTH, self.height, _BACKGROUND, rx=12)
        self._title()
        self._encoder()
        self._signal()
        self._decoder()
        self._labels()
        self._costs()

    def text(self) -> str:
        """Return the file."""
        ElementTree.indent(self.svg)
        return ElementTree.tostring(self.svg, encoding="unicode") + "\n"

    def _rows(self) -> list[float]:
        """Return the middle of each row: the image's, then those of the stages."""
        heights = [self._drawn(self.network.padded_size)[1]] + [self._drawn(s.size)[1] for s in self.network.stages]
        rows = [float(_FIRST_ROW)]
        for above, below in itertools.pairwise(heights):
            rows.append(rows[-1] + max((above + below) / 2 + 22, 66))
        return rows

    def _drawn(self, size: "Size") -> tuple[float, float]:
        return self.scale * size[1], self.scale * size[0]

    # The parts, from left to right.

    def _title(self) -> None:
        network = self.network
        config, total = network.config, network.total()
        padded = "" if network.padded_size == network.size else f", padded to {sides(network.padded_size)}"
        self._text(_MARGIN, 38, printable(config.name), size=20, bold=True)
        line = f"{config.num_classes} classes, {sides(network.size)}{padded}"
        cost = f"{total.parameters / 1e6:.1f} M parameters, {giga(total.flops, 1)} GFLOP"
        weights = f"{megabytes(network.weights_per_frame):.1f} MB of weights (fp16) generated per frame"
        self._text(_WIDTH - _MARGIN, 38, f"{line}  ·  {cost}  ·  {weights}", _QUIET, anchor="end")

    def _encoder(self) -> None:
        network = self.network
        self._map(_ENCODER_X, self.rows[0], network.padded_size, "#8db7dd", "#2f6f9f")
        self._text(_ENCODER_TEXT, self.rows[0] - 4, "image", bold=True)
        self._text(_ENCODER_TEXT, self.rows[0] + 13, f"3 x {sides(network.padded_size)}", _QUIET, size=12)
        above = network.padded_size
        for row, before, stage in zip(self.rows[1:], self.rows, network.stages, strict=False):
            self._arrow(_ENCODER_X, before + self._drawn(above)[1] / 2 + 3, _ENCODER_X, row - self._half(stage.size))
            self._map(_ENCODER_X, row, stage.size, _ENCODER, _ENCODER)
            cost = stage.trunk + stage.skip
            self._text(_ENCODER_TEXT, row - 4, f"stride {stage.stride}", _ENCODER, bold=True)
            self._text(_ENCODER_TEXT + 62, row - 4, f"{stage.channels} x {sides(stage.size)}")
            counts = f"{_thousands(cost.parameters)} parameters, {giga(cost.flops, 2)} GFLOP"
            self._text(_ENCODER_TEXT, row + 13, counts, _QUIET, size=12)
            above = stage.size
        self._text(_MARGIN, 70, f"encoder {network.config.encoder}", _ENCODER, bold=True)

    def _half(self, size: "Size") -> float:
        return self._drawn(size)[1] / 2 + 4

    def _signal(self) -> None:
        network, y = self.network, self.bottom + 36
        signal = network.signal
        first = self.rows[-1] + self._half(network.stages[-1].size)
        self._arrow(_ENCODER_X, first, _ENCODER_X, y - 32)
        box = 150, 60
        self._box(_ENCODER_X - 76, y, *box, _ENCODER, "#e3eef6")
        self._text(_ENCODER_X, y - 6, "head map", _ENCODER, bold=True, anchor="middle")
        self._text(_ENCODER_X, y + 12, f"{signal.head_channels} x {sides(signal.size)}", size=12, anchor="middle")
        self._arrow(_ENCODER_X + 76, y, 284, y)
        self._box(286, y, 170, box[1], _CONTEXT, "#ece8f8")
        self._text(371, y - 6, f"context head ({signal.kind})", _CONTEXT, bold=True, anchor="middle")
        counts = f"{_thousands(signal.context.parameters)}, {giga(signal.context.flops, 2)} GFLOP"
        self._text(371, y + 12, counts, size=12, anchor="middle")
        self._arrow(458, y, 500, y)
        # The signal is drawn larger than the maps: each of its pixels is what one patch's weights come from.
        height, width = signal.size
        cell = min(128 / width, 60 / height)
        self._grid(502, y - cell * height / 2, signal.size, cell, _CONTEXT, "#d5cdf0")
        right = 502 + cell * width
        self._text(right + 10, y - 6, "signal", _CONTEXT, bold=True)
        shape = f"{signal.computed_channels} x {sides(signal.size)}"
        self._text(right + 10, y + 12, shape, size=12)
        self._arrow(right + 10 + 7 * len(shape), y, 778, y)
        self._box(780, y, 176, box[1], _GENERATOR, "#fbe9df")
        self._text(868, y - 6, "weight generators", _GENERATOR, bold=True, anchor="middle")
        generators = network.parts()["weight generators"]
        counts = f"{_thousands(generators.parameters)}, {giga(generators.flops, 2)} GFLOP"
        self._text(868, y + 12, counts, size=12, anchor="middle")
        top = self._row_of(len(network.levels) - 1)
        self._add("path", d=_path((958, y), (_BUS, y), (_BUS, top)), fill="none", stroke=_GENERATOR, stroke_width=2)

    def _row_of(self, level: int) -> float:
        """Return the row of a level, which is the one of its skip feature."""
        return self.rows[len(self.rows) - 1 - level]

    def _decoder(self) -> None:
        levels = self.network.levels
        most = max(level.weights_per_frame for level in levels)
        pixel = min(3.0, _PATCH / max(max(level.patch) for level in levels))
        top = self._row_of(len(levels) - 1) - 44
        self._text(_LEVEL_X - 112, 70, "decoder, divided into patches", _LEVEL, bold=True)
        self._text(_PATCH_X, top, "patch", _LEVEL, bold=True, anchor="middle")
        self._text(_BUS, top, "weights, MB per frame", _GENERATOR, bold=True)
        for i, level in enumerate(levels):
            row = self._row_of(i)
            drawn = self._drawn(level.size)
            self._skip_arrow(level, row, drawn)
            self._grid(_LEVEL_X - drawn[0] / 2, row - drawn[1] / 2, level.grid, self.scale * level.patch[1], _LEVEL,
                       "#cfe9da", self.scale * level.patch[0])  # fmt: skip
            if i:
                below = self._row_of(i - 1) - self._half(levels[i - 1].size)
                self._arrow(_LEVEL_X, below, _LEVEL_X, row + drawn[1] / 2 + 4)
            kind = "inverted residual" if level.hidden else "convolution 1x1"
            self._text(_LEVEL_TEXT, row - 13, f"level {i + 1}", _LEVEL, bold=True)
            self._text(_LEVEL_TEXT + 52, row - 13, f"{kind}, {sides(level.size)}")
            self._text(_LEVEL_TEXT, row + 4, f"{channels(level)} channels".replace("->", "→"), size=12)
            counts = f"{sides(level.grid)} patches, {giga(level.apply.flops)} GFLOP"
            self._text(_LEVEL_TEXT, row + 21, counts, _QUIET, size=12)
            self._patch(level, row, pixel)
            length = _BAR * level.weights_per_frame / most
            self._rectangle(_BUS, row - 9, length, 18, _GENERATOR, opacity=0.85)
            self._text(_BUS + length + 6, row + 5, f"{megabytes(level.weights_per_frame):.1f}", _GENERATOR, bold=True)
            self._text(_BUS + 8, row + 24, f"{level.weights_per_patch:,} per patch", _QUIET, size=12)

    def _skip_arrow(self, level: "Level", row: float, drawn: tuple[float, float]) -> None:
        start, end = _ENCODER_TEXT + 180, _LEVEL_X - drawn[0] / 2 - 5
        self._arrow(min(start, end - 16), row, end, row, _ENCODER, dash="5 4")
        if end - start > 48:
            self._text(start, row - 6, f"{level.skip_channels} ch.", _ENCODER, size=12)

    def _patch(self, level: "Level", row: float, pixel: float) -> None:
        """Draw a patch with its pixels, and with the halo of a 3x3 convolution as a dashed line."""
        height, width = (pixel * side for side in level.patch)
        self._grid(_PATCH_X - width / 2, row - height / 2, level.patch, pixel, _LEVEL, "#cfe9da")
        if level.hidden:
            self._rectangle(
                _PATCH_X - width / 2 - pixel, row - height / 2 - pixel, width + 2 * pixel, height + 2 * pixel, "none",
                stroke=_LEVEL, stroke_width=1, stroke_dasharray="3 2",
            )  # fmt: skip
        self._arrow(_BUS - 2, row, _PATCH_X + width / 2 + (pixel if level.hidden else 0) + 3, row, _GENERATOR)
        self._text(_PATCH_X, row + height / 2 + 15, sides(level.patch), _QUIET, size=11, anchor="middle")

    def _labels(self) -> None:
        """Draw what comes after the last level: labels of the image's size."""
        network = self.network
        finest = network.levels[-1]
        if len(network.levels) == len(self.rows):  # the last level is in the image's row
            return
        drawn, row = self._drawn(network.padded_size), self.rows[0]
        top = self._row_of(len(network.levels) - 1) - self._half(finest.size)
        self._map(_LEVEL_X, row, network.padded_size, "#eef1f4", _QUIET)
        cropped = "" if network.padded_size == network.size else ", cropped"
        self._text(_LEVEL_TEXT, row - 4, "labels", bold=True)
        text = f"{sides(network.size)}: logits upsampled, argmax{cropped}"
        self._text(_LEVEL_TEXT, row + 13, text, _QUIET, size=12)
        self._arrow(_LEVEL_X, top, _LEVEL_X, row + drawn[1] / 2 + 4)

    def _costs(self) -> None:
        """Draw the parts' shares of FLOPs and parameters as two bars with a legend."""
        total, parts = self.network.total(), self.network.parts()
        y, left, length = self.bottom + 96, 132, _WIDTH - 132 - _MARGIN
        for title, whole, values in (
            ("FLOPs", total.flops, [cost.flops for cost in parts.values()]),
            ("parameters", total.parameters, [cost.parameters for cost in parts.values()]),
        ):
            self._text(_MARGIN, y + 13, title, bold=True)
            x = float(left)
            for value, colour in zip(values, _PART_COLOURS, strict=True):
                share = value / whole
                self._rectangle(x, y, length * share, 18, colour)
                if share > 0.04:
                    self._text(x + length * share / 2, y + 13, f"{100 * share:.0f} %", "#ffffff", 12, anchor="middle")
                x += length * share
            y += 26
        x = float(left)
        for name, colour in zip(parts, _PART_COLOURS, strict=True):
            self._rectangle(x, y + 4, 12, 12, colour)
            self._text(x + 18, y + 14, name, size=12)
            x += 44 + 6 * len(name)
        finest = self.network.levels[-1]
        example = f"2+{finest.skip_channels}+{finest.previous_channels}: coordinates, skip, previous level"
        self._text(_WIDTH - _MARGIN, y + 14, f"{example}  ·  dashed: halo", _QUIET, size=12, anchor="end")

    # Shapes.

    def _map(self, x: float, y: float, size: "Size", fill: str, stroke: str) -> None:
        width, height = self._drawn(size)
        self._rectangle(x - width / 2, y - height / 2, width, height, fill, stroke=stroke, fill_opacity=0.75)

    def _grid(self, x: float, y: float, cells: "Size", width: float, stroke: str, fill: str, height: float = 0) -> None:
        """Draw rows x columns of cells, with thin lines if they are small."""
        height = height or width
        rows, columns = cells
        right, bottom = x + width * columns, y + height * rows
        self._rectangle(x, y, right - x, bottom - y, fill, stroke=stroke)
        lines = "".join(_path((x + width * i, y), (x + width * i, bottom)) for i in range(1, columns))
        lines += "".join(_path((x, y + height * i), (right, y + height * i)) for i in range(1, rows))
        thin = min(0.6, 0.18 * min(width, height))
        if lines and thin > 0.1:
            self._add("path", d=lines, fill="none", stroke=stroke, stroke_width=thin)

    def _box(self, left: float, y: float, width: float, height: float, stroke: str, fill: str) -> None:
        self._rectangle(left, y - height / 2, width, height, fill, stroke=stroke, rx=8)

    def _rectangle(self, x: float, y: float, width: float, height: float, fill: str, **more: Any) -> None:
        self._add("rect", x=x, y=y, width=width, height=height, fill=fill, **more)

    def _arrow(self, x0: float, y0: float, x1: float, y1: float, colour: str = _QUIET, dash: str | None = None) -> None:
        """Draw a line with a head; its direction is horizontal or vertical."""
        sign = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
        back = x1 - 6 * sign[0], y1 - 6 * sign[1]
        side = 3.5 * sign[1], 3.5 * sign[0]
        line = {"stroke_dasharray": dash} if dash else {}
        self._add("path", d=_path((x0, y0), back), fill="none", stroke=colour, stroke_width=1.4, **line)
        points = (x1, y1), (back[0] + side[0], back[1] + side[1]), (back[0] - side[0], back[1] - side[1])
        self._add("path", d=_path(*points) + "Z", fill=colour)

    def _text(self, x: float, y: float, text: str, fill: str = _INK, size: int = 13, bold: bool = False,
              anchor: str = "start") -> None:  # fmt: skip
        more = {"font_weight": "bold"} if bold else {}
        self._add("text", text, x=x, y=y, fill=fill, font_size=size, text_anchor=anchor, **more)

    def _add(self, tag: str, text: str | None = None, **attributes: Any) -> None:
        named = {
            name.replace("_", "-"): value if isinstance(value, str) else _number(value)
            for name, value in attributes.items()
        }
        ElementTree.SubElement(self.svg, tag, named).text = text


def _path(*points: tuple[float, float]) -> str:
    return "M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in points)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _thousands(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"
