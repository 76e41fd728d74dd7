"""Drawings of the animals: bird, bee, dog, cat and frog."""

import math

import numpy as np

from avgrad.scenes.pen import Pen, mirrored, smooth

WHITE = (0.12, 0.03, 1.0)
BLACK = (0.6, 0.2, 0.1)


def _eye(pen: Pen, x: float, y: float, size: float, iris: tuple[float, float, float] = WHITE) -> None:
    pen.ellipse(x, y, size, size * 1.1, pen.colour(*iris))
    pen.ellipse(x + 0.15 * size, y + 0.1 * size, size * 0.6, size * 0.7, pen.colour(*BLACK), outline=False)
    pen.ellipse(x - 0.1 * size, y - 0.25 * size, size * 0.25, size * 0.25, pen.colour(*WHITE), outline=False)


def bird(pen: Pen) -> None:
    """A songbird from the side, perched or with a raised wing."""
    h, s, v = pen.pick([(0.57, 0.7, 0.9), (0.99, 0.75, 0.85), (0.55, 0.45, 0.95), (0.62, 0.8, 0.75)])
    feathers, dark = pen.colour(h, s, v), pen.colour(h, min(1.0, s + 0.15), v * 0.65)
    breast = pen.colour(*pen.pick([(0.09, 0.6, 1.0), (0.12, 0.2, 1.0), (0.05, 0.7, 0.95)]))
    orange = pen.colour(0.1, 0.85, 0.95)
    tail = pen.uniform(-0.25, 0.25)
    for x in (-0.1, 0.15):
        pen.stroke([(x, 0.5), (x + 0.04, 0.9), (x + 0.22, 0.94)], orange, 0.08)
    pen.polygon([(-0.45, 0.0), (-1.25, -0.05 + tail), (-1.3, 0.22 + tail), (-1.1, 0.3 + tail), (-0.4, 0.4)], dark)
    pen.polygon(
        smooth([(-0.62, 0.12), (-0.3, -0.3), (0.15, -0.4), (0.6, -0.3), (0.75, 0.15), (0.4, 0.58), (-0.15, 0.6)]),
        feathers,
    )
    pen.polygon(smooth([(0.7, -0.1), (0.72, 0.2), (0.38, 0.54), (-0.1, 0.56), (0.3, 0.25)]), breast, outline=False)
    gape = pen.uniform(0.02, 0.16)
    pen.polygon([(0.8, -0.62), (1.3, -0.5 - gape), (0.85, -0.45)], orange)
    pen.polygon([(0.8, -0.5), (1.2, -0.38 + gape), (0.78, -0.34)], orange)
    pen.ellipse(0.55, -0.5, 0.4, 0.38, feathers)
    if pen.chance(0.45):
        for k in range(3):
            pen.stroke([(0.45, -0.85), (0.3 - 0.12 * k, -1.12 + 0.1 * k)], dark, 0.09)
    if pen.chance(0.4):
        tip = pen.uniform(-1.25, -0.9)
        wing = [(0.3, -0.05), (0.1, -0.6), (-0.35, tip), (-0.75, tip + 0.12), (-0.6, -0.4), (-0.3, 0.1)]
    else:
        wing = [(0.35, -0.1), (0.0, -0.25), (-0.55, -0.05), (-0.9, 0.2), (-0.4, 0.38), (0.1, 0.35)]
    pen.polygon(smooth(wing), dark)
    w = np.array(wing)
    for k in (2, 3, 4):
        pen.stroke([w[0] * 0.4 + w[k] * 0.6, w[k] * 0.9 + w[0] * 0.1], feathers, 0.05)
    _eye(pen, 0.62, -0.56, 0.13)


