"""The camera: from centimetres in the street to pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

from hyperseg.data.synthetic.canvas import Canvas, Point

NEAR = 150  # centimetres; nothing is drawn closer to the camera
FAR = 20000


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along the street. x: to the right; height: above the ground; z: distance.

    focal: in pixels; center, horizon: the vanishing point of the street; height: of the camera.
    """

    focal: int
    center: int
    horizon: int
    height: int

    def x(self, x: int, z: int) -> int:
        """Return the column of a point."""
        return self.center + x * self.focal // z

    def y(self, height: int, z: int) -> int:
        """Return the row of a point."""
        return self.horizon + (self.height - height) * self.focal // z

    def point(self, x: int, height: int, z: int) -> Point:
        """Return column and row of a point."""
        return self.x(x, z), self.y(height, z)

    def ground(self, left: int, right: int, near: int, far: int) -> list[Point]:
        """Return the corners of a rectangle on the ground."""
        near = max(near, NEAR)
        return [self.point(x, 0, z) for x, z in ((left, near), (right, near), (right, far), (left, far))]


class Board:
    """Draws a flat object that faces the camera, in centimetres from the middle of its foot.

    squash: how many percent of its width are seen, as it is turned away from the camera; negative mirrors it.
    """

    def __init__(self, canvas: Canvas, camera: Camera, x: int, z: int, squash: int = 100) -> None:
        self.canvas, self.camera, self.z = canvas, camera, z
        self._x, self._squash = x, squash

    def pixel(self, x: int, height: int) -> Point:
        """Return the pixel of a point of the object."""
        return self.camera.point(self._x + x * self._squash // 100, height, self.z)

    def polygon(self, points: Sequence[Point], value: int) -> None:
        """Fill a convex polygon."""
        self.canvas.polygon([self.pixel(*point) for point in points], value)

    def rectangle(self, left: int, bottom: int, right: int, top: int, value: int) -> None:
        """Fill a rectangle."""
        (x0, y0), (x1, y1) = self.pixel(left, top), self.pixel(right, bottom)
        self.canvas.rectangle(min(x0, x1), y0, max(x0, x1), y1, value)

    def ellipse(self, x: int, height: int, radius_x: int, radius_y: int, value: int) -> None:
        """Fill an ellipse."""
        scale = self.camera.focal
        wide, high = radius_x * abs(self._squash) * scale // (100 * self.z), radius_y * scale // self.z
        self.canvas.ellipse(*self.pixel(x, height), wide, high, value)

    def limb(self, x0: int, height0: int, x1: int, height1: int, width: int, value: int) -> None:
        """Draw a line that is `width` wide, more upright than level."""
        half = width // 2
        self.polygon([(x0 - half, height0), (x0 + half, height0), (x1 + half, height1), (x1 - half, height1)], value)
