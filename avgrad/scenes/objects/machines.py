"""Drawings of the machines and of the weather: siren, clock, telephone, rain, car, train and helicopter."""

import math

import numpy as np

from avgrad.scenes.pen import Pen, mirrored, rectangle, smooth


def siren(pen: Pen) -> None:
    """A warning light: a glowing glass dome on a dark foot, with beams of light."""
    h, s, v = pen.pick([(0.99, 0.85, 0.95), (0.6, 0.85, 0.95), (0.0, 0.8, 0.9), (0.99, 0.9, 0.85), (0.06, 0.9, 1.0)])
    glass, glow, dark = pen.colour(h, s, v), pen.colour(h, s * 0.3, 1.0), pen.colour(h, s, v * 0.6)
    metal = pen.colour(0.6, 0.1, pen.uniform(0.25, 0.6))
    beam = pen.colour(0.13, 0.6, 1.0) if pen.chance(0.5) else pen.colour(h, 0.45, 1.0)
    count = int(pen.uniform(4, 8))
    reach = pen.uniform(1.12, 1.35)
    if pen.chance(0.8):
        for k in range(count):
            a = math.pi * (0.08 + 0.84 * k / (count - 1))
            c, n = np.array([math.cos(a), -math.sin(a)]), np.array([math.sin(a), math.cos(a)])
            origin = np.array([0, 0.15])
            pen.polygon(
                [
                    origin + c * 0.86 - n * 0.05,
                    origin + c * 0.86 + n * 0.05,
                    origin + c * reach + n * 0.12,
                    origin + c * reach - n * 0.12,
                ],
                beam,
            )
    height = pen.uniform(0.75, 0.95)
    pen.polygon(smooth(mirrored([(0.2, 0.25 - height), (0.5, 0.38 - height), (0.64, 0.1), (0.66, 0.5)])), glass)
    pen.polygon(smooth(mirrored([(0.12, 0.5 - height), (0.28, 0.6 - height), (0.32, 0.4)])), glow, outline=False)
    pen.polygon(
        smooth([(0.4, 0.45 - height), (0.56, 0.1), (0.56, 0.42), (0.44, 0.42), (0.46, 0.1)]),
        dark,
        outline=False,
    )
    pen.stroke(
        smooth([(-0.5, 0.25), (-0.47, -0.1), (-0.32, 0.42 - height)], closed=False),
        pen.colour(0, 0, 1.0),
        0.08,
    )
    pen.polygon(smooth(mirrored([(0.5, 0.42), (0.78, 0.45), (0.8, 0.62), (0.5, 0.64)])), metal)
    pen.polygon([(-0.72, 0.62), (0.72, 0.62), (0.95, 0.95), (-0.95, 0.95)], pen.colour(0.6, 0.15, 0.25))
    pen.stroke([(-0.6, 0.72), (0.2, 0.72)], pen.colour(0.6, 0.1, 0.6), 0.05)


