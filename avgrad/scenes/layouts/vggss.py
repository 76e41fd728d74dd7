"""VGG-SS, its extended version and VGGSound-Duet.

`metadata/vggss_test_plus_silent.csv` pairs each scene with a sound of a class that it does not show, and
`metadata/vggsound_duet_test.csv` pairs neighboring scenes.
"""

from __future__ import annotations

import json
from pathlib import Path

from avgrad.scenes.classes import CLASSES
from avgrad.scenes.layouts import layout
from avgrad.scenes.series import Series, bounding_box, save_image, save_sound


def absent_class(series: Series, index: int, classes: list[int]) -> int:
    """A random class that a scene does not show."""
    others = [number for number in range(len(CLASSES)) if number not in classes]
    return int(series.rng("absent", index).choice(others))


@layout("vggss")
def write(folder: Path, series: Series) -> None:
    """The box of each scene's sounding object."""
    records, negatives, duets = [], ["video,audio,label"], []
    for index in series:
        name, silent = f"scene_{index:06d}", f"silent_{index:06d}"
        object_class, scene = series.object_class(index), series.scene(index)
        save_image(folder / "frames" / f"{name}.jpg", scene.image)
        save_sound(folder / "audio" / f"{name}.wav", series.sound("sound", index, object_class))
        absent = absent_class(series, index, scene.classes)
        save_sound(folder / "audio" / f"{silent}.wav", series.sound("silent", index, absent))
        box = [edge / series.size for edge in bounding_box(scene.masks[0])]
        records.append({"file": name, "class": CLASSES[object_class].name, "bbox": [box]})
        negatives.append(f"{name},{silent},non-sounding")
        if index % 2:
            own = (number for i in (index - 1, index) for number in (f"scene_{i:06d}", _name(series, i)))
            duets.append(",".join(own))
    metadata = folder / "metadata"
    metadata.mkdir()
    (metadata / "vggss.json").write_text(json.dumps(records))
    for name, lines in (
        ("vggss_test.csv", [str(record["file"]) for record in records]),
        ("vggss_test_plus_silent.csv", negatives),
        ("vggsound_duet_test.csv", duets),
    ):
        (metadata / name).write_text("".join(f"{line}\n" for line in lines))


def _name(series: Series, index: int) -> str:
    return CLASSES[series.object_class(index)].name
