"""FunnyBirds: birds of exchangeable parts before background objects, and every image without some of them.

The 50 classes are combinations of parts, as in the original, which is rendered in 3-D. A model that was not trained on
them has random accuracy: the twin shows a run from end to end.
"""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from avgrad.scenes.backgrounds import draw_background
from avgrad.scenes.images import scene_rng
from avgrad.scenes.layouts import layout
from avgrad.scenes.series import Series

Ints = tuple[int, ...]

SIZE = 256
NUM_CLASSES = 50
VARIANTS = {"beak": 4, "eye": 3, "foot": 4, "tail": 9, "wing": 6}
_MAX_BACKGROUND = 4
_BODY = (150, 120, 90)
_PALETTE = (
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240),
    (240, 50, 230), (40, 40, 40),
)  # fmt: skip
# in part maps; two eyes, feet and wings have colors of their own
_BEAK, _EYES, _FEET = (255, 255, 0), ((255, 255, 253), (255, 255, 254)), ((255, 0, 1), (255, 0, 2))
_TAIL, _WINGS, _BACKGROUND = (0, 0, 255), ((0, 255, 1), (0, 255, 2)), (204, 204, 204)


@layout("funnybirds")
def write(folder: Path, series: Series) -> None:
    """A test image, its part map and its interventions for each number."""
    rng = scene_rng("dataset bird classes", series.seed, 0)
    total = int(np.prod(list(VARIANTS.values())))
    chosen = rng.choice(total, NUM_CLASSES, replace=False)
    variants = np.stack(np.unravel_index(chosen, tuple(VARIANTS.values())), axis=1).tolist()
    classes = [
        {"class_idx": number, "parts": dict(zip(VARIANTS, own, strict=True))} for number, own in enumerate(variants)
    ]
    rows = []
    for index in series:
        rng = series.rng("bird", index)
        label = int(rng.integers(NUM_CLASSES))
        objects = _background_objects(rng)
        paper = Image.fromarray((255 * (0.6 + 0.4 * draw_background(rng, SIZE))).round().astype(np.uint8))
        center = rng.integers(-20, 21, 2) + SIZE // 2
        parts = _parts(classes[label]["parts"])  # type: ignore[arg-type]
        name = f"{label}/{index:06d}"

        def save(path: str, kept: tuple[str, ...] = tuple(VARIANTS), without: int = -1) -> None:
            image = paper.copy()  # noqa: B023
            shown = [own for number, own in enumerate(objects) if number != without]  # noqa: B023
            _draw(image, [(shape, box, color) for shape, box, color, _ in shown], (0, 0))
            bird = [(shape, box, color) for part, shape, box, color, _ in parts if part in kept]  # noqa: B023
            _draw(image, [("ellipse", (-50, -35, 50, 35), _BODY), *bird], center)  # noqa: B023
            _save(folder / path, image)

        part_map = Image.new("RGB", (SIZE, SIZE))
        _draw(part_map, [(shape, box, color) for shape, box, _, color in objects], (0, 0))
        body = ("ellipse", (-50, -35, 50, 35), (0, 0, 0))
        _draw(part_map, [body, *((shape, box, color) for _, shape, box, _, color in parts)], center)
        save(f"test/{name}.png")
        _save(folder / f"test_part_map/{name}.png", part_map)
        for size in range(len(VARIANTS) + 1):
            for kept in combinations(sorted(VARIANTS), size):
                save(f"test_interventions/{name}/body_{'_'.join(kept)}.png", kept)
        for number in range(len(objects)):
            save(f"test_interventions/{name}/background_interventions/{number}.png", without=number)
        rows.append({"class_idx": label, "bg_objects": "".join(f"{number}," for number in range(len(objects)))})
    (folder / "classes.json").write_text(json.dumps(classes))
    (folder / "dataset_test.json").write_text(json.dumps(rows))


def _parts(variants: dict[str, int]) -> list[tuple[str, str, Ints, Ints, Ints]]:
    """Part, shape, coordinates around the body's center, color and color in part maps of what is drawn on the body."""
    beak, eye, foot, tail, wing = (variants[part] for part in VARIANTS)
    colors = {part: _PALETTE[variant] for part, variant in variants.items()}
    return [
        ("tail", "polygon", (-45, 0, -95, -25 + 6 * tail, -95, 5 + 6 * tail), colors["tail"], _TAIL),
        ("foot", "rectangle", (-20, 30, -12, 60 + 5 * foot), colors["foot"], _FEET[0]),
        ("foot", "rectangle", (10, 30, 18, 60 + 5 * foot), colors["foot"], _FEET[1]),
        ("beak", "polygon", (45, -15, 75 + 8 * beak, -5, 45, 5), colors["beak"], _BEAK),
        ("wing", "ellipse", (-35, -25, 0, 10 + 4 * wing), colors["wing"], _WINGS[0]),
        ("wing", "ellipse", (-5, -60 - 4 * wing, 15, -25), colors["wing"], _WINGS[1]),
        ("eye", "ellipse", (18, -26, 28 + 3 * eye, -16 + 3 * eye), colors["eye"], _EYES[0]),
        ("eye", "ellipse", (34, -24, 41 + 3 * eye, -17 + 3 * eye), colors["eye"], _EYES[1]),
    ]


def _background_objects(
    rng: np.random.Generator,
) -> list[tuple[str, Ints, Ints, Ints]]:
    """Shape, coordinates, color and color in part maps of one to four objects near the image's corners."""
    found: list[tuple[str, Ints, Ints, Ints]] = []
    for number, corner in enumerate(rng.permutation(4)[: int(rng.integers(1, _MAX_BACKGROUND + 1))].tolist()):
        left, top = (int(v) for v in rng.integers(0, 20, 2) + np.array([corner % 2, corner // 2]) * (SIZE - 60))
        shape = ("ellipse", "rectangle")[int(rng.integers(2))]
        red, green, blue = _BACKGROUND
        color = tuple(rng.integers(60, 220, 3).tolist())
        found.append((shape, (left, top, left + 38, top + 38), color, (red, green, blue + number)))
    return found


def _draw(image: Image.Image, shapes: list[tuple[str, Ints, Ints]], center: Any) -> None:
    pen = ImageDraw.Draw(image)
    x, y = (int(value) for value in center)
    for shape, coordinates, color in shapes:
        moved = [value + (y if place % 2 else x) for place, value in enumerate(coordinates)]
        getattr(pen, shape)(moved, fill=color)


def _save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert("RGBA").save(path, compress_level=1)
