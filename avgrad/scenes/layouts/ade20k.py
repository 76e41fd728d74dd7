"""ADE20KSoundPrompted and ADE20KSpeechPrompted.

`prompted_segmentation.csv` has the columns `image_location`, `vggsound_file` or `speech_prompt_file`, `ade_class_id`,
`timing` and `class_name`, with file names without their folder; `timing` is JSON, the start and the end of the spoken
name in seconds, empty for sounds.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avgrad.scenes.classes import CLASSES
from avgrad.scenes.layouts import layout
from avgrad.scenes.series import Series, save_image, save_sound
from avgrad.scenes.speech import spoken

CSV_NAME = "prompted_segmentation.csv"


def encode_annotation(class_ids: NDArray[np.integer], instances: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Encodes class ids as ADE20K does: class id = (R // 10) * 256 + G, with the instance in B.

    Args:
        class_ids: [H, W], 0 (background) to 6655.
        instances: [H, W], 0 to 255.

    Returns:
        RGB [H, W, 3]; inverted by `decode_annotation`.
    """
    return np.stack([class_ids // 256 * 10, class_ids % 256, instances], axis=-1).astype(np.uint8)


def decode_annotation(annotation: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The class ids [H, W] of an ADE20K annotation, RGB [H, W, 3]."""
    wide = annotation.astype(np.int64)
    return wide[..., 0] // 10 * 256 + wide[..., 1]


@layout("ade20k-sound")
def write_sound(folder: Path, series: Series) -> None:
    """Prompts are sounds of 3 to 6 seconds."""
    _write(folder, series, "vggsound_file")


@layout("ade20k-speech")
def write_speech(folder: Path, series: Series) -> None:
    """Prompts are the classes' names in held-out phrases by held-out voices."""
    _write(folder, series, "speech_prompt_file")


def _write(folder: Path, series: Series, column: str) -> None:
    with (folder / CSV_NAME).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_location", column, "ade_class_id", "timing", "class_name"])
        for index in series:
            object_class = series.object_class(index)
            name = f"scene_{index:06d}"
            _write_scene(folder, name, series, index)
            timing = ""
            if column == "vggsound_file":
                waveform = series.sound("sound", index, object_class)
            else:
                phrase = spoken(object_class, series.rng("speech", index), "heldout")
                waveform, timing = phrase.waveform, json.dumps([round(phrase.start, 3), round(phrase.end, 3)])
            save_sound(folder / "audio" / f"{name}.wav", waveform)
            shown = CLASSES[object_class]
            writer.writerow([f"{name}.jpg", f"{name}.wav", shown.ade_class_id, timing, shown.name])


def _write_scene(folder: Path, name: str, series: Series, index: int) -> None:
    scene = series.scene(index)
    class_ids = np.zeros(scene.image.shape[:2], dtype=np.int64)
    instances = np.zeros_like(class_ids)
    for number, (shown, mask) in enumerate(zip(scene.classes, scene.masks, strict=True), start=1):
        class_ids[mask] = CLASSES[shown].ade_class_id
        instances[mask] = number
    save_image(folder / "frames" / f"{name}.jpg", scene.image)
    save_image(folder / "annotations" / f"{name}_seg.png", encode_annotation(class_ids, instances))
