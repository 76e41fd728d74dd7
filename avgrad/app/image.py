"""Images: what a visitor looks for things in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from avgrad.media import load_image
from avgrad.scenes.samples import Sample, samples

if TYPE_CHECKING:
    from PIL import Image

MAX_SIDE = 1024  # in pixels; larger images are shrunk, so that heatmaps as large as they are fit many visitors


@dataclass(frozen=True, eq=False)
class InputImage:
    """An image that was read and checked.

    Attributes:
        name: what to call it, as the visitor did: shown as it is, never as markup.
        image: RGB, at most `MAX_SIDE` pixels wide and high.
        digest: the same for the same file.
        source: the Python expression that gives the file.
        shrunk: whether the file has more pixels than `image`.
        sample: the sample scene that it is.
        photo: the file's bytes, where it was taken by the visitor's camera and exists nowhere else.
    """

    name: str
    image: Image.Image
    digest: str
    source: str
    shrunk: bool = False
    sample: Sample | None = None
    photo: bytes | None = None


def read_image(content: bytes, name: str, taken: bool = False) -> InputImage:
    """An image from a file's bytes.

    Args:
        content: the file's bytes.
        name: its name.
        taken: whether it was taken by the visitor's camera.

    Raises:
        MediaError: it is not an image, or is damaged.
    """
    image = load_image(content)
    shrunk = max(image.size) > MAX_SIDE
    if shrunk:
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    return InputImage(name, image, digest(content), repr(name), shrunk, photo=content if taken else None)


def sample_image(number: int) -> InputImage:
    """The image of a sample scene."""
    sample = samples()[number]
    source = f"samples()[{number}].image"
    return InputImage(sample.title, load_image(sample.image), f"sample {number}", source, sample=sample)


def digest(content: bytes) -> str:
    """The same for the same file."""
    return hashlib.sha256(content).hexdigest()
