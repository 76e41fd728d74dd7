"""Drawings of the instruments: bell, drum, guitar and piano."""

import math

import numpy as np

from avgrad.scenes.pen import Pen, mirrored, rectangle, smooth


def bell(pen: Pen) -> None:
    """A flared bell with a rim, a clapper and a ring or a ribbon on top."""
    h, s, v = pen.pick([(0.125, 0.75, 0.98), (0.11, 0.8, 0.9), (0.09, 0.65, 0.8), (0.13, 0.45, 0.95)])
    metal, dark, light = pen.colour(h, s, v), pen.colour(h - 0.02, s, v * 0.65), pen.colour(h, s * 0.35, 1.0)
    flare = pen.uniform(0.8, 1.0)
    swing = pen.uniform(-0.2, 0.2)
    if pen.chance(0.5):
        pen.ellipse(0, -0.95, 0.22, 0.22, dark)
        pen.ellipse(0, -0.95, 0.1, 0.1, pen.ink, outline=False)
    else:
        ribbon = pen.colour(*pen.pick([(0.99, 0.8, 0.85), (0.6, 0.7, 0.8), (0.38, 0.7, 0.6)]))
        for side in (-1, 1):
            pen.polygon(smooth([(0, -0.85), (side * 0.35, -1.15), (side * 0.6, -1.0), (side * 0.4, -0.75)]), ribbon)
        pen.ellipse(0, -0.88, 0.14, 0.12, ribbon)
    pen.stroke([(0, 0.5), (swing, 0.86)], dark, 0.09)
    pen.ellipse(swing, 0.88, 0.2, 0.19, dark)
    side_curve = smooth(
        [(0.12, -0.84), (0.4, -0.66), (0.5, -0.2), (0.58, 0.2), (0.72, 0.5), (flare, 0.68)], closed=False
    )
    pen.polygon(mirrored(side_curve), metal)
    pen.polygon(
        smooth([(-0.4, -0.4), (-0.28, -0.6), (-0.22, 0.0), (-0.34, 0.5), (-0.46, 0.45), (-0.36, 0.0)]),
        light,
        outline=False,
    )
    pen.polygon(
        smooth([(0.3, -0.55), (0.42, -0.2), (0.52, 0.3), (0.62, 0.52), (0.4, 0.52), (0.32, 0.0)]),
        dark,
        outline=False,
    )
    rim = smooth(mirrored([(0.3, 0.58), (flare, 0.56), (flare + 0.1, 0.68), (flare, 0.8), (0.3, 0.8)]))
    pen.polygon(rim, metal)
    pen.stroke([(-flare * 0.8, 0.66), (flare * 0.3, 0.66)], light, 0.05)
    for y in (-0.35, 0.25):
        if pen.chance(0.6):
            w = 0.49 if y < 0 else 0.6
            pen.stroke(smooth([(-w, y), (0, y + 0.07), (w, y)], closed=False), dark, 0.07)


def drum(pen: Pen) -> None:
    """A snare drum seen from above its edge: bright shell, zigzag cords, pale skin, often two sticks."""
    h, s, v = pen.pick([(0.99, 0.8, 0.85), (0.01, 0.75, 0.7), (0.6, 0.75, 0.8), (0.97, 0.7, 0.75), (0.04, 0.85, 0.9)])
    shell, shade = pen.colour(h, s, v), pen.colour(h, s, v * 0.7)
    rim = pen.colour(*pen.pick([(0.13, 0.65, 0.95), (0.6, 0.05, 0.9), (0.08, 0.5, 0.6)]))
    cord = pen.colour(0.13, pen.uniform(0.05, 0.4), 1.0)
    depth = pen.uniform(0.55, 0.95)
    ry = pen.uniform(0.24, 0.36)
    top, bottom = -depth / 2 - 0.05, depth / 2 + 0.05
    angles = np.linspace(0, math.pi, 15)
    arc = np.stack([np.cos(angles) * 0.92, np.sin(angles) * ry], 1)
    low, high = arc + np.array((0, bottom)), arc + np.array((0, top))
    pen.polygon(np.concatenate([high, low[::-1]]), shell)
    pen.polygon(np.concatenate([high[:5], low[4::-1]]), shade, outline=False)
    count = int(pen.uniform(3, 6))
    steps = np.linspace(0.1, math.pi - 0.1, 2 * count + 1)
    zigzag = [
        (math.cos(a) * 0.9, math.sin(a) * ry + (top + 0.12 if k % 2 else bottom - 0.1)) for k, a in enumerate(steps)
    ]
    pen.stroke(zigzag, cord, 0.08)
    band = np.array([0, 0.15])
    pen.polygon(np.concatenate([low - band / 2, (low + band / 2)[::-1]]), rim)
    pen.polygon(np.concatenate([high - band / 2, (high + band)[::-1]]), rim)
    pen.ellipse(0, top, 0.94, ry + 0.02, rim)
    pen.ellipse(0, top, 0.84, ry - 0.05, pen.colour(0.11, pen.uniform(0.03, 0.2), 0.98))
    pen.ellipse(pen.uniform(-0.2, 0.2), top, 0.3, ry * 0.3, pen.colour(0.11, 0.2, 0.86), outline=False)
    if pen.chance(0.7):
        wood = pen.colour(0.09, 0.5, 0.85)
        spread = pen.uniform(0.3, 0.7)
        for side in (-1, 1):
            tip = (side * 0.12, top + 0.02)
            end = (side * (0.45 + spread), top - 0.75)
            pen.stroke([tip, end], pen.ink, 0.16)
            pen.stroke([tip, end], wood, 0.1)
            pen.ellipse(*tip, 0.11, 0.09, wood)