def clock(pen: Pen) -> None:
    """A round or eight-sided wall clock: a pale face with twelve marks and two hands."""
    rim = pen.colour(
        *pen.pick([(0.07, 0.65, 0.5), (0.09, 0.6, 0.65), (0.5, 0.6, 0.6), (0.6, 0.3, 0.3), (0.08, 0.7, 0.4)])
    )
    face = pen.colour(0.13, pen.uniform(0.02, 0.18), 1.0)
    black = pen.colour(0.65, 0.3, 0.15)
    if pen.chance(0.35):
        swing = pen.uniform(-0.2, 0.2)
        pen.polygon([(-0.3, 0.7), (0.3, 0.7), (0.25, 1.35), (-0.25, 1.35)], rim)
        pen.stroke([(0, 0.7), (swing * 0.6, 1.12)], pen.colour(0.13, 0.6, 0.95), 0.06)
        pen.ellipse(swing * 0.6, 1.14, 0.12, 0.12, pen.colour(0.13, 0.7, 1.0))
    elif pen.chance(0.4):
        for side in (-1, 1):
            pen.stroke([(side * 0.5, 0.7), (side * 0.7, 1.02)], rim, 0.2)
    thickness = pen.uniform(0.14, 0.24)
    if pen.chance(0.3):
        corners = (np.arange(8) + 0.5) * math.pi / 4
        pen.polygon(np.stack([np.cos(corners), np.sin(corners)], 1) * 1.04, rim)
    else:
        pen.ellipse(0, 0, 1.0, 1.0, rim)
    radius = 1 - thickness
    pen.ellipse(0, 0, radius, radius, face)
    for k in range(12):
        a = k * math.pi / 6
        c = np.array([math.cos(a), math.sin(a)]) * radius
        pen.stroke([c * (0.74 if k % 3 == 0 else 0.8), c * 0.9], black, 0.09 if k % 3 == 0 else 0.05)
    for length, width in ((0.5, 0.12), (0.74, 0.08)):
        a = pen.uniform(0, 2 * math.pi)
        c = np.array([math.cos(a), math.sin(a)]) * radius
        pen.stroke([-c * 0.12, c * length], black, width)
    if pen.chance(0.5):
        a = pen.uniform(0, 2 * math.pi)
        pen.stroke(
            [(0, 0), (math.cos(a) * radius * 0.8, math.sin(a) * radius * 0.8)],
            pen.colour(0.0, 0.85, 0.85),
            0.04,
        )
    pen.ellipse(0, 0, 0.08, 0.08, pen.colour(0.0, 0.7, 0.7))


def telephone(pen: Pen) -> None:
    """An old telephone: a handset across a sloping case with a dial or a block of keys."""
    h, s, v = pen.pick([(0.98, 0.8, 0.75), (0.0, 0.75, 0.8), (0.42, 0.5, 0.6), (0.65, 0.2, 0.2), (0.1, 0.3, 0.95)])
    shell, dark, light = (
        pen.colour(h, s, v),
        pen.colour(h, s, v * 0.6),
        pen.colour(h, s * 0.5, min(1, v * 1.3 + 0.1)),
    )
    if pen.chance(0.6):
        t = np.linspace(0, 1, 26)
        cord = np.stack([-0.85 - 0.22 * np.sin(t * 24) * t - 0.1 * t, -0.2 + 1.0 * t + 0.05 * np.cos(t * 24)], 1)
        pen.stroke(cord, dark, 0.08)
    pen.polygon(
        smooth(mirrored([(0.3, -0.32), (0.5, -0.25), (0.66, 0.3), (0.92, 0.72), (0.8, 0.9), (0.3, 0.92)])),
        shell,
    )
    pen.polygon(smooth([(0.4, -0.1), (0.55, 0.2), (0.8, 0.75), (0.55, 0.82), (0.5, 0.4)]), dark, outline=False)
    for side in (-1, 1):
        pen.polygon([(side * 0.25, -0.5), (side * 0.42, -0.5), (side * 0.42, -0.2), (side * 0.25, -0.2)], dark)
    if pen.chance(0.7):
        pen.ellipse(0, 0.34, 0.46, 0.44, pen.colour(0.13, 0.08, 0.98))
        for k in range(10):
            a = 0.6 + k * 0.52
            pen.ellipse(0.32 * math.cos(a), 0.34 + 0.31 * math.sin(a), 0.075, 0.075, pen.ink, outline=False)
        pen.ellipse(0, 0.34, 0.16, 0.16, shell)
    else:
        pen.polygon(rectangle(-0.42, 0.0, 0.42, 0.74), pen.colour(0.13, 0.05, 0.85))
        for row in range(4):
            for column in range(3):
                x, y = -0.28 + column * 0.28, 0.1 + row * 0.18
                pen.polygon(rectangle(x - 0.09, y - 0.06, x + 0.09, y + 0.06), pen.ink, outline=False)
    lift = pen.uniform(0.0, 0.25)
    handset = [
        (0.35, -0.86),
        (0.85, -0.78),
        (1.08, -0.5),
        (1.1, -0.22),
        (0.7, -0.2),
        (0.66, -0.5),
        (0.3, -0.58),
    ]
    pen.polygon(smooth(mirrored(handset)) - (0, lift), shell)
    pen.stroke(np.array([(-0.7, -0.7), (-0.3, -0.76), (0.3, -0.76)]) - (0, lift), light, 0.08)
    for side in (-1, 1):
        pen.polygon(
            np.array([(side * 0.66, -0.3), (side * 1.12, -0.3), (side * 1.1, -0.16), (side * 0.68, -0.16)]) - (0, lift),
            dark,
        )


