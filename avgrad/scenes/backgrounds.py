"""Textured backgrounds for synthetic scenes."""

import colorsys
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Field = NDArray[np.floating]


def _colour(rng: np.random.Generator, low: float = 0.2, high: float = 0.95, vivid: float = 0.6) -> Field:
    """A random colour [3] in [0, 1], its lightness between `low` and `high`."""
    hue, saturation, value = rng.random(), rng.random() * vivid, low + (high - low) * rng.random()
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32)


def _near(rng: np.random.Generator, colour: Field, spread: float) -> Field:
    shifted = colour + rng.uniform(-spread, spread, 3).astype(np.float32)
    near: Field = np.clip(shifted + float(rng.uniform(-spread, spread)), 0, 1)
    return near


def _upsample(grid: Field, size: int, smooth: bool = True) -> Field:
    """Resamples a [h, w] field to [size, size]."""
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(grid).resize((size, size), method))


def noise_field(rng: np.random.Generator, size: int, octaves: tuple[int, ...], persistence: float = 0.6) -> Field:
    """Value noise [size, size], roughly in [-0.5, 0.5], with one octave per grid size."""
    total = np.zeros((size, size), dtype=np.float32)
    weight = 1.0
    for cells in octaves:
        total += weight * _upsample(rng.random((cells, cells), dtype=np.float32) - 0.5, size)
        weight *= persistence
    return total


def _axes(size: int) -> tuple[Field, Field]:
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    return line[None, :], line[:, None]


def _rotated(rng: np.random.Generator, size: int) -> tuple[Field, Field]:
    x, y = _axes(size)
    angle = rng.random() * math.pi
    c, s = math.cos(angle), math.sin(angle)
    return c * x + s * y, c * y - s * x


def _blend(weight: Field, first: Field, second: Field) -> Field:
    """Mixes two colours [3] by a weight [H, W], which is clipped to [0, 1]."""
    return first + np.clip(weight, 0, 1)[..., None] * (second - first)


def gradient(rng: np.random.Generator, size: int) -> Field:
    """A straight or round gradient."""
    u, v = _rotated(rng, size)
    if rng.random() < 0.4:
        cx, cy = rng.uniform(-0.3, 1.3, 2)
        weight = np.hypot(u - np.float32(cx), v - np.float32(cy))
    else:
        weight = (u + 0.4) / 1.6
    return _blend(weight, _colour(rng), _colour(rng))


def cloudy(rng: np.random.Generator, size: int) -> Field:
    """Smooth noise of two colours over several octaves."""
    weight = 0.5 + 1.1 * noise_field(rng, size, (3, 6, 12, 24, 48), rng.uniform(0.5, 0.85))
    return _blend(weight, _colour(rng), _colour(rng))


def photographic(rng: np.random.Generator, size: int) -> Field:
    """Noise with a 1/f spectrum as in photographs, partly independent for each channel."""
    shared = noise_field(rng, size, (2, 4, 8, 16, 32, 64), 0.75)
    hues = np.stack([noise_field(rng, size, (3, 9, 27), 0.7) for _ in range(3)], -1)
    image: Field = _colour(rng, 0.35, 0.75) + rng.uniform(0.5, 0.9) * shared[..., None]
    return np.asarray(image + rng.uniform(0.05, 0.35) * hues)


def stripes(rng: np.random.Generator, size: int) -> Field:
    """Stripes with hard or soft edges, straight or wavy."""
    u, v = _rotated(rng, size)
    count = rng.uniform(3, 14)
    phase = u * count + rng.uniform(0, 0.06) * count * np.sin(v * rng.uniform(4, 16))
    weight = 0.5 + np.sin(phase * 2 * math.pi) * rng.choice([0.5, 4.0])
    base = _colour(rng)
    return _blend(weight.astype(np.float32), base, _near(rng, base, 0.35))


def checks(rng: np.random.Generator, size: int) -> Field:
    """Floor tiles with joints."""
    u, v = _rotated(rng, size) if rng.random() < 0.5 else _axes(size)
    count = rng.uniform(3, 10)
    a, b = u * count + 10, v * count + 10
    base = _colour(rng)
    weight = ((np.floor(a) + np.floor(b)) % 2).astype(np.float32)
    image = _blend(weight, base, _near(rng, base, 0.35))
    joint = (np.abs(a - np.round(a)) < 0.04) | (np.abs(b - np.round(b)) < 0.04)
    return np.asarray(image * (1 - rng.uniform(0.0, 0.4) * joint[..., None]))


