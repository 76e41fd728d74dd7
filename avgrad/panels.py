"""Panels: images that show several heatmaps of one image together, by method or by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from avgrad.localization import Localization

if TYPE_CHECKING:
    from PIL import Image, ImageFont

SIDE = 224  # of the longer side of one tile, in pixels
COLUMNS = 8
PROMPTS = 32  # that a panel shows at most, the first ones
_GAP, _LINE, _SIZE = 8, 24, 14
_PAPER, _INK = (255, 255, 255), (24, 27, 32)


@cache
def _font() -> ImageFont.FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    # Pillow's own font has Latin letters alone
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), _SIZE)


def _fitted(words: str, room: int) -> str:
    """As much of a line as fits in so many pixels."""
    words = " ".join(words.split())
    if _font().getlength(words) <= room:
        return words
    while words and _font().getlength(words + "…") > room:
        words = words[:-1]
    return words + "…"


def _sheet(sections: Sequence[tuple[str, Sequence[tuple[str, Image.Image]]]]) -> Image.Image:
    """Sections below each other, each a title and captioned tiles of one size, at most `COLUMNS` side by side."""
    from PIL import Image, ImageDraw

    source = sections[0][1][0][1]
    scale = SIDE / max(source.size)
    width, height = (max(1, round(length * scale)) for length in source.size)
    columns = min(COLUMNS, max(len(tiles) for _, tiles in sections))
    rows = [-(-len(tiles) // columns) for _, tiles in sections]
    step_x, step_y = width + _GAP, height + _LINE + _GAP
    total = sum(_LINE + count * step_y for count in rows)
    sheet = Image.new("RGB", (columns * step_x + _GAP, total + _GAP), _PAPER)
    draw, y = ImageDraw.Draw(sheet), _GAP
    for (title, tiles), count in zip(sections, rows, strict=True):
        draw.text((_GAP, y), _fitted(title, columns * step_x - _GAP), fill=_INK, font=_font())
        y += _LINE
        for number, (caption, image) in enumerate(tiles):
            left, top = _GAP + number % columns * step_x, y + number // columns * step_y
            draw.text((left, top), _fitted(caption, width), fill=_INK, font=_font())
            sheet.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, top + _LINE))
        y += count * step_y
    return sheet


def prompt_panel(result: Localization) -> Image.Image:
    """The overlays of a result side by side, of its first prompts."""
    small = result.resized(SIDE)
    tiles = [
        (f"{prompt.label} {score:.3f}", small.overlay(index))
        for index, (prompt, score) in enumerate(zip(result.prompts[:COLUMNS], result.scores.tolist(), strict=False))
    ]
    return _sheet([(f"{result.model}, {result.method}", tiles)])


def method_panel(results: Sequence[Localization]) -> Image.Image:
    """Overlays of several methods side by side, prompt by prompt, as in the LeGrad paper's Figure 5.

    Args:
        results: of the same image and prompts, one for each method.
    """
    small = [result.resized(SIDE) for result in results]
    first = small[0]
    return _sheet(
        [
            (
                f"{prompt.label} ({prompt.modality}), {first.model}, score {score:.3f}",
                [("the image", first.image), *((result.method, result.overlay(index)) for result in small)],
            )
            for index, (prompt, score) in enumerate(zip(first.prompts[:PROMPTS], first.scores.tolist(), strict=False))
        ]
    )


def layer_panel(result: Localization) -> Image.Image:
    """The overlay of each layer alone, prompt by prompt, as in the LeGrad paper's Figure 7, and that of all together.

    Each layer's map is min-max normalized by itself: a layer that adds next to nothing looks as hot as any other.
    """
    small = result.resized(SIDE)
    # a method that looks at one layer, or multiplies them, has no map for each
    layered = small.layer_maps.shape[1] == len(small.layers)
    layers = [replace(small, maps=maps) for maps in small.layer_maps.unbind(1)] if layered else []
    sections = []
    for index, prompt in enumerate(small.prompts[:PROMPTS]):
        tiles = [("the image", small.image)]
        tiles += [(f"layer {k}", layer.overlay(index)) for k, layer in zip(small.layers, layers, strict=False)]
        tiles.append((small.method, small.overlay(index)))
        sections.append((f"{prompt.label} ({prompt.modality}), {small.model}", tiles))
    return _sheet(sections)
