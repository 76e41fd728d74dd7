"""Flickr-SoundNet: boxes by three annotators, whose edges differ by up to a twentieth of the image.

`metadata/flickr_test_plus_silent.csv` pairs each scene with a sound of a class that it does not show.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avgrad.scenes.classes import CLASSES
from avgrad.scenes.layouts import layout
from avgrad.scenes.layouts.vggss import absent_class
from avgrad.scenes.series import Series, bounding_box, save_image, save_sound

CANVAS = 256  # side of the square that the annotations refer to
_ANNOTATORS, _SPREAD = 3, CANVAS // 20


@layout("flickr-soundnet")
def write(folder: Path, series: Series) -> None:
    """The boxes of each scene's sounding object."""
    (folder / "Annotations").mkdir()
    ids, negatives = [], ["video,audio,label"]
    for index in series:
        name, silent = f"{10**10 + index}", f"silent_{index:06d}"
        object_class, scene = series.object_class(index), series.scene(index)
        save_image(folder / "frames" / f"{name}.jpg", scene.image)
        save_sound(folder / "audio" / f"{name}.wav", series.sound("sound", index, object_class))
        absent = absent_class(series, index, scene.classes)
        save_sound(folder / "audio" / f"{silent}.wav", series.sound("silent", index, absent))
        box = np.array(bounding_box(scene.masks[0])) * CANVAS / series.size
        jitter = series.rng("annotators", index).integers(-_SPREAD, _SPREAD + 1, (_ANNOTATORS, 4))
        boxes = np.clip(np.rint(box + jitter), 0, CANVAS).astype(int)
        (folder / "Annotations" / f"{name}.xml").write_text(_xml(boxes.tolist()))
        ids.append(f"{name},{CLASSES[object_class].name}")
        negatives.append(f"{name},{silent},non-sounding")
    (folder / "metadata").mkdir()
    (folder / "metadata" / "flickr_test.csv").write_text("".join(f"{line}\n" for line in ids))
    (folder / "metadata" / "flickr_test_plus_silent.csv").write_text("".join(f"{line}\n" for line in negatives))


def _xml(boxes: list[list[int]]) -> str:
    annotators = []
    for number, box in enumerate(boxes):
        edges = "".join(f"<{key}>{v}</{key}>" for key, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        annotators.append(f"<annotator><bbox><id>{number}</id>{edges}</bbox></annotator>")
    return f"<root>{''.join(annotators)}</root>\n"
