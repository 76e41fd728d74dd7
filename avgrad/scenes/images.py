"""Synthetic images of sounding objects with the exact mask of each object."""

import math
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from avgrad.errors import InputError
from avgrad.scenes.backgrounds import draw_background
from avgrad.scenes.classes import CLASSES
from avgrad.scenes.objects import DRAWINGS
from avgrad.scenes.objects.clutter import CLUTTER
from avgrad.scenes.pen import Pen

MAX_OBJECTS = 4
OBJECTS_PROBABILITIES = (0.25, 0.35, 0.25, 0.15)
_MIN_VISIBLE_SHARE, _MIN_VISIBLE_AREA = 0.5, 0.015
_MAX_AREA = 0.18
_CLUTTER_AREA_UNITS = 1.9


class Scene(NamedTuple):
    """An image and what is in it.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        classes: the number of each object's class in `CLASSES`, all different; n of them.
        masks: bool [n, H, W], the visible pixels of each object; no pixel belongs to two objects.
    """

    image: NDArray[np.uint8]
    classes: list[int]
    masks: NDArray[np.bool_]


class Placed(NamedTuple):
    """A drawing's class, centre and unit length, in image sides; the class is -1 for clutter."""

    object_class: int
    x: float
    y: float
    unit: float


def scene_rng(domain: str, seed: int, index: int) -> np.random.Generator:
    """The random generator of item `index` of a numbered series.

    Training, validation and written data sets use different domains, so that they share no scene, whatever their
    seeds are.

    Args:
        domain: name of the series, e.g. "train"; different domains give unrelated series.
        seed: 0 or more.
        index: 0 or more.
    """
    # the domain is a part of the seed: renaming one ("dataset picture", "sample picture") changes its scenes
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(domain.encode()), index))
    return np.random.default_rng(sequence)


def draw_scene(
    rng: np.random.Generator,
    size: int = 256,
    num_objects: int | None = None,
    classes: Sequence[int] | None = None,
    zoom: float = 1.0,
) -> Scene:
    """Draws one image: one to four objects among clutter on a textured background.

    Args:
        rng: source of randomness; the same state gives the same image.
        size: height and width in pixels, 32 or more.
        num_objects: how many objects, 1 to 4; random if None.
        classes: the classes of the objects, all different. If fewer than `num_objects` are given, the rest are random;
            without `num_objects` exactly the given ones are shown.
        zoom: factor on the area of each object; 4 gives close-ups of one object.

    Returns:
        The scene; at least half of each object is visible, and it covers at least 1.5 % (times zoom) of the image.

    Raises:
        InputError: `size` is below 32, there are fewer than 1 or more than 4 objects, or two of one class.
    """
    wanted = list(classes or ())
    if num_objects is None:
        num_objects = len(wanted) or 1 + int(rng.choice(MAX_OBJECTS, p=OBJECTS_PROBABILITIES))
    if size < 32 or not max(1, len(wanted)) <= num_objects <= MAX_OBJECTS or len(set(wanted)) != len(wanted):
        raise InputError(
            f"a scene has size 32 or more and 1 to {MAX_OBJECTS} different classes; got size {size}, "
            f"{num_objects} objects, classes {wanted}"
        )
    others = [k for k in rng.permutation(len(CLASSES)).tolist() if k not in wanted]
    wanted += others[: num_objects - len(wanted)]
    while True:
        scene = _attempt(rng, size, wanted, zoom)
        if scene is not None:
            return scene


def _attempt(rng: np.random.Generator, size: int, wanted: list[int], zoom: float) -> Scene | None:
    """Draws a scene; None if an object is too much hidden or too large."""
    canvas = calm(rng, draw_background(rng, size)) * 255
    light = rng.uniform(0, 2 * math.pi)
    shadow = rng.uniform(0.15, 0.45) if rng.random() < 0.5 else 0.0
    layers = arrange(rng, wanted, zoom)
    visible = {object_class: np.zeros((size, size), dtype=np.float32) for object_class in wanted}
    full = dict.fromkeys(wanted, 0)
    for layer in layers:
        drawn = draw_layer(rng, layer, size)
        if drawn is None:
            continue
        rgba, left, top = drawn
        box = _clip(rgba, left, top, size)
        if box is None:
            continue
        pixels, rows, columns = box
        alpha = pixels[..., 3:] * np.float32(1 / 255)
        if shadow:
            cast_shadow(canvas, alpha, rows.start, columns.start, shadow, size)
        colours = shade(rng, pixels[..., :3], light)
        region = canvas[rows, columns]
        region += alpha * (colours - region)
        for share in visible.values():
            share[rows, columns] *= 1 - alpha[..., 0]
        if layer.object_class >= 0:
            visible[layer.object_class][rows, columns] += alpha[..., 0]
            full[layer.object_class] = int(np.count_nonzero(np.asarray(rgba)[..., 3] > 127))
    masks = np.stack([visible[object_class] > 0.5 for object_class in wanted])
    areas = masks.sum((1, 2))
    for object_class, area in zip(wanted, areas.tolist(), strict=True):
        if (
            not max(_MIN_VISIBLE_SHARE * full[object_class], _MIN_VISIBLE_AREA * zoom * size**2)
            <= area
            <= _MAX_AREA * zoom * size**2
        ):
            return None
    return Scene(develop(rng, canvas, size), wanted, masks)


