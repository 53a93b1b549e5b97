"""Sky, ground and the walls along the street."""

import numpy as np

from hyperseg.data.labels import Color
from hyperseg.data.synthetic.camera import FAR, NEAR, Camera
from hyperseg.data.synthetic.canvas import CLASS, MIDDLE, Canvas, Light
from hyperseg.data.synthetic.layout import Block, Street
from hyperseg.data.synthetic.numbers import Random, cloud_tile, ground_tiles

_WALLS: tuple[Color, ...] = (
    (150, 82, 64),
    (196, 178, 142),
    (158, 156, 150),
    (206, 188, 120),
    (222, 216, 204),
    (124, 98, 78),
    (120, 136, 152),
    (188, 132, 104),
    (96, 100, 106),
)
_STONES: tuple[Color, ...] = ((150, 140, 128), (132, 122, 118), (158, 108, 88))
_BARS: tuple[Color, ...] = ((96, 110, 100), (150, 122, 92), (120, 120, 124))
_SHOPS: tuple[Color, ...] = ((60, 74, 88), (150, 40, 36), (38, 90, 60), (40, 60, 120), (190, 150, 60))


def draw_sky(canvas: Canvas, camera: Camera, light: Light, random: Random) -> None:
    """Paint the sky with clouds, brighter towards the horizon."""
    sky = canvas.ramp(CLASS["sky"], *light.sky)
    rows = max(min(camera.horizon + 1, canvas.height), 0)
    tile = cloud_tile()
    side = max(canvas.height // 2, 1)
    y = (np.arange(rows) * 256 // side + random.integer(0, 511)) % 512
    x = (np.arange(canvas.width) * 256 // side + random.integer(0, 1023)) % 1024
    cover = random.integer(0, 14)
    level = np.clip((tile.astype(np.int64) - 110) * cover // 64, 0, 20).astype(np.uint16)
    glow = (np.arange(rows) * 11 // max(rows, 1)).astype(np.uint16)[:, None] + np.uint16(sky)
    canvas.pixels[:rows] = level[np.ix_(y, x)] + glow


def draw_skyline(canvas: Canvas, camera: Camera, random: Random) -> None:
    """Paint distant buildings and trees where the street ends."""
    x = -4 * FAR
    while x < 4 * FAR:
        width = random.integer(1200, 3600)
        value = canvas.material(CLASS["building"], random.choice(_WALLS), FAR) + random.integer(12, 18)
        top = camera.y(random.integer(600, 2600), FAR)
        canvas.rectangle(camera.x(x, FAR), top, camera.x(x + width, FAR), camera.horizon + 2, value)
        x += width
    for _ in range(random.integer(4, 14)):
        x, height = random.integer(-FAR // 2, FAR // 2), random.integer(300, 900)
        value = canvas.material(CLASS["vegetation"], (70, 104, 52), FAR) + random.integer(8, 18)
        radius = height * camera.focal // FAR
        canvas.ellipse(camera.x(x, FAR), camera.horizon - radius // 3, radius * 2, radius, value)


def draw_ground(canvas: Canvas, camera: Camera, street: Street, light: Light, random: Random) -> None:
    """Paint road, sidewalks, cross streets, terrain and markings, with one texture in perspective over all."""
    top = max(min(camera.horizon + 1, canvas.height), 0)
    shade = MIDDLE - 5
    tone = random.integer(84, 112)
    road = canvas.material(CLASS["road"], (tone, tone, tone + 3)) + shade
    pavement = random.choice(((158, 150, 142), (140, 138, 136), (164, 146, 130)))
    sidewalk = canvas.material(CLASS["sidewalk"], pavement) + shade
    terrain = canvas.material(CLASS["terrain"], random.choice(((112, 136, 66), (134, 132, 78), (92, 128, 60)))) + shade
    canvas.pixels[top:] = sidewalk
    _draw_joints(canvas, camera, top, street.joint)
    for side, blocks in ((-1, street.left_blocks), (1, street.right_blocks)):
        for block in blocks:
            if block.kind == "park":
                edge = street.wall(side)
                canvas.polygon(_beside(camera, edge, side, block), terrain, textured=False)
    canvas.polygon(camera.ground(street.left, street.right, NEAR, FAR), road, textured=False)
    for near, far in street.crossings:
        canvas.polygon(camera.ground(-4 * FAR, 4 * FAR, near, far), road, textured=False)
    for side in (-1, 1):
        for near, far in street.between_crossings():
            curb = street.curb(side)
            canvas.polygon(camera.ground(curb - 8, curb + 8, near, far), sidewalk + 5, textured=False)
            if verge := street.verges[side > 0]:
                left, right = sorted((curb + side * 8, curb + side * verge))
                canvas.polygon(camera.ground(left, right, near, far), terrain, textured=False)
    _draw_markings(canvas, camera, street, random, shade)
    _draw_shadows(canvas, camera, street, light, random)
    _texture(canvas, camera, top, random)


def _beside(camera: Camera, edge: int, side: int, block: Block) -> list[tuple[int, int]]:
    left, right = sorted((edge, edge + side * 2 * FAR))
    return camera.ground(left, right, block.near, max(block.far, NEAR))


def _draw_joints(canvas: Canvas, camera: Camera, top: int, spacing: int) -> None:
    """Darken the rows in which the slabs of the sidewalk end, as far as rows can tell them apart."""
    rows = np.arange(top, canvas.height) - camera.horizon
    slab = camera.height * camera.focal // np.maximum(rows, 1) // spacing
    joint = np.flatnonzero(slab[1:] - slab[:-1] == -1) + top
    canvas.pixels[joint] -= np.uint16(3)


def _draw_markings(canvas: Canvas, camera: Camera, street: Street, random: Random, shade: int) -> None:
    paint = (196, 196, 190)
    for x, length, gap in street.lines:
        z = NEAR - random.integer(0, length + gap)
        while z < 9000:
            if z + length > NEAR and not street.in_crossing(z, z + length):
                value = canvas.material(CLASS["road"], paint, z) + shade
                canvas.polygon(camera.ground(x - 7, x + 7, z, z + length), value, textured=False)
            z += length + gap
    for near, far in street.zebras:
        value = canvas.material(CLASS["road"], paint, near) + shade
        for x in range(street.left + 30, street.right - 40, 100):
            canvas.polygon(camera.ground(x, x + 50, near, far), value, textured=False)


def _draw_shadows(canvas: Canvas, camera: Camera, street: Street, light: Light, random: Random) -> None:
    """Darken the ground before the buildings of the side that the light comes from."""
    if light.shadow:
        side = -1 if light.left < light.right else 1
        reach = random.integer(100, 900)
        for block in street.blocks(side):
            if block.kind == "building" and block.far > NEAR:
                wall = street.wall(side)
                left, right = sorted((wall, wall - side * reach * block.height // 1600))
                canvas.darken(camera.ground(left, right, block.near, block.far), light.shadow)


def _texture(canvas: Canvas, camera: Camera, top: int, random: Random) -> None:
    """Add the ground's texture to the shades of all rows from `top`."""
    tiles = ground_tiles()
    columns = np.arange(canvas.width, dtype=np.int32) - camera.center
    shift = random.integer(0, 2**16 - 1)
    for start in range(top, canvas.height, 64):
        rows = np.arange(start, min(start + 64, canvas.height), dtype=np.int64) - camera.horizon
        z = camera.height * camera.focal // np.maximum(rows, 1)  # centimetres
        # A texel has 2 cm; where several share a pixel, a smoother tile is taken.
        step = (z << 8) // (2 * camera.focal)
        level = np.clip(np.searchsorted(np.array([300, 700, 1600, 4000]), step, side="right"), 0, 4)
        x = (columns[None, :] * np.minimum(step, 2**15)[:, None].astype(np.int32) >> 8) & 255
        base = (level * 65536 + ((z // 2 + shift) & 255) * 256).astype(np.int32)
        canvas.pixels[start : start + len(rows)] += tiles[x + base[:, None]]


def draw_block(
    canvas: Canvas, camera: Camera, wall: int, block: Block, side: int, light: Light, random: Random
) -> None:
    """Paint a building, or the wall or fence of a park."""
    shade = light.left if side < 0 else light.right
    if block.kind == "building":
        pattern = _facade(canvas, block, light, random)
        _draw_front(canvas, camera, wall, side, block, pattern, light.front)
        _draw_side(canvas, camera, wall, block, pattern, shade)
    elif block.kind == "park" and block.barrier:
        _draw_side(canvas, camera, wall, block, _barrier(canvas, block, random), shade)


class Pattern:
    """A wall as a grid: `rows` and `columns` are codes per 4 cm, `values` the materials per pair of codes.

    A value has a middle shade, so that up to 10 steps can be added or taken away.
    """

    def __init__(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
        self.rows, self.columns, self.values = rows, columns, values


def _facade(canvas: Canvas, block: Block, light: Light, random: Random) -> Pattern:
    """Return floors of windows above a ground floor with shops or a plinth."""
    floor, ground = random.integer(290, 360) // 4, random.integer(320, 460) // 4
    window_low, window_high = floor * random.integer(22, 30) // 100, floor * random.integer(70, 85) // 100
    period = random.integer(220, 420) // 4
    margin = period * random.integer(18, 32) // 100
    height = block.height // 4
    rows = np.zeros(height, np.int32)  # floor * 4 + (0: wall, 1: window, 2: ledge)
    y = np.arange(height) - ground
    number = np.clip(y // floor + 1, 0, 30)
    inside = y % floor
    rows[:] = number * 4 + np.where((inside >= window_low) & (inside < window_high), 1, 0)
    if random.chance(60):
        rows[inside >= floor - 5] = 2
    shops = random.chance(55)
    low = y < 0
    shop_window = (y + ground > 16) & (y < -22) if shops else (y + ground > 36) & (y < -18)
    rows[low] = np.where(shop_window[low], 1, 0)
    rows[max(height - 12, 0) :] = 2
    length = max((block.far - block.near) // 4, 1)
    z = np.arange(length)
    columns = (z // period & 31) * 2 + ((z % period >= margin) & (z % period < period - margin))
    color = random.choice(_WALLS)
    middle = (block.near + block.far) // 2
    wall = canvas.material(CLASS["building"], color, middle) + MIDDLE
    glass = canvas.material(CLASS["building"], (70, 84, 98), middle) + MIDDLE
    blind = canvas.material(CLASS["building"], (200, 196, 186), middle) + MIDDLE
    lamp = canvas.material(CLASS["building"], (255, 214, 130), middle) + MIDDLE + 6
    shop = canvas.material(CLASS["building"], random.choice(_SHOPS), middle) + MIDDLE
    values = np.full((128, 64), wall, np.int32)
    values[2::4] = wall + 4
    kind = random.bytes(32, 32).astype(np.int32)
    windows = glass + kind % 9 - 6
    windows[kind > 220] = blind
    windows[kind < light.windows_lit] = lamp
    windows[0] = (shop if shops else glass) + kind[0] // 52 - 4
    values[1::4, 1::2] = windows
    values[0, :] = wall - 3  # the plinth
    return Pattern(rows, columns, values)


def _barrier(canvas: Canvas, block: Block, random: Random) -> Pattern:
    """Return a wall of stones, or a fence of bars."""
    height = max(block.height // 4, 2)
    length = max((block.far - block.near) // 4, 1)
    y, z = np.arange(height), np.arange(length)
    middle = (block.near + block.far) // 2
    values = np.zeros((128, 64), np.int32)
    if block.barrier == "wall":
        stone = canvas.material(CLASS["wall"], random.choice(_STONES), middle)
        values[:] = stone + MIDDLE
        values[1, 1] = stone + MIDDLE - 5
        rows = ((y % 12) >= 10).astype(np.int32)
        columns = ((z % 32) >= 2).astype(np.int32)
        values[0, 0] -= 3
    else:
        metal = canvas.material(CLASS["fence"], random.choice(_BARS), middle)
        values[:] = metal + MIDDLE + 2
        values[0, 0] = metal + 11
        rows = ((y % (height - 1)) < 2).astype(np.int32)
        columns = ((z % 10) >= 5).astype(np.int32)
    return Pattern(rows, columns, values)


def _draw_front(
    canvas: Canvas, camera: Camera, wall: int, side: int, block: Block, pattern: Pattern, shade: int
) -> None:
    """Paint the end of a building that faces the camera, from its corner outwards."""
    if block.near <= NEAR or camera.x(wall, block.near) in (0, canvas.width):
        return
    top, bottom = max(camera.y(block.height, block.near), 0), min(camera.y(0, block.near), canvas.height)
    left, right = (0, camera.x(wall, block.near)) if side < 0 else (camera.x(wall, block.near), canvas.width)
    left, right = max(left, 0), min(right, canvas.width)
    if top >= bottom or left >= right:
        return
    heights = camera.height + (camera.horizon - np.arange(top, bottom)) * block.near // camera.focal
    rows = pattern.rows[np.clip(heights >> 2, 0, len(pattern.rows) - 1)]
    depth = np.abs((np.arange(left, right) - camera.center) * block.near // camera.focal - wall) >> 2
    columns = pattern.columns[depth % len(pattern.columns)]
    flat = (pattern.values + (shade - MIDDLE)).astype(np.uint16).ravel()
    canvas.pixels[top:bottom, left:right] = flat[(rows * pattern.values.shape[1])[:, None] + columns]


def _draw_side(canvas: Canvas, camera: Camera, wall: int, block: Block, pattern: Pattern, shade: int) -> None:
    """Paint a wall along the street, in perspective."""
    near, far = max(block.near, NEAR), block.far
    left, right = sorted((camera.x(wall, near), camera.x(wall, far)))
    left, right = max(left, 0), min(right, canvas.width)
    if left >= right:
        return
    offsets = np.abs(np.arange(left, right, dtype=np.int64) - camera.center)
    z = np.clip(abs(wall) * camera.focal // np.maximum(offsets, 1), near, far - 1)
    first = np.clip(camera.horizon + (camera.height - block.height) * camera.focal // z, 0, canvas.height)
    last = np.clip(camera.horizon + camera.height * camera.focal // z, 0, canvas.height)
    columns = pattern.columns[np.minimum((z - block.near) >> 2, len(pattern.columns) - 1)]
    scale = ((z << 10) // (camera.focal * 4)).astype(np.int32)
    base = camera.height // 4
    flat = (pattern.values + (shade - MIDDLE)).astype(np.uint16).ravel()
    codes = (pattern.rows * pattern.values.shape[1]).astype(np.int32)
    highest = len(codes) - 1
    for start in range(int(first.min()), int(last.max()), 64):
        rows = np.arange(start, min(start + 64, int(last.max())), dtype=np.int32)[:, None]
        height = ((camera.horizon - rows) * scale >> 10) + base
        values = flat[codes[np.clip(height, 0, highest)] + columns]
        canvas.paint(start, left, values, (rows >= first) & (rows < last))
