"""Draw the pictures of docs/kernels/README.md.

    python -m tools.drawings

writes docs/images/kernel-*.svg; a test compares them.
"""

import random
import sys
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"

INK, GREY, PAPER = "#1f2933", "#5b6675", "#f7f9fb"
BLUE, VIOLET, ORANGE, GREEN = "#2f6f9f", "#5a4b9c", "#b3541e", "#2d8a57"
PALE = {BLUE: "#e3eef6", VIOLET: "#efe7fb", ORANGE: "#fbe9dd", GREEN: "#e8f3ec"}


class Drawing:
    """An SVG picture, element by element."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, '
            f'sans-serif" font-size="14" role="img" aria-label="{escape(title)}">',
            '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0L8 4L0 8Z" fill="{GREY}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="12" fill="{PAPER}"/>',
        ]

    def __str__(self) -> str:
        return "\n".join([*self._parts, "</svg>", ""])

    def rect(self, x: float, y: float, w: float, h: float, fill: str, stroke: str = "none", **more: object) -> None:
        """Add a rectangle. Other attributes are keywords, with _ for -."""
        extra = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in more.items())
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{fill}" stroke="{stroke}"{extra}/>'
        )

    def text(self, x: float, y: float, *lines: str, color: str = INK, size: int = 13, anchor: str = "middle") -> None:
        """Add lines of text; a line that begins with * is bold."""
        for number, line in enumerate(lines):
            weight = ' font-weight="bold"' if line.startswith("*") else ""
            self._parts.append(
                f'<text x="{x:g}" y="{y + number * (size + 4):g}" text-anchor="{anchor}" fill="{color}" '
                f'font-size="{size}"{weight}>{escape(line.lstrip("*"))}</text>'
            )

    def arrow(self, path: str, color: str = GREY, dashed: bool = False) -> None:
        """Add a line that ends in a point."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<path d="{path}" fill="none" stroke="{color}" stroke-width="1.6" marker-end="url(#a)"{dash}/>'
        )

    def box(self, x: float, y: float, w: float, h: float, color: str, *lines: str) -> None:
        """Add a box with lines of text in its middle."""
        self.rect(x, y, w, h, PALE[color], color, rx=8)
        self.text(x + w / 2, y + h / 2 + 5 - 8.5 * (len(lines) - 1), *lines, color=color)

    def grid(self, x: float, y: float, rows: int, columns: int, cell: float, fills: Iterable[str]) -> None:
        """Add cells with white lines between them, row by row."""
        for number, fill in enumerate(fills):
            row, column = divmod(number, columns)
            self.rect(x + column * cell, y + row * cell, cell, cell, fill, "#ffffff")
        self.rect(x, y, columns * cell, rows * cell, "none", GREY)

    def kept(self, x: float, y: float, w: float, h: float, label: str) -> None:
        """Add a dashed frame around all that stays on the chip."""
        self.rect(x, y, w, h, "#ffffff", GREY, rx=10, stroke_dasharray="6 5")
        self.text(x + 14, y + 22, label, color=GREY, anchor="start")


def shades(color: str, count: int, seed: int) -> list[str]:
    """Return mixtures of a colour with white."""
    source = random.Random(seed)
    channels = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    mixed = []
    for _ in range(count):
        part = source.uniform(0.25, 0.85)
        mixed.append("#" + "".join(f"{round(255 + (value - 255) * part):02x}" for value in channels))
    return mixed