def rain(pen: Pen) -> None:
    """A cloud out of which rain falls."""
    grey = pen.uniform(0.62, 0.95)
    cloud, shade = pen.colour(0.6, 0.12, grey), pen.colour(0.61, 0.2, grey * 0.78)
    water, veil = pen.colour(0.57, 0.75, 0.95), pen.colour(0.57, 0.35, 0.85, 160)
    lean = pen.uniform(-0.35, 0.35)
    bottom = pen.uniform(0.85, 1.1)
    pen.polygon([(-0.85, 0.1), (0.85, 0.1), (0.8 + lean, bottom), (-0.8 + lean, bottom)], veil, outline=False)
    columns = int(pen.uniform(4, 7))
    round_drops = pen.chance(0.5)
    for k in range(columns):
        for row in range(2):
            t = 0.22 + 0.4 * row + 0.12 * (k % 2) + pen.uniform(0, 0.12)
            x, y = -0.72 + 1.44 * k / (columns - 1) + lean * t, 0.15 + (bottom - 0.15) * t
            if round_drops:
                pen.polygon(smooth([(x, y - 0.13), (x + 0.09, y + 0.08), (x, y + 0.16), (x - 0.09, y + 0.08)]), water)
            else:
                pen.stroke([(x, y), (x + lean * 0.3, y + 0.27)], water, 0.1)
    puffs = [
        (-0.62, -0.05, 0.38),
        (-0.25, -0.35, 0.44),
        (0.25, -0.3, 0.48),
        (0.68, -0.02, 0.36),
        (0.0, 0.0, 0.45),
    ]
    puffs = [
        (x + pen.uniform(-0.07, 0.07), y + pen.uniform(-0.1, 0.06), r * pen.uniform(0.85, 1.15)) for x, y, r in puffs
    ]
    for x, y, r in puffs:
        pen.ellipse(x, y, r, r * 0.92, shade)
    for x, y, r in puffs:
        pen.ellipse(x, y - 0.07, r * 0.88, r * 0.76, cloud, outline=False)
    for x, y, r in puffs[1:3]:
        pen.ellipse(x - 0.08, y - 0.16, r * 0.5, r * 0.4, pen.colour(0.6, 0.04, min(1, grey + 0.12)), outline=False)


def _wheel(pen: Pen, x: float, y: float, radius: float, hub: tuple[int, int, int, int]) -> None:
    pen.ellipse(x, y, radius, radius, pen.colour(0.65, 0.15, 0.14))
    pen.ellipse(x, y, radius * 0.55, radius * 0.55, hub)
    pen.ellipse(x, y, radius * 0.15, radius * 0.15, pen.ink, outline=False)


