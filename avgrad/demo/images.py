"""Images of the demo's heatmaps and masks: a strip for each scene, and a montage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from avgrad.demo.answers import MODALITIES, Answer, SceneResult
from avgrad.drawing import PALETTE, Colour, draw_outline, log_mel_of_file, outline

FOUND: Colour = (255, 255, 255)
TRUE: Colour = (255, 0, 200)
"""Colours of the outlines of found and true masks; the heatmap's colour map has neither."""
OBJECTS = PALETTE[:4]
"""A colour for each object of a scene."""

ASKED = {"audio": "by its sound", "speech": "by a spoken phrase", "text": "by a text"}

_PAPER, _INK, _FAINT, _LINE = (255, 255, 255), (24, 27, 32), (98, 105, 116), (214, 218, 224)


class Area(NamedTuple):
    """A mask, bool [H, W], and the colour that it is shown in."""

    mask: NDArray[np.bool_]
    colour: Colour


def outlined(
    image: Image.Image, found: NDArray[np.bool_] | None = None, truth: NDArray[np.bool_] | None = None
) -> Image.Image:
    """An image with the outline of the found mask, solid, and of the true one, dashed."""
    if truth is not None:
        pixels = np.array(image)
        rows, columns = np.indices(truth.shape)
        pixels[outline(truth) & ((rows + columns) // 7 % 2 == 0)] = TRUE
        image = Image.fromarray(pixels)
    return image if found is None else draw_outline(image, found, FOUND)


def fill(image: Image.Image, areas: Sequence[Area], edges: Sequence[Area] = ()) -> Image.Image:
    """An image in grey with masks filled with colour, and the outlines of others."""
    grey = image.convert("L").convert("RGB")
    pixels = np.asarray(grey, dtype=np.float32) * 0.55 + 70
    for area in areas:
        pixels[area.mask] = 0.3 * pixels[area.mask] + 0.7 * np.array(area.colour)
    filled = Image.fromarray(pixels.astype(np.uint8))
    for edge in edges:
        filled = draw_outline(filled, edge.mask, edge.colour)
    return filled


def answer_image(scene: SceneResult, answer: Answer) -> Image.Image:
    """The overlay of an answer, with the outlines of the found and the true mask if the object is in the scene."""
    overlay = scene.result.overlay(answer.index)
    if answer.iou is None:
        return overlay
    return outlined(overlay, scene.result.mask(0.5)[answer.index].numpy(), answer.obj.mask())


def truth_image(scene: SceneResult) -> Image.Image:
    """The scene in grey with the true masks in colour."""
    return fill(scene.result.image, _areas(scene))


def _areas(scene: SceneResult) -> list[Area]:
    return [Area(obj.mask(), colour) for obj, colour in zip(scene.sample.objects, OBJECTS, strict=False)]


def _one_each(scene: SceneResult) -> list[Answer]:
    """One answer for each object of a scene, cycling through the modalities."""
    modalities = (MODALITIES[number % len(MODALITIES)] for number in range(len(scene.sample.objects)))
    return [scene.answer(obj, modality) for obj, modality in zip(scene.sample.objects, modalities, strict=True)]


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


class _Sheet:
    """A canvas for images and lines of text."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), _PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def text(
        self,
        x: int,
        y: int,
        words: str,
        size: int,
        colour: Colour = _INK,
        bold: bool = False,
        room: int | None = None,
    ) -> None:
        """Writes a line; (x, y) is its top left corner, or its centre if `room`, the width to fit in, is given."""
        font = _font(size, bold)
        while room and font.getlength(words) > room:
            size -= 1
            font = _font(size, bold)
        self._draw.text((x, y), words, fill=colour, font=font, anchor="mm" if room else "la")

    def frame(self, x: int, y: int, width: int, height: int) -> None:
        self._draw.rounded_rectangle((x, y, x + width - 1, y + height - 1), 6, outline=_LINE, width=2)

    def paste(self, x: int, y: int, image: Image.Image, width: int) -> None:
        """Pastes a square image, resized to `width` pixels."""
        self.image.paste(image.resize((width, width), Image.Resampling.LANCZOS), (x, y))


def _figures(answer: Answer) -> str:
    overlap = "" if answer.iou is None else f"   IoU {answer.iou:.2f}"
    return f"score {answer.score:.2f}{overlap}"


def strip(scene: SceneResult) -> Image.Image:
    """A scene, an overlay for each of its objects, the found masks and the true ones, side by side.

    The prompts cycle through a sound, a spoken phrase and a text.
    """
    side, gap, margin, top = 320, 14, 20, 62
    answers = _one_each(scene)
    masks = scene.result.mask(0.5).numpy()
    found = [Area(masks[answer.index], colour) for answer, colour in zip(answers, OBJECTS, strict=False)]
    tiles = [
        ("the scene", scene.sample.title, scene.result.image),
        *(
            (
                f"{answer.obj.object_class}, {ASKED[answer.modality]}",
                _figures(answer),
                outlined(scene.result.overlay(answer.index), masks[answer.index]),
            )
            for answer in answers
        ),
        ("masks found", "heatmaps from 0.5 on", fill(scene.result.image, found)),
        ("true masks", "as the scene was drawn", truth_image(scene)),
    ]
    sheet = _Sheet(2 * margin + len(tiles) * (side + gap) - gap, 2 * margin + top + side)
    for number, (title, below, image) in enumerate(tiles):
        x = margin + number * (side + gap)
        sheet.text(x, margin, title, 20, bold=True)
        sheet.text(x, margin + 28, below, 17, _FAINT)
        sheet.paste(x, margin + top, image, side)
    return sheet.image


def gallery(scenes: Sequence[SceneResult], rows: int = 3) -> Image.Image:
    """A montage 1600 pixels wide: scenes of three objects, one prompt by each modality.

    Args:
        scenes: the first `rows` of them with exactly three objects are shown.
        rows: how many scenes.
    """
    side, gap, margin, head, prompt, foot = 304, 12, 16, 44, 64, 36
    shown = [scene for scene in scenes if len(scene.sample.objects) == len(MODALITIES)][:rows]
    height = prompt + 8 + side + foot
    sheet = _Sheet(1600, margin + head + len(shown) * height)
    titles = ("the image", *(ASKED[modality] for modality in MODALITIES), "true mask, outline found")
    for number, title in enumerate(titles):
        x = margin + number * (side + gap)
        sheet.text(x + side // 2, margin + head // 2 - 6, title, 20, bold=True, room=side)
    for row, scene in enumerate(shown):
        y, answers, areas = margin + head + row * height, _one_each(scene), _areas(scene)
        found = scene.result.mask(0.5).numpy()
        edges = [Area(found[answer.index], FOUND) for answer in answers]
        images = [
            scene.result.image,
            *(outlined(scene.result.overlay(answer.index), found[answer.index]) for answer in answers),
            fill(scene.result.image, areas, edges),
        ]
        for number, image in enumerate(images):
            sheet.paste(margin + number * (side + gap), y + prompt + 8, image, side)
        sheet.text(margin + side // 2, y + prompt // 2, scene.sample.title, 24, room=side)
        for number, answer in enumerate(answers, start=1):
            _prompt(sheet, margin + number * (side + gap), y, side, prompt, answer)
            x = margin + number * (side + gap) + side // 2
            sheet.text(x, y + prompt + 8 + side + foot // 2 - 4, _figures(answer), 19, _FAINT, room=side)
    return sheet.image


def _prompt(sheet: _Sheet, x: int, y: int, width: int, height: int, answer: Answer) -> None:
    """The prompt: the spectrogram of a sound, the words of a text, both of speech."""
    if answer.modality == "audio":
        sheet.image.paste(log_mel_of_file(answer.obj.sound, (width, height)), (x, y))
        return
    sheet.frame(x, y, width, height)
    words = f"“{answer.words}”"
    if answer.modality == "text":
        sheet.text(x + width // 2, y + height // 2, words, 24, room=width - 20)
        return
    sheet.text(x + width // 2, y + 17, words, 20, room=width - 20)
    sheet.image.paste(log_mel_of_file(answer.obj.speech, (width - 16, height - 38)), (x + 8, y + 32))
