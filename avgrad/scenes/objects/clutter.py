"""Drawings of clutter: distractors and occluders that belong to no class."""

import math

import numpy as np

from avgrad.scenes.pen import Pen, mirrored, rectangle, smooth


def _paint(pen: Pen) -> tuple[float, float, float]:
    return pen.uniform(0, 1), pen.uniform(0.2, 0.85), pen.uniform(0.35, 0.95)


def ball(pen: Pen) -> None:
    """A ball with a band."""
    h, s, v = _paint(pen)
    pen.ellipse(0, 0, 0.85, 0.85, pen.colour(h, s, v))
    pen.polygon(
        smooth([(-0.82, -0.2), (0, 0.1), (0.82, -0.2), (0.82, 0.2), (0, 0.5), (-0.82, 0.2)]),
        pen.colour(h + 0.3, s, 0.95),
        outline=False,
    )
    pen.ellipse(-0.3, -0.4, 0.2, 0.14, pen.colour(0, 0, 1), outline=False)


def box(pen: Pen) -> None:
    """A box seen from a corner."""
    h, s, v = _paint(pen)
    pen.polygon([(-0.85, -0.4), (0, -0.1), (0, 0.9), (-0.85, 0.5)], pen.colour(h, s, v))
    pen.polygon([(0.85, -0.4), (0, -0.1), (0, 0.9), (0.85, 0.5)], pen.colour(h, s, v * 0.65))
    pen.polygon([(-0.85, -0.4), (0, -0.7), (0.85, -0.4), (0, -0.1)], pen.colour(h, s * 0.6, min(1, v * 1.25)))


def mug(pen: Pen) -> None:
    """A mug with a handle."""
    h, s, v = _paint(pen)
    pen.stroke(
        smooth([(0.5, -0.3), (0.95, -0.25), (0.95, 0.25), (0.5, 0.35)], closed=False),
        pen.colour(h, s, v * 0.8),
        0.17,
    )
    pen.polygon([(-0.6, -0.6), (0.6, -0.6), (0.52, 0.75), (-0.52, 0.75)], pen.colour(h, s, v))
    pen.ellipse(0, -0.6, 0.6, 0.16, pen.colour(h, s * 0.3, 0.95))
    pen.ellipse(0, -0.58, 0.48, 0.1, pen.colour(0.06, 0.7, 0.3), outline=False)


def plant(pen: Pen) -> None:
    """A potted plant."""
    for _ in range(int(pen.uniform(5, 9))):
        a, r = pen.uniform(-2.6, -0.5), pen.uniform(0.7, 1.1)
        x, y = math.cos(a) * r * 0.5, 0.2 + math.sin(a) * r * 0.55
        pen.ellipse(x, y, r * 0.5, 0.17, pen.colour(pen.uniform(0.24, 0.42), 0.65, pen.uniform(0.35, 0.75)), angle=a)
    pen.polygon([(-0.45, 0.2), (0.45, 0.2), (0.32, 0.95), (-0.32, 0.95)], pen.colour(0.05, 0.65, 0.75))
    pen.polygon(rectangle(-0.52, 0.12, 0.52, 0.32), pen.colour(0.05, 0.65, 0.85))


def mushroom(pen: Pen) -> None:
    """A mushroom with a spotted cap."""
    h, s, v = _paint(pen)
    pen.polygon(smooth(mirrored([(0.2, -0.1), (0.22, 0.5), (0.35, 0.9), (0.1, 0.95)])), pen.colour(0.11, 0.15, 0.95))
    pen.polygon(smooth(mirrored([(0.3, -0.85), (0.8, -0.4), (0.92, 0.05), (0.5, 0.1)])), pen.colour(h, s, v))
    for x, y in ((-0.4, -0.35), (0.1, -0.6), (0.45, -0.2), (0.0, -0.15)):
        pen.ellipse(x, y, pen.uniform(0.08, 0.16), 0.1, pen.colour(0.1, 0.05, 1.0), outline=False)


def star(pen: Pen) -> None:
    """A star with four to seven points."""
    h, s, v = _paint(pen)
    n = int(pen.uniform(4, 8))
    a = np.arange(2 * n) * math.pi / n
    r = np.where(np.arange(2 * n) % 2 == 0, 1.0, pen.uniform(0.4, 0.6))
    pen.polygon(np.stack([np.cos(a) * r, np.sin(a) * r], 1), pen.colour(h, s, v))


def books(pen: Pen) -> None:
    """A pile of closed books."""
    y = 0.75
    for _ in range(int(pen.uniform(2, 5))):
        h, s, v = _paint(pen)
        thick, x, w = pen.uniform(0.2, 0.36), pen.uniform(-0.12, 0.12), pen.uniform(0.65, 0.9)
        pen.polygon(rectangle(x - w, y - thick, x + w, y), pen.colour(h, s, v))
        pen.polygon(rectangle(x + w - 0.3, y - thick + 0.06, x + w, y - 0.06), pen.colour(0.12, 0.15, 0.95))
        y -= thick


def stone(pen: Pen) -> None:
    """A boulder."""
    a = np.arange(9) * 2 * math.pi / 9
    r = pen.rng.uniform(0.6, 1.0, 9)
    outline = smooth(np.stack([np.cos(a) * r, np.sin(a) * r * 0.75], 1))
    h, s, v = pen.uniform(0.05, 0.65), pen.uniform(0.05, 0.25), pen.uniform(0.35, 0.8)
    pen.polygon(outline, pen.colour(h, s, v))
    pen.polygon(outline * (0.6, 0.5) - (0.1, 0.15), pen.colour(h, s, min(1, v * 1.2)), outline=False)


def vase(pen: Pen) -> None:
    """A vase or bottle with a random profile."""
    h, s, v = _paint(pen)
    widths = pen.rng.uniform(0.18, 0.6, 5)
    ys = np.linspace(-0.95, 0.95, 5)
    pen.polygon(mirrored(smooth(np.stack([widths, ys], 1), closed=False)), pen.colour(h, s, v))
    pen.stroke(np.stack([-widths[1:4] * 0.5, ys[1:4]], 1), pen.colour(h, s * 0.3, 1.0), 0.08)


def tree(pen: Pen) -> None:
    """A trunk with a crown."""
    h, s, v = _paint(pen)
    pen.polygon(rectangle(-0.1, -0.4, 0.1, 1.2), pen.colour(0.07, 0.5, 0.4))
    for _ in range(4):
        pen.ellipse(
            pen.uniform(-0.3, 0.3),
            pen.uniform(-0.9, -0.4),
            pen.uniform(0.3, 0.5),
            pen.uniform(0.3, 0.45),
            pen.colour(h, s, v * pen.uniform(0.8, 1.1)),
        )


CLUTTER = (ball, box, mug, plant, mushroom, star, books, stone, vase, tree)
