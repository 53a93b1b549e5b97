"""Cars, vans, trucks, buses and trams as boxes in perspective."""

from dataclasses import dataclass

from hyperseg.data.labels import Color
from hyperseg.data.synthetic.camera import NEAR, Camera
from hyperseg.data.synthetic.canvas import CLASS, MIDDLE, Canvas, Point
from hyperseg.data.synthetic.numbers import Random

_PAINTS: tuple[Color, ...] = (
    (34, 36, 40),
    (150, 152, 156),
    (214, 214, 212),
    (98, 100, 106),
    (156, 28, 30),
    (36, 62, 124),
    (70, 84, 66),
    (190, 166, 120),
    (60, 44, 40),
)
_LIVERIES: tuple[Color, ...] = ((206, 172, 44), (188, 44, 40), (224, 224, 220), (60, 110, 160), (84, 140, 84))


@dataclass(frozen=True)
class Shape:
    """A kind of vehicle, in centimetres.

    belt, roof: heights of the lower edge of the windows and of the top; nose, boot: lengths of the bonnet and the boot.
    """

    label: str
    width: int
    length: int
    belt: int
    roof: int
    nose: int
    boot: int
    wheel: int


CAR = Shape("car", 178, 430, 92, 146, 90, 45, 31)
SMALL_CAR = Shape("car", 166, 360, 94, 152, 60, 6, 29)
VAN = Shape("car", 192, 490, 118, 205, 55, 6, 33)
TRUCK = Shape("truck", 240, 760, 150, 330, 0, 0, 48)
BUS = Shape("bus", 252, 1150, 120, 305, 0, 0, 48)
TRAM = Shape("train", 256, 2600, 130, 345, 0, 0, 30)


_LEAN = {True: 25, False: 50}  # of the rear window and of the windscreen


def shape_of(random: Random, parked: bool) -> Shape:
    """Return a kind of vehicle by how often it is met."""
    draw = random.integer(0, 99)
    if parked:
        return CAR if draw < 60 else SMALL_CAR if draw < 82 else VAN if draw < 95 else TRUCK
    return CAR if draw < 48 else SMALL_CAR if draw < 62 else VAN if draw < 72 else TRUCK if draw < 85 else BUS


def draw_vehicle(
    canvas: Canvas, camera: Camera, x: int, z: int, shape: Shape, away: bool, side_shade: int, random: Random
) -> None:
    """Paint a vehicle whose nearer end is at distance `z`.

    x: its middle; away: it shows its back; side_shade: of the side that faces the middle of the street.
    """
    if z < NEAR:
        return
    label = CLASS[shape.label]
    paints = _PAINTS if shape.label == "car" else _LIVERIES
    body = canvas.material(label, random.choice(paints), z) + MIDDLE
    glass = canvas.material(label, (44, 52, 60), z) + MIDDLE
    rubber = canvas.material(label, (26, 26, 28), z) + MIDDLE
    left, right = x - shape.width // 2, x + shape.width // 2
    far = z + shape.length
    _shadow(canvas, camera, left, right, z, far)
    edge = right if right < 0 else left if left > 0 else None
    if edge is not None:
        _draw_side(canvas, camera, edge, z, shape, away, (body + side_shade - MIDDLE, glass, rubber), random)
    _draw_end(canvas, camera, left, right, z, shape, away, (body, glass, rubber), random)


def _shadow(canvas: Canvas, camera: Camera, left: int, right: int, near: int, far: int) -> None:
    """Paint the dark ground below a vehicle. It belongs to the road."""
    dark = canvas.material(CLASS["road"], (40, 40, 43), near) + MIDDLE - 2
    canvas.polygon(camera.ground(left - 6, right + 6, near - 12, far), dark)