def bee(pen: Pen) -> None:
    """A round striped bee with glassy wings."""
    yellow = pen.colour(pen.uniform(0.11, 0.145), 0.85, 1.0)
    black = pen.colour(0.08, 0.5, 0.13)
    glass = pen.colour(0.53, pen.uniform(0.08, 0.3), 1.0, 175)
    spread = pen.uniform(-0.25, 0.25)
    for x, angle in ((-0.2, 1.9 + spread), (0.15, 1.25 + spread)):
        direction = np.array([math.cos(angle), -math.sin(angle)])
        cx, cy = np.array([x, -0.35]) + 0.5 * direction
        pen.ellipse(cx, cy, 0.58, 0.28, glass, angle=-angle)
        vein = [(x, -0.35), (x + 0.8 * direction[0], -0.35 + 0.8 * direction[1])]
        pen.stroke(vein, pen.colour(0.55, 0.2, 0.75, 200), 0.03)
    pen.polygon([(-0.85, 0.0), (-1.2, 0.16), (-0.82, 0.28)], black)
    length = pen.uniform(0.82, 0.98)
    height = pen.uniform(0.46, 0.58)
    pen.ellipse(-0.1, 0.12, length, height, yellow)
    count = 3 if pen.chance(0.6) else 4
    for k in range(count):
        x = -0.68 + (k + 0.5) * 1.05 / count
        half = height * math.sqrt(max(0.0, 1 - (x / length) ** 2))
        w = 0.3 / count
        pen.polygon(
            smooth(
                [
                    (x - 0.1 - w, 0.12 - half),
                    (x - 0.1 + w, 0.12 - half),
                    (x + w, 0.12),
                    (x - 0.1 + w, 0.12 + half),
                    (x - 0.1 - w, 0.12 + half),
                    (x - w, 0.12),
                ]
            ),
            black,
            outline=False,
        )
    pen.ellipse(0.7, 0.08, 0.38, 0.38, pen.colour(0.11, 0.8, 0.85) if pen.chance(0.5) else black)
    for dx in (0.0, 0.18):
        pen.stroke(smooth([(0.75 + dx, -0.25), (0.85 + dx, -0.55), (1.05 + dx, -0.68)], closed=False), black, 0.06)
        pen.ellipse(1.05 + dx, -0.68, 0.07, 0.07, black, outline=False)
    _eye(pen, 0.82, 0.02, 0.15)
    for x in (-0.3, 0.05, 0.35):
        pen.stroke([(x, 0.6), (x + 0.05, 0.8), (x + 0.15, 0.86)], black, 0.06)


def _sitting_body(pen: Pen, fur: tuple[int, int, int, int], paw: tuple[int, int, int, int]) -> None:
    pen.polygon(smooth(mirrored([(0.15, 0.1), (0.4, 0.25), (0.58, 0.7), (0.6, 1.08), (0.2, 1.12)])), fur)
    for side in (-1, 1):
        pen.ellipse(side * 0.22, 1.05, 0.2, 0.14, paw)
        pen.stroke([(side * 0.12, 0.6), (side * 0.13, 0.95)], pen.ink, 0.035)


