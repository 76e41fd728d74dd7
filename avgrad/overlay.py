"""A heatmap laid over its image."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from avgrad.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

_BAND = 1 << 18  # pixels blended at once, which bounds the memory


def blend(image: Image.Image, heat: np.ndarray, opacity: float = 0.75, colormap: str = "turbo") -> Image.Image:
    """An image with a heatmap `[H, W]` in [0, 1] laid over it, RGB; see `Localization.overlay`."""
    from PIL import Image

    if not 0 <= opacity <= 1:
        raise InputError(f"opacity={opacity} is out of range; expected a number in [0, 1]")
    colors, pixels = _colors(colormap), np.asarray(image)
    result = np.empty_like(pixels)
    rows = max(1, _BAND // max(1, heat.shape[1]))
    for start in range(0, len(heat), rows):
        band = heat[start : start + rows].astype(np.float32)
        color = colors[np.minimum(band * len(colors), len(colors) - 1).astype(np.intp)]
        base = pixels[start : start + rows].astype(np.float32)
        # the square root lets the image show through where it is cold and still marks what is half warm
        base += (color - base) * (np.float32(opacity) * np.sqrt(band))[..., None]
        result[start : start + rows] = np.rint(base)
    return Image.fromarray(result)


@cache
def _colors(name: str) -> np.ndarray:
    """The colors of a colormap, float32 `[N, 3]` in [0, 255]."""
    from matplotlib import colormaps

    if not isinstance(name, str) or name not in colormaps:
        raise InputError(f"there is no colormap {name!r}; one of matplotlib's is expected, such as 'turbo'")
    colormap = colormaps[name]
    table: np.ndarray = np.asarray(colormap(np.arange(colormap.N)), dtype=np.float32)
    return table[:, :3] * 255