def guitar(pen: Pen) -> None:
    """A guitar: waisted body, round hole, long neck with frets, strings and pegs."""
    h, s, v = pen.pick([(0.08, 0.65, 0.85), (0.07, 0.75, 0.7), (0.1, 0.55, 0.95), (0.03, 0.8, 0.55)])
    wood, edge = pen.colour(h, s, v), pen.colour(h - 0.02, s, v * 0.5)
    neck = pen.colour(0.06, 0.6, 0.35)
    waist = pen.uniform(0.3, 0.4)
    hips = pen.uniform(0.58, 0.68)
    pen.polygon(rectangle(-0.1, -1.2, 0.1, 0.1), neck)
    pen.polygon([(-0.14, -1.5), (0.14, -1.5), (0.17, -1.15), (-0.17, -1.15)], edge)
    for y in (-1.42, -1.31, -1.2):
        for side in (-1, 1):
            pen.ellipse(side * 0.21, y, 0.06, 0.045, pen.colour(0.13, 0.2, 0.9))
    half = [
        (0.15, -0.3),
        (0.46, -0.2),
        (0.45, 0.08),
        (waist, 0.28),
        (hips - 0.05, 0.55),
        (hips, 0.85),
        (0.38, 1.12),
    ]
    body = smooth(mirrored([*half, (0.1, 1.16)]))
    pen.polygon(body, edge)
    pen.polygon((body - (0, 0.42)) * 0.88 + (0, 0.42), wood, outline=False)
    pen.polygon(
        smooth([(-0.36, -0.1), (-0.22, -0.18), (-0.24, 0.2), (-0.4, 0.6), (-0.5, 0.7), (-0.36, 0.3)]),
        pen.colour(h, s * 0.5, min(1.0, v * 1.25)),
        outline=False,
    )
    for k in range(6):
        y = -1.1 + 0.14 * k
        pen.stroke([(-0.09, y), (0.09, y)], pen.colour(0.13, 0.2, 0.85), 0.03)
    pen.ellipse(0, 0.2, 0.24, 0.24, pen.colour(0.1, 0.35, 0.95), outline=False)
    pen.ellipse(0, 0.2, 0.19, 0.19, pen.colour(0.06, 0.7, 0.12))
    if pen.chance(0.4):
        pen.polygon(
            smooth([(0.22, 0.05), (0.34, 0.3), (0.42, 0.55), (0.22, 0.45)]),
            pen.colour(0.03, 0.6, 0.25),
            outline=False,
        )
    pen.polygon(rectangle(-0.3, 0.72, 0.3, 0.84), edge)
    for x in (-0.06, 0.0, 0.06):
        pen.stroke([(x * 0.9, -1.2), (x, 0.76)], pen.colour(0.13, 0.1, 1.0), 0.022)


def piano(pen: Pen) -> None:
    """An upright piano: a dark case with a shelf of black and white keys, a lid, a blank sheet, two legs."""
    h, s, v = pen.pick([(0.04, 0.65, 0.35), (0.06, 0.6, 0.5), (0.65, 0.2, 0.16), (0.02, 0.7, 0.4)])
    case, light, dark = (
        pen.colour(h, s, v),
        pen.colour(h, s * 0.8, min(1.0, v * 1.5)),
        pen.colour(h, s, v * 0.55),
    )
    top = pen.uniform(-0.95, -0.7)
    width = pen.uniform(0.85, 1.0)
    pen.polygon(rectangle(-width, top, width, 0.85), case)
    pen.polygon(rectangle(-width - 0.08, top - 0.12, width + 0.08, top + 0.05), light)
    pen.polygon(rectangle(-width + 0.12, top + 0.14, width - 0.12, -0.12), dark)
    pen.polygon(rectangle(-width + 0.12, 0.48, width - 0.12, 0.76), dark)
    for side in (-1, 1):
        inner, outer = side * (width - 0.2), side * (width - 0.03)
        pen.polygon([(inner, 0.3), (outer, 0.3), (outer, 0.98), (inner, 0.98)], light)
    if pen.chance(0.7):
        x = pen.uniform(-0.3, 0.3)
        pen.polygon(
            [(x - 0.32, top + 0.1), (x + 0.32, top + 0.1), (x + 0.34, -0.14), (x - 0.34, -0.14)],
            pen.colour(0.13, 0.06, 1.0),
        )
        for y in (0.25, 0.5, 0.75):
            line = (top + 0.1) * (1 - y) + -0.14 * y
            pen.stroke([(x - 0.24, line), (x + 0.24, line)], pen.colour(0.6, 0.1, 0.45), 0.03)
    wide = width + 0.06
    pen.polygon([(-wide, -0.1), (wide, -0.1), (wide + 0.06, 0.38), (-wide - 0.06, 0.38)], case)
    pen.polygon(
        [(-wide + 0.1, -0.06), (wide - 0.1, -0.06), (wide - 0.06, 0.3), (-wide + 0.06, 0.3)],
        pen.colour(0.13, 0.05, 1.0),
    )
    count = int(pen.uniform(9, 13))
    step = 2 * (wide - 0.09) / count
    for k in range(1, count):
        x = -wide + 0.09 + k * step
        pen.stroke([(x, 0.1), (x, 0.29)], pen.ink, 0.03)
        if k % 7 not in (3, 0):
            pen.polygon(
                rectangle(x - step * 0.3, -0.06, x + step * 0.3, 0.14),
                pen.colour(0.65, 0.2, 0.08),
                outline=False,
            )