def patch_weights() -> Drawing:
    """A weight vector per patch."""
    d = Drawing(980, 330, "One cell of the signal gives the weights of one patch of the map.")
    d.text(98, 34, "*signal", color=VIOLET)
    cells = shades(VIOLET, 24, seed=1)
    for depth in range(3, 0, -1):
        d.grid(30 + 6 * depth, 54 - 5 * depth + 15, 4, 6, 22, shades(VIOLET, 24, seed=depth))
    d.grid(30, 69, 4, 6, 22, cells)
    d.rect(30 + 2 * 22, 69 + 22, 22, 22, VIOLET, ORANGE, stroke_width=3)
    d.text(104, 184, "a vector of channels", "for each of 4 x 6 patches", color=VIOLET, size=12)

    d.arrow("M190 113H250")
    d.box(
        252,
        72,
        190,
        82,
        ORANGE,
        "*generator",
        "grouped 1x1 convolution:",
        "group q of the channels",
        "makes group q of the rows",
    )
    d.text(347, 178, "learned in training, and", "the same for all patches", color=ORANGE, size=12)

    d.arrow("M444 113H500")
    d.text(601, 58, "*weights of this patch", color=ORANGE)
    for number, shade in enumerate(shades(ORANGE, 14, seed=5)):
        d.rect(504 + number * 14, 100, 14, 26, shade, "#ffffff")
    d.rect(504, 100, 196, 26, "none", ORANGE, stroke_width=2)
    for x, width, name in ((504, 70, "expand"), (574, 42, "3x3"), (616, 84, "project")):
        d.text(x + width / 2, 142, name, color=ORANGE, size=12)
    d.text(601, 90, "one flat vector, [N, 4, 6, P]", size=12)

    d.arrow("M702 113H758")
    d.text(862, 34, "*map of a level", color=GREEN)
    d.grid(766, 50, 4, 6, 32, shades(GREEN, 24, seed=7))
    d.rect(766 + 64, 50 + 32, 32, 32, GREEN, ORANGE, stroke_width=3)
    d.text(862, 200, "this patch, and no other pixel, is", "convolved with these weights", color=GREEN, size=12)

    d.text(
        490, 258,
        "A level may have patches of 1x1, 2x2, 4x4, 8x8 or 16x16 pixels; the grid of patches is that of the signal.",
        "A convolution of 3x3 also reads one pixel around its patch (the halo). Weights are generated once per frame;",
        "where patches are small, a GPU generates them in registers and never writes them to memory.",
        size=13,
    )  # fmt: skip
    return d


def decoder_level() -> Drawing:
    """A level of the decoder as one kernel."""
    d = Drawing(980, 430, "A level of the decoder reads its inputs once and writes its output once.")
    d.kept(226, 30, 584, 350, "per tile of a patch, in registers, shared memory or cache")
    d.box(24, 62, 150, 56, BLUE, "*skip feature", "[C, H, W]")
    d.box(24, 142, 150, 56, GREEN, "*previous level", "[D, H/2, W/2]")
    d.box(24, 262, 150, 48, VIOLET, "*signal")
    d.box(24, 326, 150, 48, ORANGE, "*generator")

    d.rect(250, 74, 150, 150, PALE[BLUE], BLUE, rx=4)
    d.rect(268, 92, 114, 114, "#c9dff0", BLUE)
    d.text(325, 136, "*window", "18 x 18 pixels", "for a tile of 16 x 16", color=BLUE, size=12)
    d.text(325, 246, "x, y, skip, previous", color=BLUE, size=12)
    d.arrow("M174 90H248")
    d.arrow("M174 170H248")
    d.text(196, 162, "resized", size=11, color=GREY)

    d.box(434, 100, 100, 96, GREEN, "*expand", "1x1, W1", "ReLU6")
    d.box(556, 100, 100, 96, GREEN, "*3x3", "depthwise, W2", "ReLU6")
    d.box(678, 100, 108, 96, GREEN, "*project", "1x1, W3", "bias")
    d.arrow("M402 148H432")
    d.arrow("M534 148H554")
    d.arrow("M656 148H676")
    d.text(550, 88, "the hidden channels come in chunks: no hidden map", size=12, color=GREEN)

    d.box(434, 286, 352, 56, ORANGE, "*weights of the patch", "generated here, or by one launch for all levels")
    d.arrow("M174 286H400L432 304")
    d.arrow("M174 350H400L432 326")
    for x in (484, 606, 732):
        d.arrow(f"M{x} 286V198", ORANGE)

    d.arrow("M786 148H838")
    d.rect(840, 92, 116, 112, PALE[GREEN], GREEN, rx=6)
    d.rect(862, 116, 40, 40, GREEN, rx=2)
    d.text(898, 178, "*output", "[out, H, W]", color=GREEN, size=12)
    d.text(898, 232, "or labels, where", "the last level", "has full size", size=12)
    d.text(
        490,
        408,
        "Read: the two maps, signal, generator. Written: the output, and the weights if another launch generates them.",
    )
    return d


