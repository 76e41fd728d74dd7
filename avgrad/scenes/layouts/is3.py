"""IS3 and VPO: a record, an image, a sound, a box and a segmentation for each sounding object of a scene.

Boxes refer to 224 x 224 pixels. In the lists of segmentations `gt_box` is the path of a mask.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from avgrad.scenes.classes import CLASSES
from avgrad.scenes.layouts import layout
from avgrad.scenes.series import Series, bounding_box, save_image, save_sound

CANVAS = 224


@layout("is3")
def write_is3(folder: Path, series: Series) -> None:
    """Two objects, both of which sound."""
    _write(folder, series, "synthetic3240", ("images", "gt_segmentation"), (2,))


@layout("vpo-ss")
def write_vpo_ss(folder: Path, series: Series) -> None:
    """Up to three objects, the first of which sounds."""
    _write(folder, series, "vpo_ss", ("visual_frames", "gray_masks"), (1, 2, 3), sounding=1)


@layout("vpo-ms")
def write_vpo_ms(folder: Path, series: Series) -> None:
    """Two or three objects, all of which sound."""
    _write(folder, series, "vpo_ms", ("visual_frames", "gray_masks"), (2, 3))


def _write(
    folder: Path,
    series: Series,
    name: str,
    folders: tuple[str, str],
    objects: tuple[int, ...],
    sounding: int | None = None,
) -> None:
    boxes, masks = [], []
    frames, segmentations = folders
    for index in series:
        scene = series.scene(index, objects)
        names = [CLASSES[number].name for number in scene.classes]
        stem = f"{'_'.join(names)}_{index:06d}"
        for place, (own, mask) in enumerate(list(zip(names, scene.masks, strict=True))[:sounding]):
            file = f"{stem}_{own}"
            save_image(folder / frames / f"{file}.jpg", scene.image)
            save_image(folder / segmentations / f"{file}.jpg", np.where(mask, 255, 0).astype(np.uint8))
            waveform = series.sound(f"sound {place}", index, scene.classes[place])
            save_sound(folder / "audio_wav" / f"{file}.wav", waveform)
            record = {"image": f"{frames}/{file}.jpg", "audio": f"audio_wav/{file}.wav"}
            box = [round(edge * CANVAS / series.size) for edge in bounding_box(mask)]
            boxes.append({**record, "gt_box": box})
            masks.append({**record, "gt_box": f"{segmentations}/{file}.jpg"})
    (folder / "metadata").mkdir()
    for kind, records in (("bbox", boxes), ("seg", masks)):
        (folder / "metadata" / f"{name}_{kind}.json").write_text(json.dumps(records))
