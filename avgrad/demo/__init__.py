"""The demo: localizes sounds, speech and texts in the sample scenes, and writes a page with the heatmaps."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from avgrad.demo.answers import SceneResult, localize_scene
from avgrad.demo.images import gallery, strip
from avgrad.demo.page import page
from avgrad.files import write_atomic
from avgrad.localizer import Localizer
from avgrad.models.registry import load
from avgrad.scenes.samples import Sample, SampleObject, samples

__all__ = ["Demo", "run"]


class Demo(NamedTuple):
    """What a demo wrote and found.

    Attributes:
        page: the page (HTML, self-contained).
        gallery: the montage (PNG).
        strips: a PNG for each scene.
        scenes: the scenes with their answers.
        seconds: the time it took, without starting Python.
    """

    page: Path
    gallery: Path
    strips: tuple[Path, ...]
    scenes: tuple[SceneResult, ...]
    seconds: float

    def __str__(self) -> str:
        """The figures, the files and what to try next."""
        answers = [answer for scene in self.scenes for answer in scene.answers]
        hits = sum(bool(answer.on_object) for answer in answers)
        overlap = mean(answer.iou or 0.0 for answer in answers)
        return (
            f"{len(answers)} prompts by sound, speech and text for the objects of {len(self.scenes)} scenes: "
            f"the hottest pixel is on the object for {hits}, mean IoU {overlap:.2f} ({self.seconds:.1f} s)\n\n"
            f"the page:   {self.page}\n"
            f"the images: {self.gallery}, {self.strips[0].name} to {self.strips[-1].name}\n\n"
            "what to try next:\n"
            '  avgrad localize PHOTO --text "a dog"   your own image; mini knows only drawings like these\n'
            "  avgrad download imagebind_huge         ImageBind, for photographs"
        )


def run(out: str | os.PathLike[str], progress: bool = True) -> Demo:
    """Localizes prompts of all modalities in the sample scenes with the bundled model; writes a page and images.

    Args:
        out: folder for `index.html`, `gallery.png` and `scene_N.png`; made where it is missing.
        progress: whether to show a progress bar.

    Raises:
        CheckpointError: the bundled model is missing or damaged.
        OSError: the folder cannot be made or written to.
    """
    start = time.perf_counter()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    localizer = Localizer(load("mini"))
    shown = samples()
    scenes, strips = [], []
    for number, sample in enumerate(tqdm(shown, desc="localizing", unit="scene", disable=not progress, leave=False)):
        scenes.append(localize_scene(localizer, sample, _absent(shown, number), number))
        strips.append(_save(folder / f"scene_{number + 1}.png", strip(scenes[-1])))
    montage = _save(folder / "gallery.png", _few_colours(gallery(scenes)))
    document = page(scenes, time.perf_counter() - start)
    written = write_atomic(folder / "index.html", document.encode())
    return Demo(written, montage, tuple(strips), tuple(scenes), time.perf_counter() - start)


def _absent(scenes: tuple[Sample, ...], number: int) -> SampleObject:
    """An object of another scene whose class is not in scene `number`."""
    here = {obj.object_class for obj in scenes[number].objects}
    others = scenes[number + 1 :] + scenes[:number]
    return next(obj for scene in others for obj in scene.objects if obj.object_class not in here)


def _few_colours(image: Image.Image) -> Image.Image:
    """The image in 256 colours, dithered: a third of the bytes."""
    palette = image.quantize(256, method=Image.Quantize.FASTOCTREE)
    return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def _save(path: Path, image: Image.Image) -> Path:
    return write_atomic(path, partial(image.save, format="PNG"))
