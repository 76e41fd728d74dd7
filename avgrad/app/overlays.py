"""Overlays: images of heatmaps as the page shows them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from avgrad.demo.images import FOUND, outline
from avgrad.engine.attribute import finish
from avgrad.engine.view import ViTView
from avgrad.localization import Localization

COLORMAPS = ("turbo", "viridis", "inferno", "cividis", "coolwarm", "gray")


@dataclass(frozen=True)
class Display:
    """How heatmaps are shown.

    Attributes:
        opacity: of the hottest place, in [0, 1].
        colormap: a name that matplotlib knows.
        threshold: from which value on a place belongs to the mask, in [0, 1].
        outlined: whether the mask's outline is drawn.
    """

    opacity: float = 0.75
    colormap: str = "turbo"
    threshold: float = 0.5
    outlined: bool = True


def has_layers(result: Localization) -> bool:
    """Whether there is a map for each layer; some methods look at one layer, or multiply them."""
    return result.layer_maps.shape[1] == len(result.layers) > 1


def layer_alone(result: Localization, layer: int, view: ViTView) -> Localization:
    """The result of one of its layers alone, which `Localizer(..., layers=[layer])` gives, without computing it."""
    maps = result.layer_maps[:, [result.layers.index(layer)]]
    width, height = result.image.size
    heatmaps = finish(view, maps.sum(1)[None], (height, width))[0]
    return replace(result, heatmaps=heatmaps, layers=[layer], layer_maps=maps)


def fitted(result: Localization, side: int) -> Localization:
    """The result at another size, for the screen: longer side `side` pixels."""
    scale = side / max(result.image.size)
    width, height = (max(1, round(length * scale)) for length in result.image.size)
    image = result.image.resize((width, height), Image.Resampling.BICUBIC)
    heatmaps = F.interpolate(result.heatmaps[None], (height, width), mode="bilinear", antialias=scale < 1)[0]
    return replace(result, image=image, heatmaps=heatmaps.clamp_(0, 1))


def overlay(result: Localization, index: int, display: Display) -> Image.Image:
    """The image with one prompt's heatmap, and the outline of its mask."""
    image = result.overlay(index, display.opacity, display.colormap)
    if not display.outlined:
        return image
    return _outlined(image, result.heatmaps[index].numpy() >= display.threshold, FOUND)


def together(
    result: Localization, colours: Sequence[tuple[int, int, int]], display: Display, absent: Sequence[bool]
) -> Image.Image:
    """The image with all prompts' heatmaps, each in its own colour.

    Args:
        result: of P prompts.
        colours: of each of them.
        display: its opacity, threshold and outline.
        absent: for each prompt whether it is probably not in the image: it is shown faintly, without an outline.
    """
    heat = result.heatmaps.numpy()
    strength = np.where(absent, 0.3, 1).astype(np.float32)[:, None, None]
    weights = strength * np.clip((heat - 0.25) / 0.75, 0, 1)
    palette = np.array(colours[: len(heat)], dtype=np.float32)
    shares = weights * weights * weights  # where several are warm, the warmest has most to say
    mixed = np.tensordot(shares, palette, axes=(0, 0)) / np.maximum(shares.sum(0), 1e-9)[..., None]
    alpha = display.opacity * np.sqrt(weights.max(0))[..., None]
    # colours are told apart more easily on a paler image
    grey = result.image.convert("L").convert("RGB")
    base = np.asarray(Image.blend(result.image, grey, 0.65), dtype=np.float32)
    base += alpha * (mixed - base)
    image = Image.fromarray(np.rint(base).astype(np.uint8))
    if display.outlined:
        for one, colour, missing in zip(heat, colours, absent, strict=False):
            if not missing:
                image = _outlined(image, one >= display.threshold, colour)
    return image


def _outlined(image: Image.Image, mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> Image.Image:
    thickness = max(1, round(max(image.size) / 350))
    pixels = np.array(image)
    pixels[outline(mask, thickness + 1)] = (20, 20, 20)
    pixels[outline(mask, thickness)] = colour
    return Image.fromarray(pixels)


def mask_image(result: Localization, index: int, threshold: float) -> Image.Image:
    """A mask in black and white (0 and 255), of the image's size."""
    return Image.fromarray(result.mask(threshold)[index].numpy().astype(np.uint8) * 255)


def jpeg(image: Image.Image) -> bytes:
    """An image as the page sends it to the browser."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, subsampling=0)
    return stream.getvalue()


def png(image: Image.Image) -> bytes:
    """An image without loss."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
