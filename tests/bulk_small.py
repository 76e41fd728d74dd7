"""A small collection of images for the tests of bulk work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from avgrad import Localizer, load
from avgrad.bulk import Run, localize_all
from avgrad.scenes import draw_scene, scene_rng

SHAPES = ((160, 160), (160, 120), (90, 160))
SIZE = 40  # 16 patches of mini: fast


def draw(number: int) -> Image.Image:
    """Image `number` of the collection, of one of three shapes."""
    image = Image.fromarray(draw_scene(scene_rng("test bulk", number % 6, 0), 160).image)
    return image.resize(SHAPES[number % 3]) if number % 3 else image


def make_collection(folder: Path, count: int = 12) -> Path:
    """`count` images in two folders, and two files that cannot be read: one damaged, one empty."""
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        draw(number).save(folder / ("one", "two")[number % 2] / f"{number:05d}.png")
    (folder / "one" / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    (folder / "two" / "00000.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    return folder


def localizer(**options: Any) -> Localizer:
    """mini at a small size."""
    return Localizer(load("mini"), **{"size": SIZE, **options})


def run(sources: Any, out: Path, **options: Any) -> Run:
    """A run with small batches and shards."""
    arguments = {"text": ["a dog", "a bell"], "batch_size": 2, "shard_size": 5, **options}
    return localize_all(arguments.pop("localizer", None) or localizer(), sources, out, **arguments)


def contents(run: Run) -> dict[str, bytes]:
    """The bytes of a run's shards, by name; nothing else lies beside them."""
    return {path.name: path.read_bytes() for path in sorted((run.folder.path / "shards").iterdir())}
