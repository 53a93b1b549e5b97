"""Things that stand on the sidewalk: trees, lamps, signs, traffic lights, bins."""

from hyperseg.data.labels import Color
from hyperseg.data.synthetic.camera import NEAR, Board, Camera
from hyperseg.data.synthetic.canvas import CLASS, IGNORED, MIDDLE, Canvas
from hyperseg.data.synthetic.numbers import Random, crowns

_LEAVES: tuple[Color, ...] = ((74, 108, 46), (92, 116, 52), (60, 92, 48), (116, 118, 50), (132, 104, 46))


def draw_tree(canvas: Canvas, camera: Camera, x: int, z: int, random: Random) -> None:
    """Paint a tree; the trunk belongs to the vegetation."""
    if z < NEAR:
        return
    label = CLASS["vegetation"]
    height, reach = random.integer(450, 900), random.integer(130, 260)
    bark = canvas.material(label, (84, 70, 58), z) + MIDDLE
    board = Board(canvas, camera, x, z)
    board.limb(0, 0, random.integer(-20, 20), height - reach // 2, random.integer(18, 36), bark - 3)
    _draw_crown(canvas, board, height, reach, random.integer(85, 130) * reach // 100, random)


def draw_bush(canvas: Canvas, camera: Camera, x: int, z: int, height: int, random: Random) -> None:
    """Paint a bush or the trees of a park."""
    if z >= NEAR:
        reach = random.integer(60, 120) * height // 100
        _draw_crown(canvas, Board(canvas, camera, x, z), height // 2, reach, height * 55 // 100, random)


def _draw_crown(canvas: Canvas, board: Board, height: int, radius_x: int, radius_y: int, random: Random) -> None:
    z = board.z
    leaves = canvas.material(CLASS["vegetation"], random.choice(_LEAVES), z)
    mask, shade = random.choice(crowns())
    if random.chance(50):
        mask, shade = mask[:, ::-1], shade[:, ::-1]
    scale = board.camera.focal
    wide, high = max(radius_x * scale // z, 1), max(radius_y * scale // z, 1)
    canvas.stamp(*board.pixel(0, height), wide, high, (mask, shade), leaves)


def draw_lamp(canvas: Canvas, camera: Camera, x: int, z: int, side: int, random: Random) -> None:
    """Paint a street lamp whose arm reaches over the road."""
    if z < NEAR:
        return
    metal = canvas.material(CLASS["pole"], random.choice(((104, 108, 106), (70, 76, 74), (150, 150, 146))), z) + MIDDLE
    board, height = Board(canvas, camera, x, z), random.integer(520, 800)
    board.rectangle(-7, 0, 7, height, metal)
    board.rectangle(-12, 0, 12, 90, metal - 2)
    arm = sorted((0, -side * 160))
    board.rectangle(arm[0], height - 10, arm[1], height, metal)
    end = -side * 160
    board.rectangle(end - 30, height - 14, end + 30, height + 2, metal + 3)


def draw_sign(canvas: Canvas, camera: Camera, x: int, z: int, random: Random) -> None:
    """Paint a traffic sign on its pole."""
    if z < NEAR:
        return
    metal = canvas.material(CLASS["pole"], (140, 142, 144), z) + MIDDLE
    label = CLASS["traffic sign"]
    red = canvas.material(label, (196, 30, 36), z) + MIDDLE
    white = canvas.material(label, (232, 232, 228), z) + MIDDLE
    blue = canvas.material(label, (32, 78, 160), z) + MIDDLE
    yellow = canvas.material(label, (236, 190, 40), z) + MIDDLE
    board, height = Board(canvas, camera, x, z), random.integer(210, 300)
    board.rectangle(-3, 0, 3, height + 30, metal)
    kind = random.integer(0, 4)
    if kind == 0:
        board.ellipse(0, height, 32, 32, red)
        board.ellipse(0, height, 23, 23, white)
    elif kind == 1:
        board.ellipse(0, height, 32, 32, blue)
        board.limb(0, height - 18, 0, height + 18, 10, white)
    elif kind == 2:
        board.polygon([(-38, height - 22), (38, height - 22), (0, height + 44)], red)
        board.polygon([(-24, height - 14), (24, height - 14), (0, height + 27)], white)
    elif kind == 3:
        board.polygon([(-36, height), (0, height - 36), (36, height), (0, height + 36)], white)
        board.polygon([(-27, height), (0, height - 27), (27, height), (0, height + 27)], yellow)
    else:
        board.rectangle(-32, height - 32, 32, height + 32, blue)
        board.rectangle(-8, height - 20, -1, height + 20, white)
        board.ellipse(4, height + 10, 11, 11, white)


def draw_traffic_light(canvas: Canvas, camera: Camera, x: int, z: int, side: int, random: Random) -> None:
    """Paint traffic lights on a pole and, often, on an arm above the road."""
    if z < NEAR:
        return
    metal = canvas.material(CLASS["pole"], (92, 98, 96), z) + MIDDLE
    board = Board(canvas, camera, x, z)
    places = [(0, 290)]
    if random.chance(60):
        places.append((-side * 260, 520))
        arm = sorted((0, -side * 260))
        board.rectangle(arm[0], 560, arm[1], 574, metal)
        board.rectangle(-8, 0, 8, 574, metal)
    else:
        board.rectangle(-6, 0, 6, 340, metal)
    green = random.chance(50)
    label = CLASS["traffic light"]
    box = canvas.material(label, (38, 42, 40), z) + MIDDLE
    lit = canvas.material(label, (60, 250, 140) if green else (255, 50, 40), z) + MIDDLE + 8
    for middle, height in places:
        board.rectangle(middle - 17, height - 48, middle + 17, height + 48, box)
        for number, offset in enumerate((30, 0, -30)):
            on = number == (2 if green else 0)
            board.ellipse(middle, height + offset, 11, 11, lit if on else box + 5)


def draw_bin(canvas: Canvas, camera: Camera, x: int, z: int, random: Random) -> None:
    """Paint a bin or a box, which belongs to no class."""
    if z < NEAR:
        return
    color: Color = random.choice(((64, 92, 66), (90, 90, 96), (196, 120, 44), (60, 76, 120)))
    plastic = canvas.material(IGNORED, color, z) + MIDDLE
    board, height = Board(canvas, camera, x, z), random.integer(80, 130)
    board.polygon([(-24, 0), (24, 0), (30, height), (-30, height)], plastic)
    board.rectangle(-33, height - 4, 33, height + 8, plastic + 4)