def _draw_side(
    canvas: Canvas,
    camera: Camera,
    x: int,
    near: int,
    shape: Shape,
    away: bool,
    colors: tuple[int, int, int],
    random: Random,
) -> None:
    body, glass, rubber = colors
    length = shape.length
    first, last = (shape.boot, shape.nose) if away else (shape.nose, shape.boot)

    def quad(start: int, end: int, low: int, high: int, lean: tuple[int, int] = (0, 0)) -> list[Point]:
        return [
            camera.point(x, low, near + start),
            camera.point(x, low, near + end),
            camera.point(x, high, near + end - lean[1]),
            camera.point(x, high, near + start + lean[0]),
        ]

    if shape.label == "car":
        slope = (_LEAN[away], _LEAN[not away])
        canvas.polygon(quad(first, length - last, shape.belt - 2, shape.roof, slope), body)
        inner = (slope[0] + 4, slope[1] + 4)
        canvas.polygon(quad(first + 14, length - last - 14, shape.belt, shape.roof - 9, inner), glass)
        middle = length // 2 + (15 if away else -15)
        canvas.polygon(quad(middle - 5, middle + 5, shape.belt, shape.roof - 5), body)
        bonnet = [camera.point(x, high, near + at) for at, high in ((0, 28), (length, 28))]
        ends = (shape.belt, 84) if away else (84, shape.belt)
        edges = ((length, ends[1]), (length - last, shape.belt), (first, shape.belt), (0, ends[0]))
        canvas.polygon([*bonnet, *(camera.point(x, high, near + at) for at, high in edges)], body)
        canvas.polygon(quad(0, length, 28, 46), body - 4)
        canvas.polygon(quad(middle - 1, middle + 2, 40, shape.belt - 3), body - 5)
    else:
        canvas.polygon(quad(0, length, 35, shape.roof), body)
        canvas.polygon(quad(0, length, 35, 62), body - 5)
        if shape.label == "truck":
            cab = (length - 190, length - 40) if away else (40, 190)
            canvas.polygon(quad(*cab, shape.belt, shape.belt + 80), glass)
            seam = (length - 215, length - 203) if away else (203, 215)
            canvas.polygon(quad(*seam, 35, shape.roof), rubber)
        else:
            for start in range(40, length - 120, 150):
                canvas.polygon(quad(start, start + 132, shape.belt, shape.roof - 60), glass + random.integer(0, 4))
            for start in range(160, length - 120, 450):
                canvas.polygon(quad(start, start + 110, 45, shape.roof - 55), glass - 2)
    axles = (shape.length // 5, shape.length * 4 // 5) if shape.label != "train" else ()
    for axle in axles:
        column, row = camera.point(x, shape.wheel, near + axle)
        wide = abs(camera.x(x, near + axle - shape.wheel) - camera.x(x, near + axle + shape.wheel)) // 2
        high = shape.wheel * camera.focal // (near + axle)
        canvas.ellipse(column, row, wide, high, rubber)
        canvas.ellipse(column, row, wide * 55 // 100, high * 55 // 100, body if shape.label != "car" else rubber + 12)


def _draw_end(
    canvas: Canvas,
    camera: Camera,
    left: int,
    right: int,
    z: int,
    shape: Shape,
    away: bool,
    colors: tuple[int, int, int],
    random: Random,
) -> None:
    """Paint the back or the front."""
    body, glass, rubber = colors
    label, width = CLASS[shape.label], right - left

    def quad(inset_low: int, inset_high: int, low: int, high: int) -> list[Point]:
        return [
            camera.point(left + inset_low, low, z),
            camera.point(right - inset_low, low, z),
            camera.point(right - inset_high, high, z),
            camera.point(left + inset_high, high, z),
        ]

    for x in (left + 6, right - 30):
        canvas.polygon([camera.point(*p, z) for p in ((x, 0), (x + 24, 0), (x + 24, 44), (x, 44))], rubber)
    lamp = canvas.material(label, (190, 26, 26) if away else (236, 232, 214), z) + MIDDLE + 4 * random.chance(40)
    plate = canvas.material(label, (222, 220, 204), z) + MIDDLE
    if shape.label == "car":
        start = z + (shape.boot if away else shape.nose)
        end = start + _LEAN[away]
        low = [camera.point(x, shape.belt - 2, start) for x in (left, right)]
        high = [camera.point(x, shape.roof, end) for x in (right, left)]
        canvas.polygon([*low, *high], body + 1)
        low = [camera.point(x, shape.belt + 2, start) for x in (left + 12, right - 12)]
        high = [camera.point(x, shape.roof - 8, end) for x in (right - 18, left + 18)]
        canvas.polygon([*low, *high], glass)
        top = shape.belt if away else 84
        lid = [camera.point(x, shape.belt, start) for x in (right, left)]
        canvas.polygon([camera.point(left, top, z), camera.point(right, top, z), *lid], body + 4)
        canvas.polygon(quad(0, 0, 26, top - 30), body - 2)
        canvas.polygon(quad(0, 0, top - 32, top), body)
        canvas.polygon(quad(8, 8, 24, 36), rubber + 4)
        if not away:
            canvas.polygon(quad(48, 48, 46, 62), rubber + 2)
        height = (top - 32, top - 12) if away else (56, 72)
    else:
        canvas.polygon(quad(0, 0, 30, shape.roof), body)
        canvas.polygon(quad(0, 0, 30, 60), body - 5)
        if not away or shape.label != "truck":
            canvas.polygon(quad(16, 20, shape.belt + 10, shape.roof - (40 if away else 55)), glass)
        else:
            canvas.polygon(quad(width // 2 - 2, width // 2 - 2, 62, shape.roof - 12), rubber)
        if shape.label != "truck":
            board = canvas.material(label, (240, 160, 40), z) + MIDDLE + 4
            canvas.polygon(quad(60, 60, shape.roof - 32, shape.roof - 14), board)
        height = (66, 90)
    for x in (left + 8, right - 34):
        corners = ((x, height[0]), (x + 26, height[0]), (x + 26, height[1]), (x, height[1]))
        canvas.polygon([camera.point(*p, z) for p in corners], lamp)
    canvas.polygon(quad(width // 2 - 26, width // 2 - 26, 44, 56), plate)
