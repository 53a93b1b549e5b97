"""The plan of a street: where road, sidewalks, buildings, gaps and crossings are, in centimetres."""

from collections.abc import Iterator
from dataclasses import dataclass

from hyperseg.data.synthetic.camera import FAR, NEAR
from hyperseg.data.synthetic.numbers import Random


@dataclass(frozen=True)
class Block:
    """A part of one side of the street: a "building", a "park", or a "gap" where a street crosses.

    barrier: "wall", "fence" or "" at the edge of a park.
    """

    kind: str
    near: int
    far: int
    height: int
    barrier: str = ""


@dataclass(frozen=True)
class Street:
    """A straight street. x is 0 at the camera; sidewalks begin at `left` and `right`.

    parking: for each side, whether cars may be parked at the edge of the road.
    lines: x, length and gap of the broken lines on the road.
    joint: length of the slabs of the sidewalk.
    verges: for each side, how far grass reaches from the curb; 0 if there is none.
    """

    left: int
    right: int
    left_walk: int
    right_walk: int
    left_blocks: tuple[Block, ...]
    right_blocks: tuple[Block, ...]
    crossings: tuple[tuple[int, int], ...]
    zebras: tuple[tuple[int, int], ...]
    parking: tuple[bool, bool]
    lines: tuple[tuple[int, int, int], ...]
    joint: int
    verges: tuple[int, int]

    def wall(self, side: int) -> int:
        """Return x of the buildings on the left (-1) or right (1)."""
        return self.left - self.left_walk if side < 0 else self.right + self.right_walk

    def curb(self, side: int) -> int:
        """Return x where the sidewalk begins."""
        return self.left if side < 0 else self.right

    def blocks(self, side: int) -> tuple[Block, ...]:
        """Return the blocks of one side, the nearest first."""
        return self.left_blocks if side < 0 else self.right_blocks

    def in_crossing(self, near: int, far: int) -> bool:
        """Return whether a stretch of the street touches a crossing or its stripes."""
        return any(near < end and far > start for start, end in (*self.crossings, *self.zebras))

    def between_crossings(self) -> Iterator[tuple[int, int]]:
        """Yield the stretches with a curb."""
        near = NEAR
        for start, end in sorted(self.crossings):
            if start > near:
                yield near, start
            near = max(near, end)
        yield near, FAR


def plan_street(random: Random) -> Street:
    """Plan a street."""
    parking = (random.chance(65), random.chance(65))
    left = -random.integer(420, 640) - 210 * parking[0]
    right = random.integer(200, 300) + 210 * parking[1]
    crossings, zebras = [], []
    if random.chance(50):
        near = random.integer(1400, 5000)
        far = near + random.integer(700, 1100)
        crossings.append((near, far))
        if random.chance(70):
            zebras.append((near - 420, near - 80))
    elif random.chance(30):
        near = random.integer(900, 3000)
        zebras.append((near, near + 350))
    lane = (left + 210 * parking[0] + right - 210 * parking[1]) // 2
    lines = [(lane, 300, random.choice((300, 450, 600)))]
    if parking[1] and random.chance(60):
        lines.append((right - 215, 6000, 1))
    walks = random.integer(220, 480), random.integer(220, 480)
    verges = [random.integer(90, 150) if walk > 300 and random.chance(45) else 0 for walk in walks]
    style = random.integer(0, 2)  # a street of houses, one with parks, one of tall buildings
    return Street(
        left=left,
        right=right,
        left_walk=walks[0],
        right_walk=walks[1],
        left_blocks=tuple(_blocks(random, crossings, style)),
        right_blocks=tuple(_blocks(random, crossings, style)),
        crossings=tuple(crossings),
        zebras=tuple(zebras),
        parking=parking,
        lines=tuple(lines),
        joint=random.choice((60, 80, 120)),
        verges=(verges[0], verges[1]),
    )


def _blocks(random: Random, crossings: list[tuple[int, int]], style: int) -> Iterator[Block]:
    z = -random.integer(0, 1500)
    lowest, highest = ((600, 1300), (500, 1500), (1200, 2800))[style]
    while z < FAR:
        far = z + random.integer(900, 2600)
        crossing = next(((start, end) for start, end in crossings if z < end and far > start), None)
        if crossing is not None:
            start, end = crossing[0] - 250, crossing[1] + 250
            if z < start - 300:
                far = start
            else:
                yield Block("gap", z, max(end, z + 1), 0)
                z = max(end, z + 1)
                continue
        if random.chance((12, 45, 8)[style]):
            barrier = random.choice(("wall", "fence", "fence", ""))
            yield Block("park", z, far, random.integer(90, 190), barrier)
        else:
            yield Block("building", z, far, random.integer(lowest, highest))
        z = far
