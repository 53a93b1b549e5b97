"""A scene: a street with its light, and everything in it from the most distant to the nearest."""

from hyperseg.data.synthetic.camera import Camera
from hyperseg.data.synthetic.canvas import IGNORED, MIDDLE, Canvas, Light
from hyperseg.data.synthetic.layout import plan_street
from hyperseg.data.synthetic.numbers import Random
from hyperseg.data.synthetic.objects import Stage, beside_street, on_street
from hyperseg.data.synthetic.street import draw_ground, draw_sky, draw_skyline


def draw_scene(height: int, width: int, *key: object) -> Canvas:
    """Return the scene of a key. Its plan does not depend on the size: other sizes show the same street."""
    light = choose_light(Random(*key, "light"))
    random = Random(*key, "camera")
    camera = Camera(
        focal=max(3 * (2 * height + width) // 8, 1),
        center=width * random.integer(38, 62) // 100,
        horizon=height * random.integer(38, 48) // 100,
        height=random.integer(125, 165),
    )
    street = plan_street(Random(*key, "street"))
    canvas = Canvas(height, width, light)
    draw_sky(canvas, camera, light, Random(*key, "sky"))
    draw_skyline(canvas, camera, Random(*key, "skyline"))
    draw_ground(canvas, camera, street, light, Random(*key, "ground"))
    stage = Stage(canvas, camera, street, light, Random(*key, "objects"))
    # Nothing on the street is hidden by what is beside it.
    for group in (beside_street(stage), on_street(stage)):
        for _, draw in sorted(group, key=lambda pair: -pair[0]):
            draw()
    _draw_bonnet(canvas, Random(*key, "bonnet"))
    return canvas


def choose_light(random: Random) -> Light:
    """Return the light of a sunny or overcast day, or of an evening."""
    kind = random.integer(0, 99)
    left_lit = random.chance(50)
    strength = random.integer(220, 280)
    if kind < 45:
        bright, dark = MIDDLE + 5, MIDDLE - 5
        left, right = (bright, dark) if left_lit else (dark, bright)
        gains = (strength + 6, strength, strength - 14)
        sky = ((96, 148, 214), (236, 242, 250))
        return Light(gains, (196, 210, 226), 26000, sky, left, right, MIDDLE - 1, random.choice((3, 3, 7)), 6, 5)
    if kind < 80:
        gains = (strength - 40, strength - 36, strength - 32)
        sky = ((170, 180, 192), (236, 238, 240))
        left, right = (MIDDLE + 1, MIDDLE - 1) if left_lit else (MIDDLE - 1, MIDDLE + 1)
        return Light(gains, (206, 210, 214), 14000, sky, left, right, MIDDLE, random.choice((3, 7)), 0, 15)
    gains = (strength - 56, strength - 80, strength - 92)
    sky = ((84, 88, 128), (246, 186, 138))
    left, right = (MIDDLE + 2, MIDDLE - 4) if left_lit else (MIDDLE - 4, MIDDLE + 2)
    return Light(gains, (160, 130, 126), 20000, sky, left, right, MIDDLE - 3, random.choice((7, 15)), 2, 100)


def _draw_bonnet(canvas: Canvas, random: Random) -> None:
    """Paint the bonnet of the camera's own car in half of the scenes; it is ignored, as in Cityscapes."""
    if random.chance(50):
        high = canvas.height * random.integer(4, 9) // 100
        value = canvas.material(IGNORED, (52, 54, 60)) + MIDDLE
        middle = canvas.width // 2
        canvas.ellipse(middle, canvas.height + high, canvas.width * 6 // 10, high * 2, value)
        canvas.ellipse(middle, canvas.height + high + high // 3, canvas.width * 5 // 10, high * 2, value + 4)