def dog(pen: Pen) -> None:
    """A dog looking at you: floppy ears, a big muzzle, a tongue, often sitting."""
    h, s, v = pen.pick([(0.08, 0.6, 0.75), (0.09, 0.45, 0.9), (0.06, 0.65, 0.5), (0.1, 0.12, 0.95)])
    fur = pen.colour(h, s, v)
    ear = pen.colour(*pen.pick([(0.06, 0.65, 0.38), (0.05, 0.3, 0.2), (h, min(1.0, s + 0.2), v * 0.6)]))
    light = pen.colour(0.1, 0.18, 0.98)
    sitting = pen.chance(0.7)
    lift = -0.35 if sitting else 0.0
    if sitting:
        pen.stroke(smooth([(0.45, 0.95), (0.85, 0.8), (0.98, pen.uniform(0.3, 0.55))], closed=False), fur, 0.17)
        _sitting_body(pen, fur, light)
        pen.ellipse(0.0, 0.52, 0.22, 0.34, light, outline=False)
        pen.polygon(
            [(-0.32, 0.22), (0.32, 0.22), (0.28, 0.36), (-0.28, 0.36)],
            pen.colour(*pen.pick([(0.0, 0.85, 0.85), (0.6, 0.8, 0.8), (0.38, 0.7, 0.6)])),
        )
    grow = 0.8 if sitting else 1.05

    def at(points: list[tuple[float, float]]) -> np.ndarray:
        return np.array(points) * grow + (0, lift)

    head = at([(0.0, -0.72), (0.42, -0.62), (0.62, -0.2), (0.52, 0.3), (0.3, 0.66), (0, 0.74)])
    pen.polygon(smooth(np.concatenate([head, head[-2:0:-1] * (-1, 1)])), fur)
    if pen.chance(0.4):
        pen.ellipse(0.24 * grow, -0.12 * grow + lift, 0.24 * grow, 0.3 * grow, ear, outline=False)
    droop = pen.uniform(0.25, 0.6)
    for side in (-1, 1):
        flop = at(
            [
                (side * 0.36, -0.62),
                (side * 0.72, -0.62),
                (side * 0.98, -0.1),
                (side * 0.9, droop),
                (side * 0.66, droop - 0.05),
                (side * 0.56, -0.2),
            ]
        )
        pen.polygon(smooth(flop), ear)
    if pen.chance(0.75):
        pen.polygon(
            smooth(at([(-0.13, 0.5), (0.13, 0.5), (0.15, 0.82), (0, 0.95), (-0.15, 0.82)])),
            pen.colour(0.97, 0.55, 0.95),
        )
    for side in (-1, 1):
        pen.ellipse(side * 0.17 * grow, 0.38 * grow + lift, 0.24 * grow, 0.21 * grow, light, outline=False)
        x, y = at([(side * 0.25, -0.14)])[0]
        _eye(pen, x, y, 0.12 * grow)
    pen.ellipse(0, 0.18 * grow + lift, 0.19 * grow, 0.14 * grow, pen.colour(*BLACK))
    pen.stroke(at([(0.0, 0.28), (0.0, 0.44)]), pen.ink, 0.05)
    pen.stroke(
        smooth(at([(-0.26, 0.48), (-0.1, 0.54), (0, 0.44), (0.1, 0.54), (0.26, 0.48)]), closed=False),
        pen.ink,
        0.05,
    )


def cat(pen: Pen) -> None:
    """A cat looking at you: pointed ears, slit pupils, whiskers, a curled tail."""
    h, s, v = pen.pick([(0.6, 0.08, 0.55), (0.07, 0.75, 0.95), (0.65, 0.15, 0.25), (0.6, 0.05, 0.75)])
    fur, stripe = pen.colour(h, s, v), pen.colour(h, min(1.0, s * 1.2), v * 0.55)
    pink = pen.colour(0.97, 0.4, 0.98)
    light = pen.colour(0.1, 0.08, 1.0)
    sitting = pen.chance(0.7)
    lift, grow = (-0.38, 0.78) if sitting else (0.05, 1.05)
    if sitting:
        bend = pen.uniform(0.1, 0.4)
        pen.stroke(smooth([(0.4, 1.02), (0.85, 0.98), (1.0, 0.6), (0.85, 0.3), (1.0, bend)], closed=False), fur, 0.16)
        _sitting_body(pen, fur, light)
        if pen.chance(0.5):
            pen.ellipse(0.0, 0.55, 0.2, 0.32, light, outline=False)

    def at(points: list[tuple[float, float]]) -> np.ndarray:
        return np.array(points) * grow + (0, lift)

    ear = pen.uniform(-1.08, -0.9)
    for side in (-1, 1):
        pen.polygon(at([(side * 0.08, -0.5), (side * 0.6, ear), (side * 0.74, -0.1)]), fur)
        pen.polygon(at([(side * 0.28, -0.5), (side * 0.55, ear + 0.2), (side * 0.6, -0.25)]), pink, outline=False)
    pen.ellipse(0, lift, 0.78 * grow, 0.62 * grow, fur)
    if pen.chance(0.65):
        for x in (-0.2, 0.0, 0.2):
            pen.stroke(at([(x, -0.56), (x * 0.8, -0.3)]), stripe, 0.08)
        for side in (-1, 1):
            for y in (0.05, 0.22):
                pen.stroke(at([(side * 0.74, y), (side * 0.52, y - 0.02)]), stripe, 0.07)
    iris = pen.colour(*pen.pick([(0.3, 0.6, 0.85), (0.14, 0.7, 0.98), (0.52, 0.55, 0.95)]))
    for side in (-1, 1):
        x, y = at([(side * 0.3, -0.08)])[0]
        pen.ellipse(x, y, 0.19 * grow, 0.16 * grow, iris, angle=side * 0.3)
        pen.ellipse(x, y, pen.uniform(0.04, 0.09) * grow, 0.15 * grow, pen.colour(*BLACK), outline=False)
        pen.ellipse(side * 0.14 * grow, 0.3 * grow + lift, 0.2 * grow, 0.15 * grow, light, outline=False)
    pen.polygon(at([(-0.1, 0.14), (0.1, 0.14), (0, 0.25)]), pink)
    pen.stroke(
        smooth(at([(-0.2, 0.34), (-0.08, 0.38), (0, 0.26), (0.08, 0.38), (0.2, 0.34)]), closed=False),
        pen.ink,
        0.045,
    )
    whisker = pen.colour(0.1, 0.02, 1.0) if pen.chance(0.6) else pen.ink
    for side in (-1, 1):
        for y, dy in ((0.24, -0.1), (0.32, 0.02), (0.38, 0.14)):
            pen.stroke(at([(side * 0.32, y), (side * 1.02, y + dy)]), whisker, 0.045)