def bricks(rng: np.random.Generator, size: int) -> Field:
    """A brick wall with mortar; each brick has its own shade."""
    x, y = _axes(size)
    rows = int(rng.integers(6, 15))
    row = np.floor(y * rows)
    along = x * rows * rng.uniform(0.35, 0.6) + 0.5 * (row % 2)
    shade = rng.uniform(-0.14, 0.14, (rows, rows + 2)).astype(np.float32)
    index = np.broadcast_to(row.astype(int), along.shape)
    brick = _blend(0.5 + shade[index, np.floor(along).astype(int)] * 3, _colour(rng, 0.25, 0.8), _colour(rng, 0.4, 0.8))
    gap_x, gap_y = np.abs(along - np.round(along)) < 0.06, np.abs(y * rows - np.round(y * rows)) < 0.1
    return np.where((gap_x | gap_y)[..., None], _colour(rng, 0.5, 0.9, 0.15), brick)


def planks(rng: np.random.Generator, size: int) -> Field:
    """Wooden boards with grain."""
    x, y = _axes(size)
    grain = np.asarray(
        Image.fromarray(rng.random((48, 5), dtype=np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    )
    count = int(rng.integers(3, 9))
    board = np.floor(y * count).astype(int)
    tone = rng.uniform(-0.2, 0.2, count).astype(np.float32)[board]
    wood = np.array(
        colorsys.hsv_to_rgb(rng.uniform(0.04, 0.12), rng.uniform(0.2, 0.7), rng.uniform(0.35, 0.9)),
        np.float32,
    )
    image = _blend(0.5 * grain + tone + 0.25 + 0 * x, wood, wood * 0.5)
    image = image * (1 - 0.5 * (np.abs(y * count - np.round(y * count)) < 0.05))[..., None]
    return image if rng.random() < 0.5 else image.transpose(1, 0, 2)


def plaid(rng: np.random.Generator, size: int) -> Field:
    """Woven cloth of crossing bands."""
    bands = [
        np.asarray(
            Image.fromarray(rng.random((1, int(rng.integers(5, 16))), dtype=np.float32)).resize(
                (size, 1), Image.Resampling.NEAREST
            )
        )[0]
        for _ in range(2)
    ]
    base = _colour(rng)
    image = _blend(0.5 * bands[0][None, :] + 0.5 * bands[1][:, None], base, _near(rng, base, 0.45))
    weave = ((np.arange(size)[:, None] + np.arange(size)[None]) // 2 % 2).astype(np.float32)
    return image * (1 - 0.08 * weave[..., None])


def dots(rng: np.random.Generator, size: int) -> Field:
    """Wallpaper with dots or rings."""
    u, v = _rotated(rng, size)
    count = rng.uniform(4, 11)
    distance = np.hypot(u * count - np.round(u * count), v * count - np.round(v * count))
    radius = rng.uniform(0.15, 0.4)
    weight = (radius - distance) * 12 if rng.random() < 0.6 else 1 - np.abs(distance - radius) * 12
    base = _colour(rng)
    return _blend(weight.astype(np.float32), base, _near(rng, base, 0.4))


def water(rng: np.random.Generator, size: int) -> Field:
    """Ripples on water, or folds of cloth."""
    x, y = _axes(size)
    warp = noise_field(rng, size, (3, 7))
    waves = np.sin((y * rng.uniform(4, 14) + warp * rng.uniform(0.5, 2.0)) * 2 * math.pi + x * rng.uniform(-6, 6))
    base = _colour(rng)
    return _blend((0.5 + 0.5 * waves).astype(np.float32), base, _near(rng, base, 0.3))


def _leaves(rng: np.random.Generator, draw: ImageDraw.ImageDraw, side: int, count: int, top: float, hue: float) -> None:
    centres = rng.uniform((0, top), (1, 1.05), (count, 2)) * side
    angles, lengths = rng.uniform(0, 2 * math.pi, count), rng.uniform(0.04, 0.13, count) * side
    shades = rng.uniform((-0.05, 0.3, 0.2), (0.05, 0.8, 0.75), (count, 3))
    leaf = np.array([(-1, 0), (-0.3, 0.32), (0.4, 0.28), (1, 0), (0.4, -0.28), (-0.3, -0.32)])
    for (x, y), angle, length, (dh, s, v) in zip(centres, angles, lengths, shades, strict=True):
        c, sn = math.cos(angle) * length, math.sin(angle) * length
        points = leaf @ np.array([[c, sn], [-sn, c]]) + (x, y)
        r, g, b = colorsys.hsv_to_rgb((hue + dh) % 1, s, v)
        draw.polygon(list(map(tuple, points.tolist())), fill=(int(255 * r), int(255 * g), int(255 * b)))


def foliage(rng: np.random.Generator, size: int) -> Field:
    """Overlapping leaves, green or autumnal."""
    base = tuple(int(255 * c) for c in _colour(rng, 0.1, 0.35))
    image = Image.new("RGB", (size, size), base)
    hue = rng.uniform(0.2, 0.42) if rng.random() < 0.7 else rng.uniform(0.02, 0.15)
    _leaves(rng, ImageDraw.Draw(image), size, 130, -0.05, hue)
    return np.asarray(image, dtype=np.float32) / 255


def landscape(rng: np.random.Generator, size: int) -> Field:
    """Sky with haze above hills and rough ground."""
    x, y = _axes(size)
    sky_hue = rng.uniform(0.52, 0.65) if rng.random() < 0.7 else rng.uniform(0.0, 0.12)
    high = np.array(colorsys.hsv_to_rgb(sky_hue, rng.uniform(0.2, 0.7), rng.uniform(0.4, 0.95)), np.float32)
    low = np.array(colorsys.hsv_to_rgb(sky_hue, 0.12, rng.uniform(0.75, 1.0)), np.float32)
    haze = noise_field(rng, size, (3, 6, 12, 24))
    image = _blend(y * 1.4 + haze * rng.uniform(0, 1.2), high, low)
    ground = np.array(
        colorsys.hsv_to_rgb(rng.uniform(0.05, 0.42), rng.uniform(0.1, 0.7), rng.uniform(0.25, 0.75)),
        np.float32,
    )
    horizon, rough = rng.uniform(0.35, 0.75), noise_field(rng, size, (8, 24, 64), 0.8)
    for layer in range(3):
        f, p = rng.uniform(2, 9, 2), rng.uniform(0, 6, 2)
        ridge = (
            horizon
            + 0.13 * layer
            + rng.uniform(0.01, 0.07) * (np.sin(x * f[0] + p[0]) + 0.5 * np.sin(x * f[1] * 2 + p[1]))
        )
        tone = ground * (1.25 - 0.22 * layer) + (2 - layer) * 0.08 * low
        image = np.where((y > ridge)[..., None], tone * (1 + 0.45 * rough[..., None]), image)
    return image


def city(rng: np.random.Generator, size: int) -> Field:
    """Houses with rows of windows against the sky."""
    image = gradient(rng, size) * 0.5 + 0.4
    x = int(rng.integers(-size // 8, 1))
    while x < size:
        width, top = int(rng.uniform(0.12, 0.3) * size), int(rng.uniform(0.05, 0.6) * size)
        left, right = max(0, x), min(size, x + width)
        if right > left:
            wall = _colour(rng, 0.25, 0.8, 0.4)
            image[top:, left:right] = wall
            step = max(4, size // int(rng.integers(12, 22)))
            rows, columns = np.arange(size - top) % step, np.arange(right - left) % step
            inside = ((rows > step // 3)[:, None]) & ((columns > step // 3)[None])
            block = image[top:, left:right]
            block[inside] = _colour(rng, 0.1, 0.95, 0.5) if rng.random() < 0.7 else wall * 0.8
        x += width
    return image


def room(rng: np.random.Generator, size: int) -> Field:
    """A papered wall, a skirting board and a floor."""
    wall = (stripes, dots, cloudy, gradient)[int(rng.integers(4))](rng, size)
    floor = (planks, checks, cloudy)[int(rng.integers(3))](rng, size)
    _, y = _axes(size)
    edge = rng.uniform(0.5, 0.8)
    image = np.where((y > edge)[..., None], floor * 0.85, wall)
    board = (y > edge - rng.uniform(0.02, 0.05)) & (y <= edge)
    return np.where(board[..., None], _colour(rng, 0.5, 1.0, 0.2), image)


def patches(rng: np.random.Generator, size: int) -> Field:
    """Overlapping polygons, like a quilt or crumpled paper."""
    image = Image.new("RGB", (size, size))
    draw = ImageDraw.Draw(image)
    base, spread = _colour(rng), rng.uniform(0.1, 0.4)
    for _ in range(28):
        centre = rng.random(2) * size
        angles = np.sort(rng.random(5)) * 2 * math.pi
        points = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * (rng.uniform(0.2, 0.5) * size)
        fill = tuple(int(255 * c) for c in _near(rng, base, spread))
        draw.polygon(list(map(tuple, points.tolist())), fill=fill)
    return np.asarray(image, dtype=np.float32) / 255


BACKGROUNDS: tuple[Callable[[np.random.Generator, int], Field], ...] = (
    gradient, cloudy, photographic, photographic, stripes, checks, bricks, planks, plaid, dots, water,
    foliage, landscape, landscape, city, room, room, patches,
)  # fmt: skip
"""All backgrounds; those that look most like photographs are listed twice."""


def draw_background(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Draws a random background.

    Args:
        rng: source of randomness.
        size: height and width in pixels.

    Returns:
        Colours [size, size, 3] in [0, 1], float32.
    """
    image = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))](rng, size)
    if rng.random() < 0.7:
        image = image + rng.uniform(0.05, 0.3) * noise_field(rng, size, (2, 5, 16, 40), 0.7)[..., None]
    clipped: NDArray[np.float32] = np.clip(image, 0.0, 1.0, dtype=np.float32)
    return clipped
