"""OpenImages V7: ten points on each object and ten beside it.

The labels are not OpenImages' own: "/x/dog" stands for the dog of the synthetic scenes.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from avgrad.scenes.classes import CLASSES
from avgrad.scenes.layouts import layout
from avgrad.scenes.series import Series, save_image

NUM_POINTS = 10  # on an object, and beside it
_COLUMNS = (
    "ImageId", "X", "Y", "Label", "EstimatedYesNo", "Source", "YesVotes", "NoVotes", "UnsureVotes", "TextLabel",
)  # fmt: skip


@layout("openimages-v7")
def write(folder: Path, series: Series) -> None:
    """The points of every object of each scene."""
    with (folder / "oidv7-val-annotations-point-labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for index in series:
            name, scene, rng = f"scene{index:011d}", series.scene(index), series.rng("points", index)
            save_image(folder / "validation" / f"{name}.jpg", scene.image)
            for number, mask in zip(scene.classes, scene.masks, strict=True):
                label = CLASSES[number].name
                for answer, pixels in (("yes", np.argwhere(mask)), ("no", np.argwhere(~mask))):
                    votes = (1, 0, 0) if answer == "yes" else (0, 1, 0)
                    for row, column in rng.choice(pixels, NUM_POINTS, replace=False).tolist():
                        x, y = ((v + 0.5) / series.size for v in (column, row))
                        writer.writerow(
                            [name, f"{x:.6f}", f"{y:.6f}", f"/x/{label}", answer, "synthetic", *votes, label]
                        )
    with (folder / "oidv7-class-descriptions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [(f"/x/{object_class.name}", object_class.name.capitalize()) for object_class in CLASSES]
        csv.writer(file).writerows([("LabelName", "DisplayName"), *rows])