def frog(pen: Pen) -> None:
    """A squatting frog: eyes on top of a wide head, a wide mouth, folded legs."""
    h = pen.uniform(0.25, 0.38)
    skin, dark = pen.colour(h, 0.75, pen.uniform(0.6, 0.85)), pen.colour(h + 0.02, 0.85, 0.42)
    belly = pen.colour(0.17, 0.35, 0.97)
    for side in (-1, 1):
        pen.ellipse(side * 0.68, 0.5, 0.42, 0.36, skin, angle=side * -0.6)
        pen.polygon(smooth([(side * 0.45, 0.75), (side * 1.1, 0.72), (side * 1.22, 0.92), (side * 0.5, 0.95)]), dark)
    pen.ellipse(0, 0.3, 0.68, 0.62, skin)
    swell = pen.uniform(0.36, 0.5)
    pen.ellipse(0, 0.45, swell, swell * 0.95, belly, outline=False)
    for side in (-1, 1):
        pen.stroke([(side * 0.4, 0.45), (side * 0.32, 0.85)], dark, 0.15)
        for toe in (-0.12, 0.0, 0.12):
            pen.ellipse(side * 0.32 + toe, 0.92, 0.075, 0.06, dark, outline=False)
    for side in (-1, 1):
        pen.ellipse(side * 0.42, -0.62, 0.3, 0.3, skin)
    pen.polygon(smooth(mirrored([(0.2, -0.55), (0.65, -0.48), (0.92, -0.15), (0.7, 0.15), (0.25, 0.26)])), skin)
    for side in (-1, 1):
        x, y = side * 0.42, -0.66
        pen.ellipse(x, y, 0.21, 0.21, pen.colour(0.14, pen.uniform(0.1, 0.7), 1.0))
        pen.ellipse(x, y, 0.13, 0.08, pen.colour(*BLACK), outline=False)
        pen.ellipse(side * 0.1, -0.28, 0.035, 0.03, pen.ink, outline=False)
    smile = pen.uniform(0.02, 0.14)
    pen.stroke(
        smooth([(-0.72, -0.12), (-0.35, smile), (0, smile + 0.03), (0.35, smile), (0.72, -0.12)], closed=False),
        pen.ink,
        0.07,
    )
    for _ in range(int(pen.uniform(0, 6))):
        pen.ellipse(pen.uniform(-0.6, 0.6), pen.uniform(-0.42, -0.2), 0.07, 0.055, dark, outline=False)