def car(pen: Pen) -> None:
    """A car from the side: two wheels, windows, lights."""
    h, s, v = pen.pick([(0.99, 0.8, 0.85), (0.57, 0.7, 0.85), (0.13, 0.8, 0.98), (0.48, 0.55, 0.75), (0.55, 0.05, 0.9)])
    paint, dark, light = pen.colour(h, s, v), pen.colour(h, s, v * 0.65), pen.colour(h, s * 0.45, 1.0)
    glass = pen.colour(0.54, 0.3, 0.95)
    roof = pen.uniform(-0.68, -0.5)
    rear = pen.uniform(-1.0, -0.7)
    pen.polygon(
        smooth(
            [
                (rear - 0.08, -0.05),
                (rear + 0.2, roof + 0.06),
                (-0.2, roof - 0.04),
                (0.25, roof + 0.04),
                (0.72, -0.02),
                (0.3, 0.15),
                (-0.6, 0.15),
            ]
        ),
        paint,
    )
    pen.polygon(
        smooth(
            [
                (-1.2, 0.0),
                (-0.9, -0.12),
                (0.6, -0.1),
                (1.1, 0.02),
                (1.24, 0.24),
                (1.2, 0.46),
                (0.9, 0.52),
                (-0.9, 0.52),
                (-1.2, 0.46),
                (-1.26, 0.2),
            ]
        ),
        paint,
    )
    pen.polygon(
        smooth([(-1.2, 0.34), (0, 0.36), (1.2, 0.34), (1.1, 0.5), (0, 0.52), (-1.1, 0.5)]),
        dark,
        outline=False,
    )
    pen.polygon([(rear + 0.12, -0.1), (rear + 0.3, roof + 0.14), (-0.2, roof + 0.1), (-0.2, -0.1)], glass)
    pen.polygon([(-0.08, -0.1), (-0.08, roof + 0.1), (0.2, roof + 0.14), (0.52, -0.1)], glass)
    pen.stroke([(rear + 0.3, -0.15), (rear + 0.42, roof + 0.2)], pen.colour(0, 0, 1), 0.06)
    pen.stroke([(-0.14, -0.1), (-0.14, 0.44)], pen.ink, 0.04)
    pen.stroke([(0.0, 0.08), (0.14, 0.08)], pen.ink, 0.05)
    pen.stroke([(-1.0, 0.02), (0.9, 0.05)], light, 0.05)
    pen.ellipse(1.1, 0.18, 0.12, 0.11, pen.colour(0.15, 0.35, 1.0))
    pen.ellipse(-1.17, 0.16, 0.08, 0.11, pen.colour(0.0, 0.9, 0.8))
    hub = pen.colour(0.6, 0.05, 0.85)
    size = pen.uniform(0.27, 0.34)
    for x in (-0.68, 0.7):
        _wheel(pen, x, 0.5, size, hub)


def train(pen: Pen) -> None:
    """A steam engine from the side: boiler, chimney with steam, cab, wheels joined by a rod."""
    h, s, v = pen.pick([(0.38, 0.7, 0.45), (0.99, 0.75, 0.65), (0.6, 0.7, 0.55), (0.65, 0.15, 0.25)])
    paint, dark, light = (
        pen.colour(h, s, v),
        pen.colour(h, s, v * 0.55),
        pen.colour(h, s * 0.5, min(1, v * 1.5)),
    )
    black = pen.colour(0.65, 0.2, 0.16)
    brass = pen.colour(0.13, 0.7, 0.95)
    red = pen.colour(0.0, 0.8, 0.75)
    x = 0.72
    steam = pen.colour(0.6, pen.uniform(0.0, 0.1), 0.97)
    drift = pen.uniform(-0.5, -0.15)
    for k in range(3):
        pen.ellipse(x + drift * k, -0.92 - 0.1 * k, 0.2 + 0.05 * k, 0.17 + 0.05 * k, steam)
    pen.polygon([(x - 0.1, -0.3), (x - 0.17, -0.78), (x + 0.17, -0.78), (x + 0.1, -0.3)], black)
    pen.polygon(rectangle(x - 0.2, -0.84, x + 0.2, -0.72), brass)
    pen.ellipse(0.22, -0.38, 0.17, 0.2, brass)
    pen.polygon(
        smooth(
            [
                (-0.5, -0.38),
                (0.9, -0.38),
                (1.02, -0.3),
                (1.06, -0.02),
                (1.02, 0.26),
                (0.9, 0.32),
                (-0.5, 0.32),
            ]
        ),
        paint,
    )
    pen.stroke([(-0.4, -0.24), (0.9, -0.24)], light, 0.07)
    for band in (0.05, 0.45, 0.85):
        pen.stroke([(band, -0.38), (band, 0.3)], brass, 0.06)
    pen.ellipse(1.07, -0.02, 0.1, 0.3, black)
    pen.polygon(rectangle(-1.1, -0.72, -0.35, 0.4), paint)
    pen.polygon(
        rectangle(-0.95, -0.5, -0.5, -0.1),
        pen.colour(0.14, 0.35, 1.0) if pen.chance(0.5) else pen.colour(0.55, 0.3, 0.9),
    )
    pen.polygon([(-1.24, -0.72), (-1.15, -0.86), (-0.3, -0.86), (-0.22, -0.72)], dark)
    pen.polygon(rectangle(-1.15, 0.3, 1.05, 0.48), black)
    pen.polygon([(0.98, 0.3), (1.1, 0.3), (1.35, 0.82), (0.98, 0.82)], red)
    size = pen.uniform(0.27, 0.33)
    for wx, r in ((-0.8, size), (-0.12, size), (0.42, size * 0.75), (0.84, size * 0.75)):
        pen.ellipse(wx, 0.86 - r, r, r, red)
        pen.ellipse(wx, 0.86 - r, r * 0.62, r * 0.62, black, outline=False)
        pen.ellipse(wx, 0.86 - r, r * 0.25, r * 0.25, red, outline=False)
    pen.stroke([(-0.8, 0.6), (-0.12, 0.6), (0.4, 0.66)], pen.colour(0.6, 0.05, 0.8), 0.07)


