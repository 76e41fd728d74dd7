"""The drawing of each class."""

from collections.abc import Callable
from typing import NamedTuple

from avgrad.scenes.classes import CLASSES
from avgrad.scenes.objects import animals, instruments, machines
from avgrad.scenes.pen import Pen


class Drawing(NamedTuple):
    """How a class is drawn.

    Attributes:
        draw: draws one object with a pen.
        area: mean area of the silhouette in square units; converts a wanted area to a size.
        tilt: maximum rotation to either side, in radians.
        mirror: whether the object may be mirrored horizontally.
    """

    draw: Callable[[Pen], None]
    area: float
    tilt: float
    mirror: bool = True


_DRAWINGS: dict[str, Drawing] = {
    "bell": Drawing(instruments.bell, 2.45, 0.35),
    "drum": Drawing(instruments.drum, 2.89, 0.25),
    "guitar": Drawing(instruments.guitar, 1.99, 0.9),
    "piano": Drawing(instruments.piano, 3.71, 0.12),
    "siren": Drawing(machines.siren, 2.68, 0.25),
    "clock": Drawing(machines.clock, 3.38, 0.2),
    "telephone": Drawing(machines.telephone, 3.06, 0.2),
    "rain": Drawing(machines.rain, 2.97, 0.1),
    "car": Drawing(machines.car, 2.59, 0.15),
    "train": Drawing(machines.train, 4.04, 0.1),
    "helicopter": Drawing(machines.helicopter, 2.5, 0.25),
    "bird": Drawing(animals.bird, 2.3, 0.3),
    "bee": Drawing(animals.bee, 3.08, 0.5),
    "dog": Drawing(animals.dog, 2.73, 0.2),
    "cat": Drawing(animals.cat, 2.58, 0.2),
    "frog": Drawing(animals.frog, 3.5, 0.2),
}

DRAWINGS: tuple[Drawing, ...] = tuple(_DRAWINGS[object_class.name] for object_class in CLASSES)
"""The drawing of each class, in the order of `CLASSES`."""