def calm(rng: np.random.Generator, background: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reduces the contrast and the colour of a background, so that objects stand out."""
    mean = background.mean((0, 1), keepdims=True)
    grey = mean.mean()
    return grey + (mean - grey) * np.float32(0.8) + (background - mean) * np.float32(rng.uniform(0.25, 0.6))


def arrange(rng: np.random.Generator, wanted: list[int], zoom: float) -> list[Placed]:
    """Draws sizes and positions, in image sides and in painting order."""
    layers: list[Placed] = []
    for object_class in wanted:
        area = min(0.16, 0.085 * math.exp(0.4 * rng.normal()))
        unit = math.sqrt(zoom * area / DRAWINGS[object_class].area)
        layers.append(_place(rng, object_class, unit, layers, 0.75))
    for _ in range(int(rng.choice(3, p=(0.5, 0.35, 0.15)))):
        unit = math.sqrt(zoom * rng.uniform(0.008, 0.06) / _CLUTTER_AREA_UNITS)
        item = _place(rng, -1, unit, layers, 0.7)
        layers.insert(0 if rng.random() < 0.5 else len(layers), item)
    return layers


def _place(rng: np.random.Generator, object_class: int, unit: float, layers: list[Placed], closeness: float) -> Placed:
    """Draws a uniform position that covers nothing too much; the best of ten tries."""
    margin = 0.75 * unit
    best, best_gap = (0.5, 0.5), -math.inf
    for _ in range(10):
        x, y = rng.uniform(margin, 1 - margin, 2).tolist()
        gap = min((math.hypot(x - o.x, y - o.y) / (unit + o.unit) for o in layers), default=math.inf)
        if gap > best_gap:
            best, best_gap = (x, y), gap
        if gap >= closeness:
            break
    return Placed(object_class, *best, unit)


def draw_layer(rng: np.random.Generator, layer: Placed, size: int) -> tuple[Image.Image, int, int] | None:
    draw: Callable[[Pen], None]
    if layer.object_class >= 0:
        draw, _, tilt, mirror = DRAWINGS[layer.object_class]
    else:
        draw, tilt, mirror = CLUTTER[int(rng.integers(len(CLUTTER)))], 0.3, True
    supersampling = 3 if size <= 160 else 2
    pen = Pen(rng, (layer.x * size, layer.y * size), layer.unit * size, supersampling, tilt, mirror)
    draw(pen)
    return pen.finish()


def _clip(rgba: Image.Image, left: int, top: int, size: int) -> tuple[NDArray[np.float32], slice, slice] | None:
    """Crops a drawing to the image; returns its pixels [h, w, 4], and their rows and columns in the image."""
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(size, left + rgba.width), min(size, top + rgba.height)
    if x1 <= x0 or y1 <= y0:
        return None
    pixels = np.asarray(rgba)[y0 - top : y1 - top, x0 - left : x1 - left].astype(np.float32)
    return pixels, slice(y0, y1), slice(x0, x1)


def cast_shadow(
    canvas: NDArray[np.float32], alpha: NDArray[np.float32], top: int, left: int, strength: float, size: int
) -> None:
    shift = max(1, size // 64)
    rows, columns = (
        slice(top + shift, min(size, top + shift + alpha.shape[0])),
        slice(left + shift, min(size, left + shift + alpha.shape[1])),
    )
    region = canvas[rows, columns]
    region *= 1 - strength * alpha[: region.shape[0], : region.shape[1]]


def shade(rng: np.random.Generator, colours: NDArray[np.float32], light: float) -> NDArray[np.float32]:
    """Adds directional light and a rough surface to a drawing [h, w, 3]."""
    h, w = colours.shape[:2]
    x, y = np.linspace(-1, 1, w, dtype=np.float32)[None, :], np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    amount, roughness = rng.uniform(0.0, 0.22), rng.uniform(0.0, 0.5)
    gain = 1 + np.float32(amount * math.cos(light)) * x + np.float32(amount * math.sin(light)) * y
    cells = int(rng.integers(5, 14))
    rough = Image.fromarray(rng.random((cells, cells), dtype=np.float32) - np.float32(0.5))
    gain += np.float32(roughness) * np.asarray(rough.resize((w, h), Image.Resampling.BILINEAR))
    return np.minimum(colours * gain[..., None], 255)


def develop(rng: np.random.Generator, canvas: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """Varies exposure, contrast, colour cast, sharpness and noise; returns uint8 [H, W, 3]."""
    brightness, contrast = rng.uniform(-18, 18), rng.uniform(0.8, 1.2)
    gain = (contrast * rng.uniform(0.92, 1.08, 3)).astype(np.float32)
    blur, grain, seed = rng.uniform(0, 1), rng.uniform(0, 1) ** 2 * 10, int(rng.integers(2**63))
    if blur > 0.6:
        image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
        image = image.filter(ImageFilter.GaussianBlur((blur - 0.6) * 2 * size / 256))
        canvas = np.asarray(image, dtype=np.float32)
    canvas = (canvas - 128) * gain + np.float32(128 + brightness)
    if grain > 1:
        noise = np.random.default_rng(seed).standard_normal((size, size, 3), dtype=np.float32)
        noise *= np.float32(grain)
        canvas += noise
    return np.clip(canvas, 0, 255).astype(np.uint8)
