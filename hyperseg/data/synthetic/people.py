"""Pedestrians, bicycles, motorcycles and their riders."""

from collections.abc import Sequence

from hyperseg.data.labels import Color
from hyperseg.data.synthetic.camera import NEAR, Board, Camera
from hyperseg.data.synthetic.canvas import CLASS, MIDDLE, Canvas, Point
from hyperseg.data.synthetic.numbers import Random

_CLOTHES: tuple[Color, ...] = (
    (40, 42, 52),
    (64, 74, 104),
    (150, 46, 44),
    (196, 190, 180),
    (92, 84, 62),
    (58, 96, 84),
    (202, 158, 60),
    (118, 72, 108),
    (30, 30, 32),
)
_SKINS: tuple[Color, ...] = ((226, 184, 152), (190, 140, 106), (122, 82, 60), (92, 62, 46))
_HAIRS: tuple[Color, ...] = ((38, 28, 22), (92, 62, 36), (172, 136, 80), (140, 136, 132))


def draw_person(canvas: Canvas, camera: Camera, x: int, z: int, random: Random) -> None:
    """Paint a pedestrian, standing or walking."""
    if z < NEAR:
        return
    size = random.integer(152, 190) if random.chance(85) else random.integer(100, 140)

    def scaled(value: int) -> int:
        return value * size // 175

    def body(points: Sequence[Point], value: int) -> None:
        board.polygon([(scaled(dx), scaled(height)) for dx, height in points], value)

    board = Board(canvas, camera, x, z)
    label = CLASS["person"]
    coat = canvas.material(label, random.choice(_CLOTHES), z) + MIDDLE
    trousers = canvas.material(label, random.choice(_CLOTHES), z) + MIDDLE - 2
    skin = canvas.material(label, random.choice(_SKINS), z) + MIDDLE
    hair = canvas.material(label, random.choice(_HAIRS), z) + MIDDLE
    shoe = canvas.material(label, (36, 32, 30), z) + MIDDLE
    stride = random.integer(0, 24)
    for foot in (-6 - stride, 6 + stride):
        board.limb(scaled(foot), 2, scaled(foot // 3), scaled(88), scaled(15), trousers)
        board.rectangle(scaled(foot - 8), 0, scaled(foot + 9), scaled(7), shoe)
    if random.chance(25):  # a skirt or a long coat
        body(((-24, 45), (24, 45), (16, 95), (-16, 95)), coat - 2)
    swing = random.integer(4, 22)
    for side in (-1, 1):
        board.limb(side * scaled(20 + swing // 2), scaled(78), side * scaled(19), scaled(140), scaled(11), coat - 3)
        board.ellipse(side * scaled(20 + swing // 2), scaled(76), scaled(6), scaled(6), skin)
    body(((-17, 82), (17, 82), (23, 140), (-23, 140)), coat)
    body(((-23, 139), (23, 139), (8, 150), (-8, 150)), coat)
    if random.chance(30):
        bag = canvas.material(label, random.choice(_CLOTHES), z) + MIDDLE
        board.rectangle(scaled(14), scaled(70), scaled(32), scaled(104), bag)
    _draw_head(board, scaled(160), scaled(11), skin, hair, 0)


def _draw_head(board: Board, height: int, radius: int, skin: int, hair: int, x: int) -> None:
    board.ellipse(x, height - radius, radius // 2, radius, skin - 3)
    board.ellipse(x, height + radius // 4, radius, radius * 5 // 4, hair)
    board.ellipse(x, height - radius // 6, radius * 3 // 4, radius, skin)


def draw_cycle(
    canvas: Canvas, camera: Camera, x: int, z: int, squash: int, motor: bool, ridden: bool, random: Random
) -> None:
    """Paint a bicycle or motorcycle from the side, or turned away by `squash` percent, with or without a rider."""
    if z < NEAR:
        return
    board = Board(canvas, camera, x, z, squash * random.choice((-1, 1)))
    label = CLASS["motorcycle" if motor else "bicycle"]
    frame = canvas.material(label, random.choice(_CLOTHES), z) + MIDDLE + 2
    rubber = canvas.material(label, (30, 30, 32), z) + MIDDLE
    spokes = canvas.material(label, (128, 130, 132), z) + MIDDLE
    radius, thick, base = (31, 10, 70) if motor else (34, 4, 54)
    for wheel in (-base, base):
        _wheel(board, wheel, radius, thick, rubber, spokes)
    if motor:
        board.polygon([(-46, 34), (40, 34), (48, 74), (-30, 70)], rubber + 6)
        board.polygon([(-20, 66), (34, 70), (30, 92), (-6, 90)], frame)
        board.polygon([(-84, 68), (-14, 66), (-16, 82), (-80, 84)], rubber + 3)
        board.limb(70, 34, 46, 104, 9, spokes)
        board.ellipse(50, 90, 12, 12, frame)
    else:
        for x0, y0, x1, y1 in ((-16, 34, -26, 92), (-12, 32, 34, 82), (-54, 34, -20, 76), (54, 34, 36, 102)):
            board.limb(x0, y0, x1, y1, 6, frame)
        board.polygon([(-24, 74), (36, 82), (36, 88), (-24, 80)], frame)
        board.rectangle(-38, 92, -12, 97, rubber)
        board.rectangle(28, 100, 52, 105, rubber)
    if ridden:
        _draw_rider(board, canvas, z, motor, random)


def _wheel(board: Board, x: int, radius: int, thick: int, rubber: int, spokes: int) -> None:
    board.ellipse(x, radius, radius, radius, rubber)
    board.ellipse(x, radius, max(radius - thick, 1), radius - thick, spokes)


def _draw_rider(board: Board, canvas: Canvas, z: int, motor: bool, random: Random) -> None:
    label = CLASS["rider"]
    coat = canvas.material(label, random.choice(_CLOTHES), z) + MIDDLE
    trousers = canvas.material(label, random.choice(_CLOTHES), z) + MIDDLE - 2
    skin = canvas.material(label, random.choice(_SKINS), z) + MIDDLE
    helmet = canvas.material(label, random.choice(_CLOTHES if motor else (*_HAIRS, *_CLOTHES[:4])), z) + MIDDLE
    seat, lean = (84, 22) if motor else (98, 26)
    board.limb(4, seat - 66 + 10, 14, seat - 30, 13, trousers)
    board.limb(14, seat - 34, -22, seat + 4, 17, trousers)
    board.limb(-22, seat - 4, -22 + lean, seat + 56, 36, coat)
    board.limb(36, seat + 8, -16 + lean, seat + 48, 11, coat - 3)
    _draw_head(board, seat + 70, 12, skin, helmet, -16 + lean)
