"""A numbered series of synthetic scenes, of which data sets are made, and the writing of its files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from avgrad.scenes.classes import CLASSES
from avgrad.scenes.images import Scene, draw_scene, scene_rng
from avgrad.scenes.sounds import SAMPLE_RATE, mix_sound

_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Series:
    """The scenes of a data set; scene i depends on the seed, the size and i alone.

    Attributes:
        n: number of scenes.
        seed: of all of them.
        size: height and width of the images in pixels.
        progress: whether iterating shows a progress bar.
    """

    n: int
    seed: int
    size: int
    progress: bool = True

    def __iter__(self) -> Iterator[int]:
        """The numbers of the scenes."""
        return iter(tqdm(range(self.n), desc="scenes", unit="scene", disable=not self.progress))

    def rng(self, purpose: str, index: int) -> np.random.Generator:
        """The random generator of a scene for one purpose."""
        return scene_rng(f"dataset {purpose}", self.seed, index)

    def object_class(self, index: int) -> int:
        """The class that a scene is about; each run of `len(CLASSES)` scenes has every class once."""
        run, place = divmod(index, len(CLASSES))
        return int(self.rng("order", run).permutation(len(CLASSES))[place])

    def scene(self, index: int, objects: Sequence[int] = (1, 2, 3, 4)) -> Scene:
        """A scene; its first object is of the class that it is about.

        Args:
            index: of the scene.
            objects: numbers of objects, one of which is drawn; the smaller ones are the more likely.
        """
        rng = self.rng("picture", index)
        shares = np.array([(0.25, 0.35, 0.25, 0.15)[number - 1] for number in objects])
        count = int(rng.choice(len(objects), p=shares / shares.sum()))
        return draw_scene(rng, self.size, num_objects=objects[count], classes=[self.object_class(index)])

    def sound(self, purpose: str, index: int, object_class: int, seconds: float | None = None) -> NDArray[np.float32]:
        """A sound of a class with noise and often softer sounds of up to two other classes, `[samples]`.

        Args:
            purpose: of the random generator.
            index: of the scene.
            object_class: number of the class.
            seconds: its length; between 3 and 6 if None.
        """
        rng = self.rng(purpose, index)
        others = rng.choice(len(CLASSES), int(rng.integers(0, 3)), replace=False).tolist()
        length = rng.uniform(3, 6) if seconds is None else seconds
        return mix_sound(object_class, rng, length, [other for other in others if other != object_class])


def save_image(path: Path, pixels: NDArray[Any]) -> None:
    """Writes an image, as JPEG of high quality or as PNG by its name, into a folder that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = (
        {"quality": _JPEG_QUALITY, "subsampling": 0} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    )
    Image.fromarray(pixels).save(path, **options)


def save_sound(path: Path, waveform: NDArray[np.float32]) -> None:
    """Writes a waveform `[samples]` at 16 kHz as 16-bit WAV into a folder that is made if need be."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, SAMPLE_RATE, subtype="PCM_16")


def bounding_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """xmin, ymin, xmax, ymax of the pixels of a mask `[H, W]` that is not empty; the end is exclusive."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
