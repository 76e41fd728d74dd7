"""Antialiased vector drawing in unit coordinates, with random distortion and tint."""

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]
Colour = tuple[int, int, int, int]

# drawings must stay within this many units of their centre, after rotation and bending
REACH = 1.7

_STEPS = 6
_T = np.arange(_STEPS) / _STEPS
_CATMULL_ROM = 0.5 * np.stack(
    [-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3, -(_T**2) + _T**3], axis=1
)
_CIRCLES = {n: np.stack([np.cos(a), np.sin(a)], 1) for n in (14, 28) for a in [np.arange(n) * (2 * math.pi / n)]}


def _pieces(control: Points) -> Points:
    curve: Points = np.einsum("sc,cnd->nsd", _CATMULL_ROM, control).reshape(-1, 2)
    return curve


def smooth(points: ArrayLike, closed: bool = True) -> Points:
    """A Catmull-Rom curve through `points` [n, 2], with six samples per segment."""
    p = np.asarray(points, dtype=np.float64)
    if closed:
        control = np.stack([np.roll(p, 1, 0), p, np.roll(p, -1, 0), np.roll(p, -2, 0)])
        return _pieces(control)
    ends = np.concatenate([p[:1], p, p[-1:]])
    control = np.stack([ends[:-3], ends[1:-2], ends[2:-1], ends[3:]])
    return np.concatenate([_pieces(control), p[-1:]])


def mirrored(points: ArrayLike) -> Points:
    """The closed outline whose right half is `points` [n, 2], from top to bottom; mirrored at x = 0."""
    right = np.asarray(points, dtype=np.float64)
    return np.concatenate([right, right[::-1] * (-1.0, 1.0)])


def rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    """The four corners of an axis-aligned rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


class Pen:
    """Draws one object.

    Coordinates are in units: x to the right, y down, the object's centre at (0, 0) and its silhouette at a distance of
    about 1. Rotation, mirroring, proportions, bending, tint and outline are random and drawn from `rng` here, so the
    drawing functions vary only what is specific to their class.

    Args:
        rng: source of randomness.
        centre: position (x, y) of the object's centre in image pixels.
        unit: length of one unit in image pixels.
        supersampling: canvas pixels per image pixel, along each axis.
        tilt: maximum rotation to either side, in radians.
        mirror: whether the object may be mirrored horizontally.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        centre: tuple[float, float],
        unit: float,
        supersampling: int,
        tilt: float = 0.25,
        mirror: bool = True,
    ) -> None:
        self.rng = rng
        self._supersampling = supersampling
        self._left = math.floor(centre[0] - REACH * unit)
        self._top = math.floor(centre[1] - REACH * unit)
        side = (math.ceil(2 * REACH * unit) + 1) * supersampling
        angle, aspect, shear = self.uniform(-tilt, tilt), self.uniform(-0.14, 0.14), self.uniform(-0.08, 0.08)
        flip = -1.0 if mirror and self.chance(0.5) else 1.0
        proportions = np.array([[flip * math.exp(aspect / 2), shear], [0.0, math.exp(-aspect / 2)]])
        rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        self._scale = unit * supersampling
        self._matrix = (rotation @ proportions * self._scale).T
        self._offset = ((np.array(centre) - (self._left, self._top)) * supersampling)[None]
        self._bend = (self.uniform(0.01, 0.05), rng.uniform(1.5, 3.0, 2), rng.uniform(0, 2 * math.pi, 2))
        off_palette = self.chance(0.05)
        self._hue = self.uniform(0, 1) if off_palette else float(rng.normal(0, 0.018))
        self._saturation = self.uniform(0.7, 1.15)
        self._value = self.uniform(0.82, 1.08)
        self._wash = self.uniform(0.0, 0.5) if off_palette else self.uniform(0.0, 0.05)
        self._outlined = not self.chance(0.05)
        self.line = self.uniform(0.035, 0.07)
        self.ink = self.colour(self.uniform(0, 1), 0.4, self.uniform(0.05, 0.2))
        self._image = Image.new("RGBA", (side, side), (*self.ink[:3], 0))
        self._draw = ImageDraw.Draw(self._image)

    def uniform(self, low: float, high: float) -> float:
        """A uniform random number in [low, high)."""
        return low + (high - low) * self.rng.random()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.rng.random() < probability

    def pick(self, choices: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
        """One of the choices, with equal probability."""
        return choices[int(self.rng.random() * len(choices))]

    def colour(self, hue: float, saturation: float, value: float, alpha: int = 255) -> Colour:
        """An RGBA colour with this object's tint; hue, saturation and value in [0, 1], alpha in [0, 255]."""
        s = min(1.0, saturation * self._saturation + self._wash * (1 - saturation) * value)
        r, g, b = colorsys.hsv_to_rgb((hue + self._hue) % 1.0, s, min(1.0, max(0.0, value * self._value)))
        return int(255 * r), int(255 * g), int(255 * b), alpha

    def _place(self, points: Points) -> list[tuple[float, ...]]:
        amount, frequency, phase = self._bend
        bent = points + amount * np.sin(points[:, ::-1] * frequency + phase)
        return list(map(tuple, (bent @ self._matrix + self._offset).tolist()))

    def polygon(self, points: ArrayLike, fill: Colour, outline: bool = True) -> None:
        """Fills a polygon [n, 2]; `outline` adds an outline if the object has outlines."""
        placed = self._place(np.asarray(points, dtype=np.float64))
        self._draw.polygon(placed, fill=fill)
        if outline and self._outlined:
            joint = "curve" if len(placed) < 12 else None
            width = max(1, round(self.line * self._scale))
            self._draw.line([*placed, placed[0], placed[1]], fill=self.ink, width=width, joint=joint)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, fill: Colour, outline: bool = True, angle: float = 0.0
    ) -> None:
        """Fills an ellipse with centre (x, y) and radii (rx, ry), rotated by `angle` radians."""
        points = _CIRCLES[14 if max(rx, ry) < 0.25 else 28] * (rx, ry)
        if angle:
            c, s = math.cos(angle), math.sin(angle)
            points = points @ np.array([[c, s], [-s, c]])
        self.polygon(points + np.array((x, y)), fill, outline)

    def stroke(self, points: ArrayLike, fill: Colour, width: float) -> None:
        """Draws a polyline through `points` [n, 2] with round ends; `width` in units."""
        placed = self._place(np.asarray(points, dtype=np.float64))
        pixels = max(1, round(width * self._scale))
        self._draw.line(placed, fill=fill, width=pixels, joint="curve" if pixels > 2 and len(placed) < 40 else None)
        if pixels > 3:
            radius = pixels / 2
            for x, y in (placed[0], placed[-1]):
                self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)

    def finish(self) -> tuple[Image.Image, int, int] | None:
        """The drawing at the image's resolution (RGBA), and its left and top in image pixels; None if it is empty."""
        box = self._image.getbbox()
        if box is None:
            return None
        k = self._supersampling
        left, top = box[0] // k, box[1] // k
        right, bottom = -(-box[2] // k), -(-box[3] // k)
        reduced = self._image.crop((left * k, top * k, right * k, bottom * k)).reduce(k)
        return reduced, self._left + left, self._top + top
