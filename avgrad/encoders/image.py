"""Images to pixels: resizing and normalization as the original models expect them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from avgrad.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# A whole image keeps its proportions up to this one, so that a panorama does not ask for endless tokens.
MAX_ASPECT = 3.0


def center_crop(image: Image.Image, size: int, resampling: str = "bicubic") -> Image.Image:
    """The short side resized to `size` pixels, then the central square, with torchvision's rounding.

    Args:
        image: any mode.
        size: side of the square in pixels.
        resampling: "bicubic", "bilinear" or "nearest".
    """
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    # torchvision's Resize truncates the length of the long side, and its CenterCrop rounds
    lengths = int(size * width / short), int(size * height / short)
    resized = image.resize(lengths, Image.Resampling[resampling.upper()])
    left, top = (round((length - size) / 2.0) for length in resized.size)
    return resized.crop((left, top, left + size, top + size))


@dataclass(frozen=True)
class Preprocess:
    """How a model wants its images.

    Attributes:
        size: the side in pixels that the model was trained on.
        patch_size: side of a patch in pixels.
        mean, std: of each channel, for pixels in [0, 1].
        resampling: "bicubic" or "bilinear".
        squash: whether the original preprocessing squashes an image to a square instead of cropping it.
        image_size: the only height and width that the model takes; None where it takes any multiple of its patches.
    """

    size: int
    patch_size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    resampling: str = "bicubic"
    squash: bool = False
    image_size: tuple[int, int] | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        """The original models' way: the short side to `size`, then the central square (or squashed to a square).

        Args:
            image: RGB.

        Returns:
            `[3, size, size]`, float32.
        """
        if self.squash:
            return self.normalize(np.asarray(self._resize(image, (self.size, self.size))))
        return self.normalize(np.asarray(center_crop(image, self.size, self.resampling)))

    def whole(self, image: Image.Image, size: int | None = None) -> Tensor:
        """The whole image: no part of it is cut off, so a heatmap covers all of it. Its proportions are kept, but for
        models that take one size alone.

        Args:
            image: RGB.
            size: length of the short side in pixels, rounded to whole patches; None for the model's own.

        Returns:
            `[3, h, w]`, float32; h and w are multiples of the patch size, the long side at most 3 times the short one.

        Raises:
            InputError: a size for a model that takes one size alone.
        """
        return self.normalize(np.asarray(self.resized(image, size)))

    def resized(self, image: Image.Image, size: int | None = None) -> Image.Image:
        """What `whole` normalizes: the whole image at the size that the network sees, a quarter of the bytes.

        Args:
            image, size: as in `whole`.

        Raises:
            InputError: as `whole`.
        """
        if self.image_size is not None:
            if size not in (None, min(self.image_size)):
                raise InputError(
                    f"size={size} is not accepted: this model takes images of {self.image_size} pixels alone"
                )
            return self._resize(image, self.image_size[::-1])
        width, height = image.size
        short = max(1, round((size or self.size) / self.patch_size))
        aspect = min(max(width, height) / min(width, height), MAX_ASPECT)
        long = round(short * aspect)
        columns, rows = (long, short) if width >= height else (short, long)
        return self._resize(image, (columns * self.patch_size, rows * self.patch_size))

    def _resize(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        from PIL import Image

        return image.resize(size, Image.Resampling[self.resampling.upper()])

    def normalize(self, samples: np.ndarray) -> Tensor:
        """8-bit samples `[h, w, 3]` of an image at the network's size as pixels `[3, h, w]`, float32."""
        pixels = torch.from_numpy(samples.astype(np.float32) / 255.0).permute(2, 0, 1)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std