def helicopter(pen: Pen) -> None:
    """A helicopter from the side: a bubble of glass, a tail with a small rotor, a rotor on top, skids."""
    h, s, v = pen.pick([(0.25, 0.5, 0.5), (0.08, 0.85, 0.95), (0.57, 0.55, 0.75), (0.99, 0.75, 0.8), (0.28, 0.4, 0.6)])
    paint, dark, light = (
        pen.colour(h, s, v),
        pen.colour(h, s, v * 0.6),
        pen.colour(h, s * 0.4, min(1, v * 1.4)),
    )
    grey = pen.colour(0.6, 0.1, pen.uniform(0.25, 0.5))
    for x in (0.0, 0.6):
        pen.stroke([(x, 0.4), (x - 0.06, 0.78)], grey, 0.08)
    pen.stroke([(-0.35, 0.8), (0.9, 0.8), (1.05, 0.68)], grey, 0.1)
    pen.polygon([(-0.2, -0.25), (-1.3, -0.28), (-1.34, -0.12), (-0.2, 0.25)], paint)
    pen.polygon([(-1.2, -0.2), (-1.42, -0.68), (-1.22, -0.68), (-1.0, -0.2)], dark)
    pen.ellipse(-1.3, -0.3, 0.26, 0.26, pen.colour(0.6, 0.05, 0.9, 150))
    a = pen.uniform(0, math.pi)
    axle, blade = np.array((-1.3, -0.3)), np.array([math.cos(a), math.sin(a)]) * 0.26
    pen.stroke([axle - blade, axle + blade], pen.ink, 0.07)
    pen.polygon(rectangle(0.1, -0.8, 0.3, -0.4), grey)
    pen.polygon(
        smooth(
            [
                (-0.45, -0.12),
                (-0.1, -0.48),
                (0.5, -0.5),
                (0.95, -0.2),
                (1.08, 0.15),
                (0.8, 0.42),
                (0.2, 0.5),
                (-0.3, 0.35),
            ]
        ),
        paint,
    )
    pen.polygon(
        smooth([(-0.3, 0.22), (0.3, 0.3), (1.02, 0.22), (0.8, 0.4), (0.2, 0.47), (-0.25, 0.35)]),
        dark,
        outline=False,
    )
    pen.polygon(
        smooth([(0.45, -0.4), (0.72, -0.34), (0.92, -0.12), (1.0, 0.12), (0.5, 0.14)]),
        pen.colour(0.54, 0.35, 0.98),
    )
    pen.polygon([(0.05, -0.34), (0.32, -0.36), (0.34, 0.1), (0.05, 0.08)], pen.colour(0.54, 0.3, 0.92))
    pen.stroke([(-0.9, -0.18), (-0.2, -0.12)], light, 0.07)
    span = pen.uniform(1.0, 1.3)
    tip = pen.uniform(-0.08, 0.08)
    pen.polygon(
        smooth([(0.2 - span, -0.82 - tip), (0.2, -0.9), (0.2 + span, -0.82 + tip), (0.2, -0.74)]),
        pen.colour(0.6, 0.05, 0.85, 150) if pen.chance(0.4) else grey,
    )
    pen.stroke([(0.2 - span, -0.82 - tip), (0.2 + span, -0.82 + tip)], pen.ink, 0.07)
    pen.ellipse(0.2, -0.82, 0.12, 0.1, dark)
