"""A canvas whose pixels are materials: each has a class and 32 shades, so labels and colours come from one painting."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyperseg.data.labels import CITYSCAPES, Color
from hyperseg.data.synthetic.numbers import Random, grain

SHADES = 32
MIDDLE = 16  # the shade with a material's own colour
IGNORED = 255
_BAND = 32  # rows that are rendered at a time; their arrays stay in the cache
_MOST_MATERIALS = 2**16 // SHADES

CLASS = {name: index for index, name in enumerate(CITYSCAPES.classes)}

Point = tuple[int, int]


@dataclass(frozen=True)
class Light:
    """The light of a scene.

    gains: of red, green and blue, 256 for a white light.
    haze: the colour of the air, and the distance in centimetres at which it covers half.
    left, right, front: shades of the walls on either side of the street, and of those that face the camera.
    noise: 3, 7 or 15, the largest error of a pixel.
    """

    gains: Color
    haze: Color
    haze_distance: int
    sky: tuple[Color, Color]
    left: int
    right: int
    front: int
    noise: int
    shadow: int
    windows_lit: int  # of 256


class Canvas:
    """Paints shapes in integer coordinates; a shape that leaves the canvas is cut off."""

    def __init__(self, height: int, width: int, light: Light) -> None:
        self.height, self.width, self.light = height, width, light
        self.pixels = np.zeros((height, width), np.uint16)
        self._colors: list[np.ndarray] = []
        self._classes: list[int] = []
        self._columns = np.arange(width, dtype=np.int32)
        self._known: dict[tuple[int, Color, int], int] = {}

    def material(self, label: int, color: Color, distance: int = 0) -> int:
        """Return the number of a material's darkest shade; add a shade to it to paint.

        distance: in centimetres; haze covers distant materials.
        """
        near = max(distance, 0).bit_length()  # materials are shared by objects at similar distances
        if (number := self._known.get((label, color, near))) is None:
            levels = np.arange(SHADES)[:, None] * 10 + 96
            haze_share = 256 * distance // (distance + self.light.haze_distance)
            lit = np.array(color) * levels * np.array(self.light.gains) >> 16
            table = (lit * (256 - haze_share) + np.array(self.light.haze) * haze_share) >> 8
            number = self._known[label, color, near] = self._add(label, table)
        return number

    def ramp(self, label: int, low: Color, high: Color) -> int:
        """Return a material whose shades go from one colour to another, whatever the light."""
        step = np.arange(SHADES)[:, None]
        return self._add(label, (np.array(low) * (SHADES - 1 - step) + np.array(high) * step) // (SHADES - 1))

    def _add(self, label: int, table: np.ndarray) -> int:
        assert len(self._classes) < _MOST_MATERIALS
        noise = self.light.noise
        self._colors.append(np.clip(table, noise, 255 - noise))
        self._classes.append(label)
        return (len(self._classes) - 1) * SHADES

    def rectangle(self, left: int, top: int, right: int, bottom: int, value: int) -> None:
        """Fill columns left to right and rows top to bottom, ends excluded, at least one pixel each way."""
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        self.pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = value

    def polygon(self, points: Sequence[Point], value: int, textured: bool = True) -> None:
        """Fill a convex polygon. `textured` varies the shade by up to 2 steps upwards."""
        top, spans = self._spans(points)
        self._fill(top, spans, value, textured)

    def ellipse(self, x: int, y: int, radius_x: int, radius_y: int, value: int, textured: bool = True) -> None:
        """Fill an ellipse."""
        radius_x, radius_y = max(radius_x, 1), max(radius_y, 1)
        top, bottom = max(y - radius_y, 0), min(y + radius_y + 1, self.height)
        if top >= bottom:
            return
        rows = np.arange(top - y, bottom - y, dtype=np.int64)
        # The square root of IEEE 754 is exactly rounded, so it is the same on every CPU.
        reach = np.sqrt((radius_y * radius_y - rows * rows).astype(np.float64)).astype(np.int64) * radius_x // radius_y
        self._fill(top, np.stack([x - reach, x + reach + 1]), value, textured)

    def darken(self, points: Sequence[Point], steps: int) -> None:
        """Darken what a convex polygon covers; its materials must have at least this shade."""
        top, spans = self._spans(points)
        if (box := self._box(top, spans)) is not None:
            left, right = box
            area = self.pixels[top : top + spans.shape[1], left:right]
            np.subtract(area, np.uint16(steps), out=area, where=self._inside(spans, left, right))

    def stamp(
        self, x: int, y: int, radius_x: int, radius_y: int, picture: tuple[np.ndarray, np.ndarray], value: int
    ) -> None:
        """Paint a square picture, given as a mask and shades, scaled to an ellipse's box."""
        mask, shade = picture
        left, right = max(x - radius_x, 0), min(x + radius_x, self.width)
        top, bottom = max(y - radius_y, 0), min(y + radius_y, self.height)
        if left >= right or top >= bottom:
            return
        side = len(mask)
        rows = (np.arange(top, bottom) - y + radius_y) * side // (2 * radius_y)
        columns = (np.arange(left, right) - x + radius_x) * side // (2 * radius_x)
        area = self.pixels[top:bottom, left:right]
        chosen = np.ix_(rows, columns)
        np.copyto(area, shade[chosen] + np.uint16(value), where=mask[chosen])

    def paint(self, top: int, left: int, values: np.ndarray, mask: np.ndarray) -> None:
        """Paint an array of values where the mask is set."""
        np.copyto(self.pixels[top : top + values.shape[0], left : left + values.shape[1]], values, where=mask)

    def _spans(self, points: Sequence[Point]) -> tuple[int, np.ndarray]:
        """Return the first row of a convex polygon and, for each row, its first column and the one after its last."""
        columns, rows = zip(*points, strict=True)
        top = max(min(rows), 0)
        bottom = max(min(max(rows), self.height), top)
        if max(columns) < 0 or min(columns) >= self.width:
            bottom = top
        spans = np.empty((2, bottom - top), np.int64)
        spans[0], spans[1] = 2**40, -(2**40)
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            if y0 > y1:
                x0, y0, x1, y1 = x1, y1, x0, y0
            first, last = max(y0, top), min(y1, bottom)
            if first >= last:
                continue
            # The edge at the middle of each row.
            x = x0 + ((2 * np.arange(first - y0, last - y0, dtype=np.int64) + 1) * (x1 - x0)) // (2 * (y1 - y0))
            part = spans[:, first - top : last - top]
            np.minimum(part[0], x, out=part[0])
            np.maximum(part[1], x, out=part[1])
        return top, spans

    def _box(self, top: int, spans: np.ndarray) -> tuple[int, int] | None:
        if spans.shape[1] == 0:
            return None
        left, right = max(int(spans[0].min()), 0), min(int(spans[1].max()), self.width)
        return (left, right) if left < right else None

    def _inside(self, spans: np.ndarray, left: int, right: int) -> np.ndarray:
        columns = self._columns[left:right]
        first, last = np.minimum(np.maximum(spans, left), right).astype(np.int32)[:, :, None]
        return (columns >= first) & (columns < last)

    def _fill(self, top: int, spans: np.ndarray, value: int, textured: bool) -> None:
        if (box := self._box(top, spans)) is None:
            return
        left, right = box
        bottom = top + spans.shape[1]
        values: np.ndarray | np.uint16 = np.uint16(value)
        if textured:
            values = grain(self.height, self.width)[top:bottom, left:right] + np.uint16(value)
        np.copyto(self.pixels[top:bottom, left:right], values, where=self._inside(spans, left, right))

    def labels(self) -> np.ndarray:
        """Return the class of each pixel: uint8 [H, W]."""
        table = np.array(self._classes, np.uint8).repeat(SHADES)
        labels = np.empty((self.height, self.width), np.uint8)
        for top in range(0, self.height, _BAND):
            labels[top : top + _BAND] = table[self.pixels[top : top + _BAND]]
        return labels

    def image(self, random: Random) -> np.ndarray:
        """Return the picture that a camera takes, with a slight blur and noise: uint8 [H, W, 3]."""
        count = len(self._classes) * SHADES
        table = np.zeros((count, 4), np.uint8)
        table[:, :3] = np.concatenate(self._colors)
        packed = table.view(np.uint32)[:, 0]
        mask = self.light.noise
        noise = random.bytes(self.height, self.width * 4)
        image = np.empty((self.height, self.width, 3), np.uint8)
        for top in range(0, self.height, _BAND):
            bottom = min(top + _BAND, self.height)
            # With the rows above and below; at the edge, the edge's row again.
            rows = self.pixels[np.clip(np.arange(top - 1, bottom + 1), 0, self.height - 1)]
            band = packed[rows].view(np.uint8)
            band = _average(_average(band[:-2], band[2:]), band[1:-1])
            band[:, 4:-4] = _average(_average(band[:, :-8], band[:, 8:]), band[:, 4:-4])
            grains = noise[top:bottom]
            band += (grains & mask) + (grains >> 4 & mask) - mask  # modulo 256: the colours leave the margin
            image[top:bottom] = band.reshape(bottom - top, self.width, 4)[:, :, :3]
        return image


def _average(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (a + b) // 2 of uint8, without wider integers."""
    return (a & b) + ((a ^ b) >> 1)
