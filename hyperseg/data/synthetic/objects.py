"""The objects of a scene, with their distances: beside the street, and on it."""

from collections.abc import Callable, Iterator
from functools import partial

from hyperseg.data.synthetic import furniture, people, vehicles
from hyperseg.data.synthetic.camera import NEAR, Camera
from hyperseg.data.synthetic.canvas import Canvas, Light
from hyperseg.data.synthetic.layout import Street
from hyperseg.data.synthetic.numbers import Random
from hyperseg.data.synthetic.street import draw_block

Placed = tuple[int, Callable[[], None]]  # a distance, and the function that draws
_FAR = 14000  # the most distant object


class Stage:
    """What objects need to be placed."""

    def __init__(self, canvas: Canvas, camera: Camera, street: Street, light: Light, random: Random) -> None:
        self.canvas, self.camera, self.street, self.light, self.random = canvas, camera, street, light, random

    def place(self, draw: Callable[..., None], x: int, z: int, *arguments: object) -> Placed:
        """Return an object, which has random numbers of its own."""
        own = Random(self.random.bits())
        return z, lambda: draw(self.canvas, self.camera, x, z, *arguments, own)

    def shade(self, side: int) -> int:
        """Return the shade of surfaces that face the middle of the street."""
        return self.light.left if side < 0 else self.light.right


def beside_street(stage: Stage) -> Iterator[Placed]:
    """Yield buildings, walls, fences and parks, in any order."""
    for side in (-1, 1):
        yield from _parks(stage, side)
        for block in stage.street.blocks(side):
            own = Random(stage.random.bits())
            yield (
                block.near,
                partial(draw_block, stage.canvas, stage.camera, stage.street.wall(side), block, side, stage.light, own),
            )


def on_street(stage: Stage) -> Iterator[Placed]:
    """Yield the objects on road and sidewalks, in any order."""
    for side in (-1, 1):
        yield from _trees(stage, side)
        yield from _poles(stage, side)
        yield from _parked(stage, side)
        yield from _walkers(stage, side)
    yield from _traffic(stage)


def _parks(stage: Stage, side: int) -> Iterator[Placed]:
    street, random = stage.street, stage.random
    for block in street.blocks(side):
        if block.kind == "park":
            wall = street.wall(side)
            for _ in range(5):
                z = random.integer(max(block.near, NEAR), max(block.far, NEAR + 1))
                yield stage.place(furniture.draw_tree, wall + side * random.integer(150, 1500), z)
            for depth in range(4):
                height = random.integer(250, 700) if depth else random.integer(100, 200)
                z = random.integer(max(block.near, NEAR), max(block.far, NEAR + 1))
                yield stage.place(furniture.draw_bush, wall + side * (200 + height // 2 + 500 * depth), z, height)


def _trees(stage: Stage, side: int) -> Iterator[Placed]:
    street, random = stage.street, stage.random
    if random.chance(55):
        step = random.integer(700, 1600)
        for z in range(random.integer(500, 1500), _FAR // 2, step):
            if random.chance(75) and not street.in_crossing(z - 200, z + 200):
                yield stage.place(furniture.draw_tree, street.curb(side) + side * 90, z)


def _poles(stage: Stage, side: int) -> Iterator[Placed]:
    street, random = stage.street, stage.random
    x = street.curb(side) + side * 40
    if random.chance(75):
        for z in range(random.integer(500, 2500), _FAR, random.integer(1800, 3200)):
            if not street.in_crossing(z - 50, z + 50):
                yield stage.place(furniture.draw_lamp, x, z, side)
    for _ in range(random.integer(1, 4)):
        z = random.integer(500, 5000)
        if not street.in_crossing(z - 50, z + 50):
            yield stage.place(furniture.draw_sign, x, z)
    for near, far in street.crossings:
        yield stage.place(furniture.draw_traffic_light, x, near - 60 if side > 0 else far + 60, side)
    for _ in range(random.integer(0, 2)):
        z = random.integer(500, 3000)
        if not street.in_crossing(z - 50, z + 50):
            yield stage.place(furniture.draw_bin, street.wall(side) - side * 50, z)


def _parked(stage: Stage, side: int) -> Iterator[Placed]:
    street, random = stage.street, stage.random
    x = street.curb(side)
    if street.parking[side > 0]:
        z = random.integer(180, 900)
        fullness = random.integer(40, 95)
        while z < 9000:
            shape = vehicles.shape_of(random, parked=True)
            free = not street.in_crossing(z, z + shape.length)
            if free and random.chance(fullness):
                middle = x - side * (shape.width // 2 + random.integer(8, 22))
                yield stage.place(vehicles.draw_vehicle, middle, z, shape, side > 0, stage.shade(side))
            z += shape.length + random.integer(60, 160)
    for _ in range(random.integer(0, 4)):
        z, motor = random.integer(500, 2600), random.chance(30)
        squash = random.integer(45, 100)
        if not street.in_crossing(z - 100, z + 100):
            yield stage.place(people.draw_cycle, x + side * random.integer(60, 130), z, squash, motor, False)


def _walkers(stage: Stage, side: int) -> Iterator[Placed]:
    street, random = stage.street, stage.random
    low, high = sorted((street.curb(side) + side * 40, street.wall(side) - side * 40))
    for _ in range(random.integer(0, 7)):
        x, z = random.integer(low, high), random.integer(500, 4500)
        for friend in range(random.choice((1, 1, 1, 2, 3))):
            yield stage.place(people.draw_person, x + 55 * friend, z + 20 * friend)


def _traffic(stage: Stage) -> Iterator[Placed]:
    street, random = stage.street, stage.random
    left = street.left + 210 * street.parking[0]
    right = street.right - 210 * street.parking[1]
    lane = (left + right) // 2
    own, oncoming = (lane + right) // 2, (left + lane) // 2
    if random.chance(6):
        z = random.integer(900, 4000)
        yield stage.place(vehicles.draw_vehicle, oncoming, z, vehicles.TRAM, False, stage.shade(-1))
    else:
        for z in range(random.integer(700, 4000), 11000, random.integer(1500, 4000)):
            if random.chance(70):
                shape = vehicles.shape_of(random, parked=False)
                yield stage.place(vehicles.draw_vehicle, oncoming, z, shape, False, stage.shade(-1))
    for z in range(random.integer(800, 3500), 11000, random.integer(1800, 4000)):
        if random.chance(65):
            shape = vehicles.shape_of(random, parked=False)
            yield stage.place(vehicles.draw_vehicle, own, z, shape, True, stage.shade(1))
    for _ in range(random.integer(0, 2)):
        side, z = random.choice((-1, 1)), random.integer(600, 3500)
        x = right - 40 if side > 0 else left + 40
        yield stage.place(people.draw_cycle, x, z, random.integer(45, 75), random.chance(30), True)
    for near, far in street.zebras:
        for _ in range(random.integer(0, 4)):
            x, z = random.integer(street.left + 50, street.right - 50), random.integer(near, far)
            if random.chance(15):
                yield stage.place(people.draw_cycle, x, z, 100, False, True)
            else:
                yield stage.place(people.draw_person, x, z)