def encoder_block() -> Drawing:
    """EfficientNet's block in two passes over its maps."""
    d = Drawing(980, 400, "EfficientNet's block: two passes and a gate.")
    d.box(20, 130, 110, 76, BLUE, "*input", "[in, H, W]")
    d.kept(160, 40, 340, 260, "pass 1: tile by tile, with the halo of the tile")
    d.box(180, 118, 130, 100, GREEN, "*expand", "1x1, norm folded", "SiLU")
    d.box(346, 118, 134, 100, GREEN, "*depthwise", "3x3 or 5x5, folded", "SiLU")
    d.arrow("M130 168H178")
    d.arrow("M310 168H344")
    d.text(
        330,
        244,
        "a tile's expanded values are used",
        "at once; six times as many channels",
        "as the input are not written",
        size=12,
        color=GREEN,
    )

    d.arrow("M500 168H538")
    d.box(540, 130, 118, 76, GREEN, "*filtered map", "in memory")
    d.box(540, 262, 118, 62, VIOLET, "*sums", "per channel")
    d.arrow("M460 218V293H538")
    d.box(700, 252, 120, 82, VIOLET, "*gate", "reduce, SiLU,", "expand, sigmoid")
    d.arrow("M658 293H698")

    d.kept(690, 70, 156, 150, "pass 2")
    d.box(704, 112, 128, 96, GREEN, "*project", "gate x values,", "1x1, + input")
    d.arrow("M658 168H702")
    d.arrow("M760 252V210", VIOLET)
    d.arrow("M832 160H868")
    d.box(870, 122, 94, 76, BLUE, "*output", "[out, H, W]")
    d.arrow("M75 130V22H768V110", dashed=True)
    d.text(420, 16, "the input is added where stride is 1 and the channels are as many", size=12, color=GREY)
    d.text(
        490,
        366,
        "The gate needs the average of the whole filtered map, so the map must be complete before the projection:",
        "two passes are the fewest. Only this map and the sums are written between them.",
    )
    return d


def upsample_argmax() -> Drawing:
    """From small logits to full-size labels."""
    d = Drawing(980, 350, "Each full-size pixel samples four logits per class and keeps the best class.")
    d.text(132, 34, "*logits, at half the size", color=ORANGE)
    for depth in range(3, -1, -1):
        d.grid(34 + 8 * depth, 84 - 8 * depth, 4, 6, 26, shades(ORANGE, 24, seed=20 + depth))
    d.rect(34 + 52, 84 + 26, 52, 52, "none", INK, stroke_width=3)
    d.text(118, 212, "[classes, h, w]", "four neighbours of a pixel", size=12)

    d.arrow("M220 136H300")
    d.kept(304, 48, 370, 190, "one thread per pixel, or per 2 x 2 pixels")
    d.box(324, 92, 150, 120, ORANGE, "*interpolate", "four logits of class c,", "weights of the pixel,", "float32")
    d.box(506, 92, 148, 120, VIOLET, "*compare", "best score, best class", "in registers; NaN", "counts as the largest")
    d.arrow("M474 138H504")
    d.arrow("M580 212V230H400V214", dashed=True)
    d.text(490, 208, "next", "class", size=11, color=GREY)

    d.arrow("M674 136H738")
    d.text(846, 34, "*labels, full size", color=BLUE)
    palette = ("#804080", "#464646", "#6b8e23", "#00008e")
    d.grid(
        744,
        48,
        12,
        17,
        12,
        [
            palette[0 if r > 7 else 1 if c < 5 else 3 if r > 4 and 9 < c < 14 else 2]
            for r in range(12)
            for c in range(17)
        ],
    )
    d.rect(744 + 60, 48 + 36, 12, 12, "none", "#ffffff", stroke_width=3)
    d.text(846, 212, "one byte per pixel", size=12)
    d.text(
        490, 282,
        "HyperSeg-M at 512x1024: full-size logits of 19 classes would be 40 MB in float32, written once and read once.",
        "The labels are 0.5 MB; the logits at half the size, 10 MB, are read once.",
        "Upsampling before the argmax is what the published scores assume. Upsampled labels would have jagged borders.",
    )  # fmt: skip
    return d


def render() -> dict[Path, str]:
    """Return the files and their contents."""
    drawings = {
        "patch-weights": patch_weights(),
        "decoder-level": decoder_level(),
        "encoder-block": encoder_block(),
        "upsample-argmax": upsample_argmax(),
    }
    return {FOLDER / f"kernel-{name}.svg": str(drawing) for name, drawing in drawings.items()}


def main() -> int:
    """Write the files; return the exit code."""
    for path, content in render().items():
        path.write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
